"""The findings where there is no Slurm."""

from __future__ import annotations

from jobs.run import cuda
from launch.observe.doctor.findings import Finding
from launch.submit import machine


def look() -> list[Finding]:
    gpus = machine.local_gpus()
    built, taken = cuda.build(), cuda.driver()
    way = cuda.fix(built, taken)
    return [
        Finding("Slurm", "note", "none can be reached from here",
                "runs go to the local executor: prepare, train, evaluate, one after the other",
                "to use a cluster, type this on its login node"),
        Finding("GPUs", "bad", f"torch is built for CUDA {built}, and the driver takes {taken} at most",
                "a training would run on the CPU", way)
        if gpus and way else
        Finding("GPUs", "good", f"{gpus} on this machine", "one rank each")
        if gpus else
        Finding("GPUs", "note", "none on this machine", "ranks are CPU processes: enough for the demo",
                "a machine with a GPU, or a cluster, for the recipe"),
    ]  # fmt: skip
