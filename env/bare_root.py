"""Runs a command in a bare Debian of any release, in a clean clone of this checkout.

    python3 env/bare_root.py trixie -- make demo
    python3 env/bare_root.py bookworm --user -- make demo
    python3 env/bare_root.py testing --root /tmp/testing --include slurm-wlm,munge --share /work/env -- sh

As root, with mmdebstrap or debootstrap. The command sees the network and this machine's package settings (its
Debian mirror, certificates, proxies, pip's configuration and what that names on disk), and nothing else of
it: its root, its processes, its host name and its /tmp are its own. It starts in the clone of the last commit
(what is not committed is not in it), and has no more than README asks for: Python, make, git. It is no jail:
root in it could do to this machine what root can.

Exit code: the command's; 2 for a mistake of yours; 3 where this machine or user cannot make such a root.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import repository

from jobs.run.errors import UserError, run_command

CHECKOUT: Path = repository.ROOT
RELEASES = ("bookworm", "trixie", "testing", "sid")
ROLLING = ("testing", "sid")
BASE = ("ca-certificates", "git", "make", "python3")  # what README asks for, but for the venv module
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MARKER = ".baton-root"
USER = "user"
CLONE = "baton"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The environment variables that are package settings: proxies, certificates, pip's and uv's.
SETTINGS = re.compile(
    r"(https?|ftp|all|no)_proxy|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|GIT_SSL_CAINFO"
    r"|PIP_(?!CACHE_DIR|TARGET|USER|PREFIX|CONFIG_FILE|REQUIRE_VIRTUALENV)\w+"
    r"|UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NATIVE_TLS|SYSTEM_CERTS|HTTP_TIMEOUT)",
    re.IGNORECASE,
)

# The first process in a root. Its mounts are in a namespace of their own and end with it. The command is its
# child, so that it reaps orphaned daemons, as init does.
INIT = r"""
set -eu
umask 022
root=$1 name=$2 shares=$3; shift 3
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs -o mode=755,size=1m dev dev
for device in null zero full random urandom tty fuse; do
    [ -e "/dev/$device" ] || continue
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
while IFS= read -r path; do
    [ -n "$path" ] || continue
    if [ -d "$path" ]; then mkdir -p ".$path"; else mkdir -p ".${path%/*}"; : >>".$path"; fi
    mount --rbind "$path" ".$path"
done <"$shares"
echo "$name" >/proc/sys/kernel/hostname
mkdir -p .outer
pivot_root . .outer
cd /
umount -l /.outer
rmdir /.outer
set +e
"$@"
exit $?
"""


class NotHere(Exception):
    """This machine or user cannot make a root; the message, one line, says what is missing."""


class Stopped(BaseException):
    """Raised when a signal asks this program to end; the argument is the signal's number."""


def tool(*names: str) -> str:
    """The path of the first of these programs that is installed. Raises NotHere if none is."""
    for name in names:
        if path := shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), PATH])):
            return path
    raise NotHere(f"{' or '.join(names)} is missing; on Debian: apt-get install {names[0]}")


def sources(release: str, mirror: str | None, etc: Path = Path("/etc")) -> str:
    """The text of sources.list for `release`, from this machine's own Debian mirrors or from `mirror`.

    Raises UserError if this machine's apt has no Debian mirror and `mirror` is None.
    """
    if mirror:
        return f"deb {mirror} {release} main\n"
    os_release = (etc / "os-release").read_text() if (etc / "os-release").exists() else ""
    match = re.search(r"^VERSION_CODENAME=\"?(\w+)", os_release, re.MULTILINE)
    lines = []
    for uri, suite in apt_entries(etc / "apt"):
        own, _, pocket = suite.partition("-")
        # Rolling releases have no separate updates.
        pockets = ("",) if release in ROLLING else ("", "updates", "security")
        if match and own in (match[1], "stable") and pocket in pockets:
            lines.append(f"deb {uri} {release}{'-' if pocket else ''}{pocket} main\n")
    if "ID=debian" not in os_release.splitlines() or not lines:
        raise UserError("this machine's apt names no Debian mirror; name one with --mirror ADDRESS")
    return "".join(dict.fromkeys(lines))


