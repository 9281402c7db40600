"""One rank of a training by mmengine's own runner, as mmsegmentation's tools/train.py uses it:
`python -m benchmarks.trainings.peer RUN`. Without RUN it trains those that standard input names, one a line,
each in a process forked after the imports, and answers each with its exit code (start.Peers).

Nothing of Baton is in it but what the official packages need to work at all with the torch that is installed:
importing mmseg without mmcv's compiled part, and reading checkpoints.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

from jobs.engine import safe_load
from jobs.mmseg import compat
from jobs.run.directory import Run


def main() -> None:
    compat.stub_compiled_mmcv()
    compat.find_packages_without_pkg_resources()
    # mmengine looks at its version, and dies of one that does not fit torch; without any it goes on.
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    from mmengine.runner import CheckpointLoader

    # Registers them; custom_imports that are merged into a config come too late for mmengine.
    from benchmarks.trainings import hooks  # noqa: F401

    CheckpointLoader.register_scheme(prefixes="", loader=load, force=True)
    if sys.argv[1:]:
        train(Path(sys.argv[1]).resolve())
        return
    import mmseg.datasets
    import mmseg.models  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        process = multiprocessing.get_context("fork").Process(
            target=train_in_child, args=(Path(line.strip()),)
        )
        process.start()
        process.join()
        os.environ.pop("BEGAN", None)  # of the first alone
        print(process.exitcode, file=answers, flush=True)


def train_in_child(path: Path) -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    train(path)


def train(path: Path) -> None:
    import torch.distributed as dist
    from mmengine.config import Config
    from mmengine.runner import Runner

    run = Run(path)
    os.chdir(run.code)
    request = run.request()
    cfg = Config.fromfile(request.config)
    cfg.merge_from_dict(request.set)
    cfg.work_dir = str(run.path / "mmengine")
    cfg.resume = (run.path / "mmengine" / "last_checkpoint").exists()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # mmengine's own launcher asks for a GPU, and so does its DistributedDataParallel.
        dist.init_process_group("gloo")
        cfg.launcher = "pytorch"
        cfg.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "broadcast_buffers": False,
            "find_unused_parameters": False,
        }
    Runner.from_cfg(cfg).train()


def load(filename: str, map_location: Any = "cpu", **_: Any) -> Any:
    """torch.load, with the harmless classes allowed that mmengine's own checkpoints hold."""
    import torch

    with torch.serialization.safe_globals([(value, name) for name, value in safe_load.allowed().items()]):
        return torch.load(filename, map_location=map_location, weights_only=True)


if __name__ == "__main__":
    main()
