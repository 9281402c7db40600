"""`python -m benchmarks.slow_files.epoch DATA_ROOT RESULT [decoded]`: goes once through the recipe's training
data as a training of Baton's loads them, each image decoded once a node if asked, and writes the seconds."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path

RECIPE = "configs/upernet_r50_voc-aug_512x512_epoch-200.py"


def main() -> None:
    root, result = map(Path, sys.argv[1:3])
    from jobs.mmseg import compat

    compat.prepare()
    from mmengine.config import Config
    from mmengine.runner import Runner
    from mmseg.utils import register_all_modules

    from jobs.engine import delivery
    from jobs.mmseg.decoded import decode_once
    from jobs.mmseg.packed import read_packed
    from jobs.mmseg.transforms import use_fast_transforms

    register_all_modules()
    loader = Config.fromfile(RECIPE).train_dataloader
    loader.dataset.data_root = str(root / "VOCdevkit/VOC2012")
    use_fast_transforms(loader.dataset)
    read_packed(loader.dataset)
    if sys.argv[3:]:
        decode_once([loader], len(os.sched_getaffinity(0)))
    built = Runner.build_dataloader(loader, seed=0)
    delivery.through_buffers(built)
    gc.freeze()
    began = time.perf_counter()
    count = sum(len(batch["inputs"]) for batch in built)
    result.write_text(f"{time.perf_counter() - began} {count}")


if __name__ == "__main__":
    main()
