"""MMSegmentation's model zoo, as it lies in the installed package: its families, and small wrappers of them."""

from __future__ import annotations

from pathlib import Path

from jobs import compat
from launch import config_files

FOLDER = config_files.configs_of("mmseg") or Path()

NEEDS = {
    "convnext": ("mmpretrain", "mmpretrain is neither beside the config nor installed"),
    "dsdl": ("dsdl", "DSDLSegDataset needs dsdl, which is not installed"),
    "mask2former": ("mmdet", "mmdet"),
    "maskformer": ("mmdet", "MaskFormerHead needs mmdet, which is not installed"),
    "poolformer": ("mmpretrain", "mmpretrain is neither beside the config nor installed"),
    "psanet": ("mmcv._ext", "PSAHead needs mmcv's compiled operation PSAMask, which is not installed"),
    "vpd": ("ldm", "VPD needs ldm, the code of Stable Diffusion, which is not installed"),
    "swin/swin-tiny-patch4-window7_upernet_1xb8-20k_levir-256x256.py": ("osgeo", "needs GDAL"),
}
"""Families, and single configs, that need what `env/setup.sh` does not install: what, and what a submission
says without it."""


def refusal(name: str) -> str:
    """What a submission of a config says in this environment; "" where it passes."""
    package, words = NEEDS.get(name) or NEEDS.get(name.split("/")[0]) or ("", "")
    there = compat.has_compiled_mmcv() if package == "mmcv._ext" else compat.is_installed(package or "mmseg")
    return "" if there else words


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