def apt_entries(apt: Path) -> Iterator[tuple[str, str]]:
    """Yields (address, suite) of each binary archive in apt's sources; formats: sources.list(5)."""
    folder = apt / "sources.list.d"
    for file in [apt / "sources.list", *sorted(folder.glob("*.list"))]:
        for line in file.read_text().splitlines() if file.exists() else ():
            if match := re.match(r"\s*deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)", line):
                yield match[1], match[2]
    for file in sorted(folder.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", file.read_text())):
            fields = {
                key.lower(): value.split()
                for key, value in re.findall(r"(?m)^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza)
            }
            if "deb" in fields.get("types", ()) and fields.get("enabled", ["yes"]) != ["no"]:
                for uri in fields.get("uris", ()):
                    for suite in fields.get("suites", ()):
                        yield uri, suite


def apt_settings() -> str:
    """An apt.conf: this machine's HTTP and retry settings; expired Release files are accepted (snapshots)."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout
    kept = re.findall(r"(?m)^Acquire::(?:https?|Retries)\b.* \".+\";$", dump)
    return "\n".join([*kept, 'Acquire::Check-Valid-Until "false";']) + "\n"


def pip_files() -> dict[Path, str]:
    """This machine's pip configuration files -> their paths in a root ("~": the home of the root's user)."""
    home = Path.home()
    places = {
        Path("/etc/pip.conf"): "/etc/pip.conf",
        Path("/etc/xdg/pip/pip.conf"): "/etc/xdg/pip/pip.conf",
        home / ".pip/pip.conf": "~/.pip/pip.conf",
        home / ".config/pip/pip.conf": "~/.config/pip/pip.conf",
    }
    if named := os.environ.get("PIP_CONFIG_FILE"):
        places = {Path(named): "~/.config/pip/pip.conf"}
    return {file: place for file, place in places.items() if file.is_file()}


def on_disk(texts: Sequence[str]) -> set[Path]:
    """Existing files and folders on this machine that settings refer to, by path or file:// URL."""
    found = re.findall(r"(?:^|[\s=,])(?:file://)?(/[^\s,]+)", "\n".join(texts))
    # The pages of an index in a folder "simple" link to files next to that folder.
    paths = (path.parent if path.name == "simple" else path for path in map(Path, found))
    return {path for path in paths if path.exists() and path != Path("/")}


def make(release: str, include: Sequence[str], lines: str, target: Path) -> None:
    """Makes a root of `release` in the empty folder `target`. Raises UserError if the bootstrap fails."""
    options = ["--variant=minbase", f"--include={','.join(include)}"]
    if KEYRING.exists():
        options.append(f"--keyring={KEYRING}")
    program = tool("mmdebstrap", "debootstrap")
    if program.endswith("mmdebstrap"):
        settings = [f"--aptopt={line.rstrip(';')}" for line in apt_settings().splitlines()]
        argv = [program, "--quiet", "--mode=root", *options, *settings, release, str(target), "-"]
    else:
        argv = [program, *options, release, str(target), lines.split()[1]]
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as output:
        given.write(lines)
        given.seek(0)
        code = contained(["--mount-proc", "--", *argv], os.environ, given, output)
        output.seek(0)
        said = output.read().splitlines()
    if code:
        said = [line for line in said if line.startswith("E:")] or said
        raise UserError(f"{Path(program).name} could not make a root of {release}: {' '.join(said[-3:])}")
    (target / "etc/apt/sources.list").write_text(lines)


def fill(release: str, include: Sequence[str], mirror: str | None, cache: Path | None, target: Path) -> None:
    """Unpacks the root from `cache` into `target`; if it is not there, makes it and adds it to the cache."""
    lines = sources(release, mirror)
    if cache is None:
        return make(release, include, lines, target)
    what = hashlib.sha256(json.dumps([release, sorted(include), lines]).encode()).hexdigest()[:12]
    archive = cache / f"{release}-{what}.tar"
    if archive.exists():
        subprocess.run(["tar", "--numeric-owner", "-C", str(target), "-xpf", str(archive)], check=True)
        return None
    make(release, include, lines, target)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
        try:
            subprocess.run(["tar", "--numeric-owner", "-C", str(target), "-c", "."], check=True, stdout=file)
            os.replace(file.name, archive)
        except BaseException:
            os.unlink(file.name)
            raise
    return None


def bring_settings(root: Path, home: Path, variables: Mapping[str, str], name: str) -> set[Path]:
    """Writes the package settings into a root; returns the folders they refer to, to be shared with it."""
    (root / "etc/apt/apt.conf.d/99outer").write_text(apt_settings())
    for pattern in ("etc/apt/auth.conf", "etc/apt/auth.conf.d/*", "usr/local/share/ca-certificates/*.crt"):
        for file in Path("/").glob(pattern):
            put(file, root / file.relative_to("/"))
    configuration = pip_files()
    for file, place in configuration.items():
        put(file, root / place.replace("~", str(home)).lstrip("/"))
    named = on_disk([*variables.values(), *(file.read_text() for file in configuration)])
    for file in (path for path in named if path.is_file() and not inside(root, path).exists()):
        put(file, inside(root, file))
    for file in (Path("/etc/resolv.conf"), Path("/etc/hosts")):
        put(file, root / file.relative_to("/"))
    with (root / "etc/hosts").open("a") as hosts:
        hosts.write(f"127.0.0.1 {name}\n")
    return {path for path in named if path.is_dir() and not holds_something(inside(root, path))}


def holds_something(folder: Path) -> bool:
    """False for an empty mount point left by an earlier share; a root's own /etc/ssl/certs is not empty."""
    return folder.is_dir() and any(folder.iterdir())


def inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def put(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    shutil.copy(file, place)


def clone(root: Path, home: Path) -> None:
    """Clones this checkout's last commit into the home of a root's user; replaces an earlier clone."""
    place = inside(root, home / CLONE)
    if place.exists():
        shutil.rmtree(place)
    git = [tool("git"), "-c", "safe.directory=*"]
    subprocess.run([*git, "clone", "-q", "--no-hardlinks", str(CHECKOUT), str(place)], check=True)


@contextmanager
def the_root(arguments: argparse.Namespace, include: Sequence[str]) -> Iterator[Path]:
    """Yields the folder of the root: a temporary one, or --root, which is made if it does not exist.

    Raises UserError if --root is not a root of that release, or is in use.
    """
    if arguments.root is None:
        # Not the temporary folder itself: its mode is 0700, and all of a root's users must be able to enter.
        with tempfile.TemporaryDirectory(prefix="baton-root-") as folder:
            root = Path(folder) / "root"
            root.mkdir(mode=0o755)
            fill(arguments.release, include, arguments.mirror, arguments.cache, root)
            yield root
        return
    root = arguments.root.absolute()
    if not (root / MARKER).exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError(f"{root} is there and is not a root that this program made; name another folder")
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as folder:
            made = Path(folder) / "root"
            made.mkdir(mode=0o755)
            fill(arguments.release, include, arguments.mirror, arguments.cache, made)
            (made / MARKER).write_text(json.dumps({"release": arguments.release, "include": list(include)}))
            os.replace(made, root)
    with (root / MARKER).open("r+") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another command runs in {root}") from None
        known = json.load(marker)
        if known["release"] != arguments.release:
            raise UserError(f"{root} is {known['release']}, not {arguments.release}; name another folder")
        add_packages(root, [package for package in include if package not in known["include"]], known, marker)
        yield root


def add_packages(root: Path, lacking: Sequence[str], known: dict[str, list[str]], marker: IO[str]) -> None:
    if not lacking:
        return
    put(Path("/etc/resolv.conf"), root / "etc/resolv.conf")
    script = (
        "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update && "
        'apt-get -qq install -y --no-install-recommends "$@" >/dev/null'
    )
    environment = {"PATH": PATH} | settings(os.environ)
    if code := enter(root, "bare", [], environment, ["sh", "-c", script, "sh", *lacking]):
        raise UserError(f"{' '.join(lacking)} could not be installed in {root} (apt-get: exit code {code})")
    marker.seek(0)
    json.dump(known | {"include": [*known["include"], *lacking]}, marker)
    marker.truncate()


def settings(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if SETTINGS.fullmatch(name)}


def enter(
    root: Path, name: str, shares: Sequence[Path], environment: Mapping[str, str], command: Sequence[str]
) -> int:
    """Runs a command in a root, in its own namespaces, with host name `name`; returns its exit code."""
    with tempfile.NamedTemporaryFile("w") as list_of_shares:
        list_of_shares.write("".join(f"{path}\n" for path in shares))
        list_of_shares.flush()
        init = ["sh", "-c", INIT, "sh", str(root), name, list_of_shares.name]
        return contained(["--ipc", "--uts", "--", *init, *command], environment)


def contained(
    argv: Sequence[str],
    environment: Mapping[str, str],
    given: IO[str] | None = None,
    output: IO[str] | None = None,
) -> int:
    """Runs unshare(1) with a mount and a PID namespace and the arguments `argv`; returns its exit code.

    However this program ends, all that it started ends too; nothing of it is running when this returns.
    """
    namespaces = ["--mount", "--pid", "--fork", "--kill-child=KILL"]
    command = [tool("setpriv"), "--pdeathsig", "KILL", tool("unshare"), *namespaces, *argv]
    errors = None if output is None else subprocess.STDOUT
    process = subprocess.Popen(command, env=dict(environment), stdin=given, stdout=output, stderr=errors)
    try:
        code = process.wait()
    finally:
        end(process)
    return 128 - code if code < 0 else code


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills the namespace's first process, whereupon the kernel kills all others, and waits for the end."""
    if process.poll() is not None:
        return
    for first in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(first), signal.SIGKILL)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:  # it had no child yet
        process.kill()
        process.wait()


def as_user(command: Sequence[str]) -> list[str]:
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--inh-caps=-all", *command]


def play(arguments: argparse.Namespace) -> int:
    name = f"bare-{arguments.release}"
    venv = ("python3-venv",) if arguments.user else ()  # as root, the set-up installs it itself
    include = [*dict.fromkeys([*BASE, *venv, *arguments.include])]
    shares = [path.absolute() for path in arguments.share]
    for path in shares:
        if not path.exists():
            raise UserError(f"--share {path}: there is no such file or folder")
    home = Path("/home") / USER if arguments.user else Path("/root")
    variables = settings(os.environ)
    with the_root(arguments, include) as root:
        if arguments.user and not inside(root, home).exists():
            subprocess.run(["chroot", str(root), "useradd", "-m", "-s", "/bin/bash", USER], check=True)
        folders = bring_settings(root, home, variables, name)
        if arguments.pip_conf_only:
            variables = {}
        for leftover in (root / "tmp").iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        place = home / CLONE
        if not arguments.no_clone:
            clone(root, home)
        if arguments.user:
            subprocess.run(["chroot", str(root), "chown", "-R", f"{USER}:", str(home)], check=True)
        user = USER if arguments.user else "root"
        environment = {"PATH": PATH, "HOME": str(home), "USER": user, "LOGNAME": user, "SHELL": "/bin/bash"}
        environment |= {"TERM": os.environ.get("TERM", "dumb")} | variables | dict(arguments.set_env)
        start = place if inside(root, place).exists() else home
        # update-ca-certificates needs root, so it runs before the user's command.
        enter(root, name, [], environment, ["sh", "-c", "exec update-ca-certificates >/dev/null 2>&1"])
        command = ["env", "-C", str(start), *arguments.command]
        if arguments.user:
            command = as_user(command)
        return enter(root, name, sorted({*folders, *shares}), environment, command)


def stop(number: int, _frame: FrameType | None) -> None:
    for further in SIGNALS:  # a second signal would interrupt the cleanup
        signal.signal(further, signal.SIG_IGN)
    raise Stopped(number)


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def packages(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", name):
            raise argparse.ArgumentTypeError(f"{name!r} is not the name of a Debian package")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s RELEASE "
        "[options] -- COMMAND …",
    )  # fmt: skip
    parser.add_argument("release", choices=RELEASES, metavar="RELEASE", help=" ".join(RELEASES))
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what runs in the clone")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="keep the root here and use it again; without: none is left"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep an archive of the bare root here, for the next time"
    )
    parser.add_argument("--include", type=packages, default=[], metavar="PKG,…", help="more Debian packages")
    parser.add_argument(
        "--share", type=Path, nargs="+", action="extend", default=[], metavar="PATH",
        help="of this machine, seen in the root at the same place",
    )  # fmt: skip
    parser.add_argument("--user", action="store_true", help="as an ordinary user, who owns the clone")
    parser.add_argument("--no-clone", action="store_true", help="make no clone; one in --root stays as it is")
    parser.add_argument(
        "--pip-conf-only", action="store_true",
        help="the scene of a site whose certificates and index stand in pip's configuration alone: of this "
        "machine's variables (SSL_CERT_FILE, PIP_INDEX_URL, …) the command sees none",
    )  # fmt: skip
    parser.add_argument(
        "--set-env", type=pair, action="append", default=[], metavar="NAME=VALUE", help="a variable for it"
    )
    parser.add_argument("--mirror", metavar="ADDRESS", help="of Debian, instead of this machine's")
    arguments = parser.parse_args()
    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        if os.getuid() != 0:
            raise NotHere(f"a bare root is made as root, not as uid {os.getuid()}")
        return play(arguments)
    except NotHere as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except Stopped as stopped:
        return 128 + int(stopped.args[0])
    except subprocess.CalledProcessError as error:
        raise UserError(f"{shlex.join(map(str, error.cmd))} failed (exit code {error.returncode})") from None


if __name__ == "__main__":
    run_command(main)
