"""MMSegmentation's model zoo as it lies in the installed package: its families, small wrappers of them."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml

from jobs.catalog import installed, supported
from jobs.run.directory import Run, write_atomically
from jobs.run.exit_codes import RESUME
from launch.submit import config_files, configs, snapshot
from tests.support import tiny

FOLDER = config_files.configs_of("mmseg") or Path()

NEEDS = {
    "convnext": ("mmpretrain", "mmpretrain is neither beside the config nor installed"),
    "dsdl": ("dsdl", "DSDLSegDataset needs dsdl, which is not installed"),
    "mask2former": ("mmdet", "mmdet"),
    "maskformer": ("mmdet", "MaskFormerHead needs mmdet, which is not installed"),
    "poolformer": ("mmpretrain", "mmpretrain is neither beside the config nor installed"),
    "vpd": ("ldm", "VPD needs ldm, the code of Stable Diffusion, which is not installed"),
    "swin/swin-tiny-patch4-window7_upernet_1xb8-20k_levir-256x256.py": ("osgeo", "needs GDAL"),
}
"""Families, and single configs, that need what `env/setup.sh` does not install: what, and what a submission
says without it."""


def refusal(name: str) -> str:
    """What a submission of a config says in this environment; "" where it passes."""
    package, words = NEEDS.get(name) or NEEDS.get(name.split("/")[0]) or ("", "")
    return "" if installed.is_installed(package or "mmseg") else words


def all_configs() -> list[str]:
    """The configs' names as `mmseg::NAME` has them, without the bases that are none themselves."""
    paths = (path.relative_to(FOLDER) for path in FOLDER.rglob("*.py"))
    return sorted(path.as_posix() for path in paths if path.parts[0] != "_base_")


def families() -> dict[str, list[str]]:
    """Each family's configs."""
    found: dict[str, list[str]] = {}
    for name in all_configs():
        found.setdefault(name.split("/")[0], []).append(name)
    return found


# ------------------------------------------------------------------------------------------ small trainings

CROP = 64
SMALLEST = {
    # Its r18 gives the model no size to pad to, with which mmseg cannot train.
    "upernet": "upernet_r50_4xb4-20k_voc12aug-512x512",
    "bisenetv1": "bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024",
    "dpt": "dpt_vit-b16_8xb2-160k_ade20k-512x512",
    "hrnet": "fcn_hr18s_4xb4-20k_voc12aug-512x512",
    "icnet": "icnet_r18-d8_4xb2-80k_cityscapes-832x832",
    "mobilenet_v3": "mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024",
    "ocrnet": "ocrnet_hr18s_4xb4-20k_voc12aug-512x512",
    "resnest": "resnest_s101-d8_fcn_4xb2-80k_cityscapes-512x1024",
    "segformer": "segformer_mit-b0_8xb2-160k_ade20k-512x512",
    "segmenter": "segmenter_vit-t_mask_8xb1-160k_ade20k-512x512",
    "segnext": "segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512",
    "swin": "swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512",
    "twins": "twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512",
}
"""The config that stands for a family, where it is not the one that `member` would find."""
LARGER = {"psanet": 128, "mobilenet_v3": 416}
"""Families whose crop is larger than CROP."""
OTHER_DATA = ("dsdl",)
"""Families of which only the dataset needs something: trained on tests/tiny.py's, as all are."""
VOCABULARY = [f"thing {number}" for number in range(21)]
"""What SAN's encoder of texts is told that the classes are called."""


def member(family: str) -> str:
    """The config that stands for a family: a small one."""
    names = families()[family]
    if chosen := SMALLEST.get(family):
        return f"{family}/{chosen}.py"
    small = [name for name in names if any(f"{mark}-d8" in name or f"{mark}_" in name for mark in SMALL)]
    return sorted(small or names, key=lambda name: ("cityscapes" in name, len(name), name))[0]


