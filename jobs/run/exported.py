"""The folder that an export makes: just a model's weights, its config and digests, enough to use it.

weights.pth    {"state_dict": …}, nothing of the training
config.py      the resolved MMSegmentation config, without references to pretrained weights
NAME.py, NAME/ modules of the user's that the config names
model.onnx     with --onnx
export.json    what all this is, and each file's SHA-256; written last: if it exists, the export is complete
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from jobs.run.digests import digest
from jobs.run.errors import UserError, one_line

RECORD, WEIGHTS, CONFIG, ONNX = "export.json", "weights.pth", "config.py", "model.onnx"
FORMAT = 1
ONNX_PACKAGES = ("onnx", "onnxruntime")


def lacking() -> str:
    """Why ONNX cannot be written in this environment; "" if it can."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return f"--onnx needs {' and '.join(missing)}, not installed here: env/setup.sh --with onnx installs them"


def read(folder: Path) -> dict[str, Any] | None:
    """The record of an exported folder whose files are unchanged; None for any other folder.

    Raises UserError, naming the file, if one is damaged or changed, and for an export of a newer version.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RECORD} cannot be read: {one_line(error)}") from None
    digests = record.get("sha256") if isinstance(record, dict) else None
    if not isinstance(digests, dict) or not {WEIGHTS, CONFIG} <= digests.keys():
        raise UserError(f"{folder / RECORD} is damaged: it does not list the files of an export")
    if record.get("format") != FORMAT:
        raise UserError(f"{folder} was exported by a newer version of Baton: export it again with this one")
    for name, listed in digests.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise UserError(f"{path} is missing: copy the exported folder again, whole")
        if digest(path, "sha256") != listed:
            raise UserError(f"{path} is damaged, or was changed since the export: copy the folder again")
    return dict(record)


def summary(folder: Path, record: dict[str, Any]) -> str:
    """What an export has made, in one line, and what onnxruntime computes with it, in a second."""
    lines = [f"exported {record['checkpoint']}: {folder}"]
    if found := record.get("onnx"):
        free = ", ".join(found["free"])
        lines.append(
            f"{ONNX}: onnxruntime against PyTorch on {found['images']} images: largest difference "
            f"{found['max_difference']:.2g} (largest score {found['largest_score']:.2g}), another class in "
            f"{found['changed']:.4%} of the pixels; {f'any {free}' if free else 'of this size alone'}"
        )
    return "\n".join(lines)
