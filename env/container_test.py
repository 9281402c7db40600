"""Plays a training in a container: preempted, requeued and evaluated on a test cluster, with Apptainer.

    python3 env/container_test.py [--roots DIR]

The image is a folder, for `apptainer build` needs rights that few machines give: a bare root of the release,
with the packages and by the commands that env/container.def names. The cluster is in a root of Debian sid,
which has Apptainer. As root, with mmdebstrap or debootstrap. Exit code: the tests'; 3 where no root can be
made on this machine or as this user.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import repository

from env.shared_environment import environment
from jobs.run.errors import UserError, run_command

CHECKOUT: Path = repository.ROOT
DEFINITION = CHECKOUT / "env/container.def"
PACKAGES = "apptainer,slurm-wlm,slurmdbd,mariadb-server,munge,procps,hostname,squashfs-tools"


def header(name: str, text: str) -> str:
    """A header field of a definition file. Raises UserError if it is missing."""
    if match := re.search(rf"(?m)^{name}: (.+)$", text):
        return match[1].strip()
    raise UserError(f"{DEFINITION} has no line {name}: …")


def section(name: str, text: str) -> str:
    """The text of the section %name. Raises UserError if there is no such section."""
    if match := re.search(rf"(?ms)^%{name}\n(.*?)(?=^%\w|\Z)", text):
        return match[1]
    raise UserError(f"{DEFINITION} has no section %{name}")


def recipe(text: str) -> str:
    """A shell script that carries out a definition's %files, %post and %test in a bare root."""
    lines = ["set -e"]
    for entry in section("files", text).splitlines():
        if entry.strip():
            source, target = entry.split()
            lines.append(f"mkdir -p {shlex.quote(str(Path(target).parent))}")
            lines.append(f"cp -rT {shlex.quote(str(CHECKOUT / source))} {shlex.quote(target)}")
    return "\n".join([*lines, section("post", text), section("test", text)])


def bare(release: str, root: Path, include: str, shares: Sequence[Path], *command: str) -> int:
    argv = [sys.executable, str(CHECKOUT / "env/bare_root.py"), release, "--root", str(root)]
    argv += ["--include", include, "--share", *map(str, shares), *command]
    return subprocess.run(argv, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--roots", type=Path, metavar="DIR", help="keep the roots here and use them again")
    arguments = parser.parse_args()
    text = DEFINITION.read_text()
    ready, shares = environment()
    with tempfile.TemporaryDirectory(prefix="baton-image-") as folder:
        roots = (arguments.roots or Path(folder)).absolute()
        image = roots / "image"
        include = ",".join(header("Include", text).split())
        release = header("OSVersion", text)
        build = ["--no-clone", "--", "sh", "-c", recipe(text)]
        if code := bare(release, image, include, [CHECKOUT], *build):
            return code
        test = f"{ready} && exec .venv/bin/python -m pytest tests/slurm/test_container.py -v"
        command = ["--set-env", f"BATON_TEST_IMAGE={image}", "--", "sh", "-c", test]
        return bare("sid", roots / "sid", PACKAGES, [image, *shares], *command)


if __name__ == "__main__":
    run_command(main)