SMALL = ("r18", "r50", "hr18s", "-tiny", "s101")

WRAPPER = """\
_base_ = {base!r}
data = dict(type="PascalVOCDataset", data_root="data/VOCdevkit/VOC2012")
images = dict(img_path="JPEGImages", seg_map_path="SegmentationClass")
train_dataloader = dict(
    _delete_=True, batch_size={batch}, num_workers=0, sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **data, data_prefix=images, ann_file="ImageSets/Segmentation/trainaug.txt",
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="RandomResize", scale=({crop} * 2, {crop}), ratio_range=(1.0, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=({crop}, {crop}), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            *{edges},
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    _delete_=True, batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **data, data_prefix=images, ann_file="ImageSets/Segmentation/val.txt",
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=({crop}, {crop}), keep_ratio={keep_ratio}),
            dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=4, val_interval=2)
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(interval=2, by_epoch=False, save_best="mIoU", max_keep_ckpts=2)
)
log_level = "WARNING"
"""


def wrapper(name: str, batch: int = 2) -> tuple[str, dict[str, Any]]:
    """The text of a config that inherits a zoo config for a small training on the data of tiny.py, and the
    overrides of its model that go with it."""
    family = name.split("/")[0]
    values = configs.check(FOLDER / name, here=name.split("/")[0] not in OTHER_DATA).values
    crop = LARGER.get(family, CROP)
    text = WRAPPER.format(
        base=f"mmseg::{name}",
        crop=crop,
        batch=batch,
        edges=[step for step in values["train_pipeline"] if step["type"] == "GenerateEdge"],
        # A sliding window or a fixed embedding of positions fits no other shape.
        keep_ratio=False,
    )
    overrides = {f"model.{key}": value for key, value in shrunk(values["model"], crop)}
    if family == "san":  # which cannot begin with random weights
        del overrides["model.pretrained"]
        overrides |= {"model.text_encoder.dataset_name": None, "model.text_encoder.vocabulary": VOCABULARY}
        overrides["model.text_encoder.num_layers"] = 2
    if family in ("maskformer", "mask2former"):
        overrides["model.decode_head.num_queries"] = 20
    return text, overrides


def shrunk(node: Any, crop: int, within: str = "", classes: int = 0) -> Iterator[tuple[str, Any]]:
    """Overrides, by dotted key, for 21 classes and pictures of `crop` pixels, from random weights. `classes`:
    how many there are, by the nearest that says so."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    classes = node.get("num_classes", classes) if isinstance(node, dict) else classes
    for key, value in pairs:
        where = f"{within}.{key}" if within else str(key)
        if key == "num_classes":
            yield where, 21
            if node.get("out_channels") in (1, value):
                yield where.removesuffix("num_classes") + "out_channels", 21
        elif key == "class_weight" and isinstance(value, list):
            # A head of masks has a weight for "none of them", too.
            yield where, [1.0] * 21 + value[classes:] if len(value) == classes + 1 else None
        elif value is not None and (key in ("pretrained", "class_weight") or is_pretrained(key, value)):
            yield where, None
        elif key in ("img_size", "size", "crop_size") and isinstance(value, (list, int)):
            yield where, [crop, crop]
        elif key == "stride" and within == "test_cfg":
            yield where, [crop // 2, crop // 2]
        elif key == "size_divisor" and value is not None:
            yield where, None
            if "size" not in node:
                yield where.removesuffix("size_divisor") + "size", [crop, crop]
        else:
            yield from shrunk(value, crop, where, classes)


def is_pretrained(key: Any, value: Any) -> bool:
    return key == "init_cfg" and isinstance(value, dict) and value.get("type") == "Pretrained"


def make_run(path: Path, name: str, data: Path, batch: int = 2, **settings: Any) -> Run:
    """A run of `wrapper`'s config, taken into its snapshot as a submission does. `settings` as in tiny."""
    text, overrides = wrapper(name, batch)
    (path.parent / "home").mkdir(exist_ok=True)
    mine = path.parent / "home" / f"{path.name}.py"
    mine.write_text(text)
    named = configs.check(mine).values.get("custom_imports", {}).get("imports", [])
    if named and "custom_imports" in settings:
        both = [*settings["custom_imports"]["imports"], *([named] if isinstance(named, str) else named)]
        settings["custom_imports"] = settings["custom_imports"] | {"imports": both}
    if name.startswith("san/"):
        make_clip(mine, overrides, data / "pretrained")
    settings |= {key.replace(".", "__"): value for key, value in overrides.items()}
    return placed(path, mine, data, **settings)


