"""Plays the tests on Slurm on every version that a Debian has, each in a bare root of its own.

    python3 env/slurm_matrix.py                       all of them: bookworm 22.05, trixie 24.11, testing 26.05
    python3 env/slurm_matrix.py trixie testing --differing    what differs between versions, some minutes each
    python3 env/slurm_matrix.py trixie -- -k preempted -x     further arguments of pytest

What is tested is the last commit, in this checkout's environment, the same for all (unless its Python is
Debian's own, which each release has in another version: then each root gets its own environment). As root,
with mmdebstrap or debootstrap (env/bare_root.py). Exit code: 0 all passed; 1 some did not; 3 no root can be
made on this machine or as this user, which is an error where BATON_REQUIRE_SLURM is set and the user is root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import repository

from env.shared_environment import environment
from jobs.run.errors import UserError, run_command

CHECKOUT: Path = repository.ROOT
RELEASES = ("bookworm", "trixie", "testing")
PACKAGES = (
    "slurm-wlm,slurmdbd,mariadb-server,munge,procps,hostname,python3-venv,"
    "squashfs-tools,squashfuse,fuse3"  # the part of env/test-tools.sh that tests/slurm needs
)
# Only the tests whose results depend on Slurm's version. Several workers, and all versions at once: the tests
# mostly wait.
DIFFERING = ("-m", "versions", "-n", "4")
NOT_HERE = 3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("releases", nargs="*", default=RELEASES, metavar="RELEASE", help=" ".join(RELEASES))
    parser.add_argument("--differing", action="store_true", help="only what differs between versions")
    parser.add_argument("--roots", type=Path, metavar="DIR", help="keep the roots here and use them again")
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, further = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    if unknown := [release for release in arguments.releases if release not in RELEASES]:
        raise UserError(f"{unknown[0]}: not one of {', '.join(RELEASES)}")
    options = [*(DIFFERING if arguments.differing else ()), *further]
    with tempfile.TemporaryDirectory(prefix="baton-slurms-") as folder:
        roots = arguments.roots or Path(folder)

        def tested(release: str) -> tuple[int, str]:
            told = play(release, roots / release, options, capture=arguments.differing)
            if arguments.roots is None and (roots / release).exists():
                shutil.rmtree(roots / release)
            return told

        with ThreadPoolExecutor(len(arguments.releases) if arguments.differing else 1) as pool:
            told = list(pool.map(tested, arguments.releases))
    if NOT_HERE in (code for code, _ in told):
        required = os.environ.get("BATON_REQUIRE_SLURM") and os.getuid() == 0
        print("other versions of Slurm are not tested: see above", file=sys.stderr)
        return 1 if required else NOT_HERE
    print("\n".join(line for _, line in told))
    return int(any(code for code, _ in told))


def play(release: str, root: Path, options: list[str], capture: bool) -> tuple[int, str]:
    """Runs the tests on a release's Slurm: (exit code, summary line). `capture`: prints output at the end,
    because other releases print at the same time."""
    asked = bare(release, root, ["slurmctld", "-V"], capture=True)
    if asked.returncode:
        return asked.returncode, f"{release}: no root"
    version = asked.stdout.split()[-1]
    title = f"\n=== Slurm {version} ({release})\n"
    if not capture:
        print(title, end="", flush=True)
    begin = time.monotonic()
    ready, _ = environment()
    command = f'{ready} && exec .venv/bin/python -m pytest tests/slurm -q "$@" 2>&1'
    done = bare(release, root, ["sh", "-c", command, "sh", *options], capture)
    if capture:
        print(title + done.stdout, end="", flush=True)
    minutes, seconds = divmod(round(time.monotonic() - begin), 60)
    result = "passed" if done.returncode == 0 else f"FAILED (exit code {done.returncode})"
    return done.returncode, f"Slurm {version:8} ({release:8}): {result} in {minutes} min {seconds:02} s"


def bare(release: str, root: Path, command: list[str], capture: bool) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(CHECKOUT / "env/bare_root.py"), release, "--root", str(root)]
    argv += ["--include", PACKAGES, "--set-env", "BATON_REQUIRE_SLURM=1"]
    if shares := environment()[1]:
        argv += ["--share", *map(str, shares)]
    return subprocess.run(
        [*argv, "--", *command], stdout=subprocess.PIPE if capture else None, text=True, check=False
    )


if __name__ == "__main__":
    run_command(main)
