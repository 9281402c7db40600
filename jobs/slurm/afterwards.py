"""What the batch script of a preparation, evaluation, inference or export does after srun:
`python -m jobs.slurm.afterwards STAGE RUN CODE [ARGUMENT…]`, with the script's own arguments.

If tasks were told to exit (85), there is more to do, and the job must come back; if they are done (0), that
must count as success for dependent jobs. Neither is certain where Slurm treats any end of a job within its
grace time as a preemption (`slurm.fate`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from jobs.run import events, exit_codes
from jobs.run.directory import Run
from jobs.run.errors import run_command
from jobs.run.task import job_id, slurm_id
from jobs.slurm import calls as slurm
from jobs.slurm import successor


def main() -> int:
    if len(sys.argv) < 4:
        print("usage: python -m jobs.slurm.afterwards STAGE RUN CODE [ARGUMENT…]", file=sys.stderr)
        return 2
    stage, path, code, *arguments = sys.argv[1:]
    return after_srun(stage, Run(Path(path).resolve()), int(code), arguments)


def after_srun(stage: str, run: Run, code: int, arguments: list[str]) -> int:
    """Returns 0, or 1 if the job must come back and cannot. `run`: the checkout if the script has no run."""
    job, slurms = job_id(), slurm_id()
    shown = slurm.this_job()
    # A job that Slurm has requeued itself comes back anyway; one that is being cancelled must not.
    if job is None or slurms is None or shown.get("JobState") != "RUNNING":
        return 0
    fate = slurm.fate(shown)
    if fate == "preempted" and slurm.forbid_requeue(slurms).ok:
        return _hand_over(stage, run, job, code, arguments)
    if code == exit_codes.FINISHED or fate == "requeued":
        return 0
    answer = slurm.call(["scontrol", "requeue", slurms])
    if not answer.ok:
        print(f"error: the job could not be requeued: {answer.text}", file=sys.stderr)
    return 0 if answer.ok else 1


def _hand_over(stage: str, run: Run, job: str, code: int, arguments: list[str]) -> int:
    """Submits a job that continues the work or, if that is done, ends in success for dependent jobs."""
    if code == exit_codes.FINISHED and not successor.dependents(job):
        return 0
    new, text = successor.submit(run, f"afterany:{job}", arguments=arguments, stage=stage)
    if new is None:
        print(f"error: no other job could be submitted in place of this one: {text}", file=sys.stderr)
        return 1
    successor.move_dependents(job, lambda text: successor.rename(text, job, new), but=new)
    if run.events.exists():
        events.append(run.events, "requeued", stage=stage, job=job, how="successor", successor=new)
    print(f"baton: submitted job {new}, which goes on", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