def make_clip(config: Path, overrides: dict[str, Any], place: Path) -> None:
    """Writes the weights that SAN begins with, CLIP's, as random ones of the right shapes."""
    from jobs.mmseg import compat

    compat.prepare()
    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    (reference,) = configs.weights(configs.check(config))
    file = place / Path(reference).name
    if file.is_file():
        return
    cfg = Config.fromfile(str(config))
    cfg.merge_from_dict(overrides | {"model.pretrained": None})
    init_default_scope("mmseg")
    torch.manual_seed(0)
    weights = {
        name: torch.rand_like(value.float()) * 0.04 - 0.02
        for name, value in MODELS.build(cfg.model).state_dict().items()
        if name.startswith(("image_encoder.", "text_encoder.", "decode_head.rec_with_attnbias."))
    }
    place.mkdir(exist_ok=True)
    torch.save(weights, file)


def placed(path: Path, mine: Path, data: Path, **settings: Any) -> Run:
    """A run of a config of the user's, which is taken into its snapshot as a submission does."""
    run = tiny.make_run(path, data, **settings)
    request = run.request()
    request.config = snapshot.place(run.code, configs.check(mine, request.set))
    run.write_request(request)
    return run


STAGES = ("trains", "resumes", "evaluates", "infers")
SECONDS = 600.0
"""How long one start may take: the largest of the models on a machine that others use, too."""
INTERRUPTIBLE: dict[str, Any] = {
    "custom_imports": {"imports": ["tests.interrupting"], "allow_failed_imports": False},
    "custom_hooks": [{"type": "Interrupt"}],
}


def play(name: str, folder: Path, data: Path, ranks: int = 1) -> Iterator[str]:
    """Trains a zoo config small, left alone and preempted after its second step; evaluates and infers.

    Yields each of STAGES when it is done. Raises AssertionError, with the log, where one fails.
    """
    runs = [make_run(folder / which, name, data, **INTERRUPTIBLE) for which in ("whole", "preempted")]
    yield from stages(runs[0], runs[1], folder, data, ranks)


