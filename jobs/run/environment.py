"""What an environment must hold for Baton, and whether one does: by what is installed, without importing it.

Every command begins with `enter`. `python -m jobs.run.environment` judges the interpreter that runs it, as
JSON: {"python": "3.11.7", "problems": [...]}. For env/setup.sh --python: --problems prints only these, a
line each, --wanted the lines of the lock that have to be installed.

This file, and every file that a user's command line names, must be readable for the python3 of any login node
(3.6 and later): no `from __future__ import annotations`, no `:=`.
"""

import argparse
import importlib.util
import json
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VENV = os.path.join(ROOT, ".venv")

PYTHON = (3, 10)

MISSING = " is missing"

COMMANDS_IMPORT = ("msgspec", "submitit", "yaml", "rich", "hostlist", "xxhash")

NEEDS = """
torch>=2.1
numpy>=1.26
mmengine>=0.10 | mmengine-lite>=0.10 | onedl-mmengine>=0.10
mmcv-lite>=2.0,<2.2 | mmcv>=2.0,<2.2 | onedl-mmcv>=2.2
mmsegmentation>=1.2 | onedl-mmsegmentation>=1.2
opencv-python-headless>=4.5 | opencv-python>=4.5 | opencv-contrib-python>=4.5
    | opencv-contrib-python-headless>=4.5 | opencv>=4.5
setuptools<81
scipy>=1.7
matplotlib>=3.5
pillow>=9.0
tensorboard>=2.10
submitit>=1.5
msgspec>=0.18
pyyaml>=6.0
rich>=12.0
xxhash>=3.0
python-hostlist>=1.20
requests>=2.28
isal>=1.1
zlib-ng>=0.4
ftfy>=6.0
regex>=2022.0
prettytable>=2.0
"""
"""One need per line, met by any of its distributions; wide ranges leave existing environments as they are.
(mmengine imports pkg_resources, which setuptools 81 dropped; mmsegmentation 1.2 refuses mmcv 2.2.)"""

NOT_FOR_JOBS = {
    *("pytest", "pytest-xdist", "execnet", "iniconfig", "pluggy", "exceptiongroup", "tomli"),
    *("hypothesis", "sortedcontainers", "ruff", "mypy", "mypy-extensions", "librt", "pathspec"),
    *("ast-serialize", "types-pyyaml", "types-requests"),
}
"""The lock's packages for developers only."""


def enter() -> None:
    """Returns if this interpreter has what the commands import. Otherwise re-executes the command in the
    checkout's own environment; if there is none, exits with one line and code 2."""
    _open_closed()
    lacking = [name for name in COMMANDS_IMPORT if importlib.util.find_spec(name) is None]
    if sys.version_info >= PYTHON and not lacking:
        return _take_any_name()
    mine = os.path.join(VENV, "bin", "python")
    why = f"Python {_dotted(sys.version_info[:3])} ({sys.executable}) "
    if sys.version_info < PYTHON:
        why += f"is older than {_dotted(PYTHON)}"
    else:
        why += f"lacks {', '.join(lacking)}"
    if os.path.exists(mine) and os.path.realpath(VENV) != os.path.realpath(sys.prefix):
        try:
            os.execv(mine, [mine, *sys.argv])
        except OSError as error:
            why += f", and {mine} does not start: {error.strerror}"
    sys.stderr.write(f"error: {why}: env/setup.sh makes the environment, . .venv/bin/activate enters it\n")
    sys.exit(2)


def _take_any_name() -> None:
    """Re-executes Python in UTF-8 mode if its file system encoding is ASCII, as in the C locale with PEP 538
    and 540 disabled: no JSON, YAML or HTML could hold other names."""
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # for the jobs, too
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _open_closed() -> None:
    """Opens standard streams that the caller has closed on /dev/null. Otherwise the next file opened (one of
    a run) would get the descriptor, and with it the output of child processes."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            if os.open(os.devnull, os.O_RDWR) == number:  # open returns the lowest free one
                os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", errors="replace", closefd=False))


def installed() -> "dict[str, str]":
    """Normalized name -> version of every distribution that this interpreter finds.

    Taken from the names of their folders, because reading the metadata takes ten times as long
    (https://packaging.python.org/en/latest/specifications/recording-installed-packages/).
    """
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            entries = os.listdir(folder or ".")
        except OSError:  # a zip file or a missing folder, in which Python finds no distribution either
            continue
        for entry in entries:
            # NAME-VERSION.dist-info; older: NAME-VERSION-py3.10.egg-info
            match = re.match(r"(.+?)-(\d[^-]*)(-py\d[^-]*)?\.(dist|egg)-info$", entry)
            if match:
                found.setdefault(_name(match.group(1)), match.group(2))
    return found


def problems(found: "dict[str, str] | None" = None) -> "list[str]":
    """The reasons why this interpreter could not train and resume a run, in a few words each; [] if it can.

    `found`: as from `installed`.
    """
    if sys.version_info < PYTHON:
        return [f"Python {_dotted(sys.version_info[:2])} is older than {_dotted(PYTHON)}"]
    found = installed() if found is None else found
    return [problem for need in _needs() for problem in [_problem(need, found)] if problem]


def wanted(found: "dict[str, str] | None" = None) -> "list[str]":
    """The lines of the lock that an environment still needs: what it lacks or has in an incompatible version.
    torch and its NumPy are left to the environment's owner."""
    from pip._vendor.packaging.markers import Marker  # where this is used, pip is installed

    found = installed() if found is None else found
    old = _numbers(found.get("torch", "3")) < (2, 3) or _numbers(found.get("numpy", "2")) < (2,)
    with open(os.path.join(ROOT, "env", "lock-a-numpy1.txt" if old else "lock-a.txt")) as file:
        lock = file.read()
    fulfilled = NOT_FOR_JOBS.copy()
    unfit: set[str] = set()
    for need in _needs():
        if _problem(need, found) is None:
            fulfilled.update(name for name, _, _ in need)
        else:
            unfit.update(name for name, _, _ in need)
    lines = []
    for line in lock.splitlines():
        requirement, _, marker = line.partition(";")
        name = _name(requirement.partition("==")[0])
        here = not line.startswith("#") and (not marker or Marker(marker).evaluate())
        if here and name not in fulfilled and (name in unfit or name not in found):
            lines.append(line)
    return lines


def _problem(
    need: "list[tuple[str, tuple[int, ...], tuple[int, ...]]]", found: "dict[str, str]"
) -> "str | None":
    there = [one for one in need if one[0] in found]
    if not there:
        return need[0][0] + MISSING
    name, lowest, below = there[0]
    version = found[name]
    if _numbers(version) < lowest:
        return f"{name} {version} is older than {_dotted(lowest)}"
    if below and _numbers(version) >= below:
        return f"{name} {version} is too new: {name}<{_dotted(below)}"
    torch = found.get("torch", "")
    if name == "numpy" and torch and (2, 1) <= _numbers(torch) < (2, 3) and _numbers(version) >= (2,):
        return f"numpy {version} is too new for torch {torch}: numpy<2"
    return None


def _needs() -> "list[list[tuple[str, tuple[int, ...], tuple[int, ...]]]]":
    """For each need its alternatives: (name, lowest version, first version that is too new, or ())."""
    needs = []
    for line in NEEDS.replace("\n    |", " |").split("\n")[1:-1]:
        need = []
        for alternative in line.split("|"):
            lowest = re.search(r">=([\d.]+)", alternative)
            below = re.search(r"<([\d.]+)", alternative)
            need.append(
                (
                    re.split(r"[<>]", alternative)[0].strip(),
                    _numbers(lowest.group(1)) if lowest else (),
                    _numbers(below.group(1)) if below else (),
                )
            )
        needs.append(need)
    return needs


def _name(text: str) -> str:
    """A normalized name: https://packaging.python.org/en/latest/specifications/name-normalization/"""
    return re.sub(r"[-_.]+", "-", text).lower()


def _numbers(version: str) -> "tuple[int, ...]":
    """(2, 4, 1) for "2.4.1+cu121", (2, 5, 0) for "2.5.0a0+872d972e41"."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group(0).split(".")) if match else ()


def _dotted(numbers: "tuple[int, ...]") -> str:
    return ".".join(map(str, numbers))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m jobs.run.environment", description=__doc__)
    parser.add_argument("--problems", action="store_true")
    parser.add_argument("--wanted", action="store_true")
    arguments = parser.parse_args()
    if arguments.wanted or arguments.problems:
        lines = wanted() if arguments.wanted else problems()
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    else:
        print(json.dumps({"python": _dotted(sys.version_info[:3]), "problems": problems()}))


if __name__ == "__main__":
    main()