def stages(whole: Run, preempted: Run, folder: Path, data: Path, ranks: int = 1) -> Iterator[str]:
    """The same of two runs that are made alike."""
    codes = tiny.start(whole, ranks, timeout=SECONDS)
    assert codes == [0] * ranks, tiny.log_of(whole, 1)
    yield "trains"
    plan = {"at": "step", "step": 1, "signal": "SIGUSR2", "rank": None}
    codes = tiny.start(preempted, ranks, plan, SECONDS)
    assert codes == [RESUME] * ranks, tiny.log_of(preempted, 1)
    codes = tiny.start(preempted, ranks, timeout=SECONDS)
    assert codes == [0] * ranks, tiny.log_of(preempted, 2)
    different = tiny.differences(tiny.final_state(preempted), tiny.final_state(whole))
    assert different == [], different[:5]
    yield "resumes"
    tiny.run_job(preempted, "evaluate", "--pictures", "1", timeout=SECONDS)
    (metrics,) = preempted.eval.glob("*/metrics.json")
    assert json.loads(metrics.read_text())["images"] == len(
        (data / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").read_text().split()
    )
    yield "evaluates"
    picture = sorted((data / "VOCdevkit/VOC2012/JPEGImages").iterdir())[0]
    tiny.run_job(preempted, "infer", "--out", str(folder / "masks"), str(picture), timeout=SECONDS)
    assert (folder / "masks" / f"{picture.stem}.png").is_file()
    yield "infers"


# ------------------------------------------------------------------------------------------------ the table

RESULTS = tiny.ROOT / "tests" / "data" / "zoo.json"
"""What `make zoo` found last: for each family the config, and the stages that were reached."""
TABLE = tiny.ROOT / "docs" / "models.md"
INSTALLED = {
    "mmdet": "`--with mmdet`",
    "mmpretrain": "`--with mmpretrain`",
    "osgeo": "GDAL",
    "ldm": "ldm (Stable Diffusion)",
}


CHECKED = "upernet/upernet_r50_4xb4-20k_voc12aug-512x512"
"""The config whose published figure docs/models.md names."""


def figure() -> list[str]:
    """What the published weights of CHECKED should have, from the zoo's own metafile."""
    family, name = CHECKED.split("/")
    models = yaml.safe_load((FOLDER / family / "metafile.yaml").read_text(encoding="utf-8"))["Models"]
    model = next(one for one in models if one["Name"] == name)
    return [
        "## A figure to expect",
        "",
        f"The zoo gives the published weights of `{CHECKED}` mIoU "
        f"{model['Results']['Metrics']['mIoU']} on the 1,449 images of VOC's val list (its metafile.yaml). "
        "To see that on your cluster before anything is trained:",
        "",
        "    python launch/prepare.py --no-weights",
        f"    python launch/evaluate.py --config mmseg::{CHECKED}.py --gpus 1 \\",
        f"        --checkpoint {model['Weights']}",
        "",
        "The job fetches the file into `data/pretrained` and checks it by the digest in its name; without "
        "network on the compute nodes, `prepare.py --weights ADDRESS --archives FOLDER` places it there "
        "before. Where Baton was developed no host could be reached, so the figure itself was not checked; "
        "files as mmseg 0.x saved them are, by a test.",
    ]


def table(results: dict[str, dict[str, Any]]) -> str:
    """docs/models.md: each family, what its configs need, and how far a small training of one came."""
    further = [need for name in all_configs() if (need := NEEDS.get(name) or NEEDS.get(name.split("/")[0]))]
    rest = [package for package, _ in further if package not in supported.WITH]
    lines = [
        "# The model zoo",
        "",
        "A config of the zoo is given as `--config mmseg::FAMILY/NAME.py`, by its path, or as a `_base_`. "
        f"Of the {len(all_configs())}, {len(all_configs()) - len(further)} pass a submission with what "
        f"`env/setup.sh` installs, and {len(further) - len(rest)} more after `env/setup.sh --with "
        f"mmdet,mmpretrain`; the other {len(rest)} need what the table names, and a submission says so.",
        "",
        "`python launch/prepare.py --for-config CONFIG` fetches the pretrained weights, which `train.py` "
        "names where they are missing. What configs call `pretrain/NAME.pth` (ViT, DeiT, BEiT, MAE) comes "
        "from timm and its authors, and mmsegmentation's own converter makes the file; only SAN's configs "
        "for VOC and Pascal Context name one of these for CLIP's, and are told which those are. mmcv's "
        "compiled operations are not needed: where they are missing, exact ones in PyTorch stand in "
        "(jobs/mmseg/pure_ops.py).",
        "",
        "Of each family `make zoo` trains one config at small size with random weights (CPU, tests/zoo.py; "
        "`make zoo RANKS=2`: on two ranks; `make with` those that need mmdet or mmpretrain): left alone, and "
        "preempted and resumed to the same bits; the result is evaluated and segments a picture. All train "
        "on one small dataset, dsdl's model too. – means not tried.",
        "",
        "VPD is the one family that is left out: its backbone is Stable Diffusion, whose code (ldm; PyPI's "
        "package of that name is another) and weights are to be had from its authors only, and both of its "
        "configs estimate depth, which is not evaluated here. A submission says so.",
        "",
        f"| family | configs | needs, besides `env/setup.sh` | tried | {' | '.join(STAGES)} | on two ranks |",
        "|---|---|---|---|---|" + "---|" * len(STAGES),
    ]
    for family, names in families().items():
        needed = {NEEDS[key][0]: key for key in [family, *names] if key in NEEDS}
        words = [
            INSTALLED.get(package, package) + ("" if key == family else f" (`{key.partition('/')[2]}`)")
            for package, key in needed.items()
        ]
        found = results.get(family, {})
        reached = found.get("reached", [])
        marks = [
            "yes" if stage in reached else "no" if found and "failed" in found else "–" for stage in STAGES
        ]
        two = "–" if "on_two" not in found else "yes" if tuple(found["on_two"]) == STAGES else "no"
        tried = f"`{found['config'].partition('/')[2]}`" if found else "–"
        lines.append(
            f"| {family} | {len(names)} | {', '.join(words)} | {tried} | {' | '.join(marks)} | {two} |"
        )
    return "\n".join([*lines, "", *figure()]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description="Trains one config a family.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all")
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2))
    parser.add_argument("--at-once", type=int, help="families at once (default: one for --ranks cores)")
    parser.add_argument("--table", action="store_true", help="only write docs/models.md anew")
    arguments = parser.parse_args()
    began = time.monotonic()
    chosen = [] if arguments.table else arguments.families or list(families())
    at_once = arguments.at_once or max(1, len(os.sched_getaffinity(0)) // arguments.ranks)
    failed = []
    # Processes, each with its own server that ranks are forked from: two threads may not share one.
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(tried, family, arguments.ranks) for family in chosen]):
            family, found, seconds = done.result()
            stages = " ".join(f"{stage}:{'yes' if stage in found['reached'] else 'no'}" for stage in STAGES)
            print(f"{family:14} {stages} {seconds:4.0f} s  {found.get('failed', '')}", flush=True)
            if "refused" not in found:
                keep(family, found)
                failed += [family] if "failed" in found else []
    TABLE.write_text(table(kept()))
    print(f"{len(chosen)} families in {(time.monotonic() - began) / 60:.0f} min; failed: {len(failed)}")
    return bool(failed)


def kept() -> dict[str, dict[str, Any]]:
    """What was found until now."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def keep(family: str, found: dict[str, Any]) -> None:
    """Puts what was found of a family in the place of what was known; the other families' stays."""
    results = kept()
    before = results.get(family, {})
    if found["ranks"] == 1:
        results[family] = found | {key: value for key, value in before.items() if key == "on_two"}
    elif before:
        before["on_two"] = found["reached"]
    write_atomically(RESULTS, (json.dumps(dict(sorted(results.items())), indent=1) + "\n").encode())


def tried(family: str, ranks: int) -> tuple[str, dict[str, Any], float]:
    """The family, how far it comes, and in how many seconds."""
    began = time.monotonic()
    found = reached(member(family), ranks)
    return family, found, time.monotonic() - began


def reached(name: str, ranks: int) -> dict[str, Any]:
    """How far a config comes."""
    found: dict[str, Any] = {"config": name, "ranks": ranks, "reached": []}
    if (words := refusal(name)) and name.split("/")[0] not in OTHER_DATA:
        return found | {"refused": True, "failed": words}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = tiny.make_data(folder / "data", train=8, val=2)
        try:
            for stage in play(name, folder, data, ranks):
                found["reached"].append(stage)
        except Exception as error:  # whatever a model stumbles over: the next family is tried all the same
            lines = str(error).split("\nassert")[0].strip().splitlines() or [type(error).__name__]
            found["failed"] = lines[-1][:200]
    return found


if __name__ == "__main__":
    sys.exit(main())
