"""The cluster's daemons: the command line of each, when it is ready, and stopping it.

All run in the foreground of sessions of their own, so that the pid is known and recorded at once; none is a
service of the system.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from jobs.run.errors import UserError
from tests.support.cluster import config, processes
from tests.support.cluster.config import Cluster, Layout, user
from tests.support.cluster.packages import PATH, program
from tests.support.cluster.processes import Process


class StartError(UserError):
    """A daemon did not come up; the message, one line, ends with what it wrote last."""


def start_all(cluster: Cluster) -> None:
    """Starts every daemon, in the order in which they need one another; returns when all nodes are idle."""
    start(cluster, "munged")
    if cluster.options.accounting:
        start(cluster, "mariadbd")
        start(cluster, "slurmdbd")
    start(cluster, "slurmctld")
    for node in cluster.nodes:
        start(cluster, f"slurmd-{node}", wait=False)
    _until(cluster, "slurmd-n1", lambda: idle_nodes(cluster) == len(cluster.nodes), "all nodes are idle")


def start(cluster: Cluster, name: str, wait: bool = True) -> None:
    """Starts the daemon `name` (munged, mariadbd, slurmdbd, slurmctld, slurmd-NODE); no-op if it runs.

    Raises StartError if it does not answer in time, or ends.
    """
    if running(cluster.layout, name):
        return
    if name == "mariadbd":
        _make_database(cluster)
    if name == "munged":
        _make_key(cluster.layout)
    argv = _argv(cluster, name)
    _spawn(cluster.layout, name, argv)
    if wait:
        _until(cluster, name, lambda: _ready(cluster, name), f"{name} answers")
    if name == "slurmdbd":
        _make_account(cluster)


def stop(layout: Layout, name: str) -> None:
    """Ends one daemon; jobs run on, as they would where a daemon is restarted."""
    file = layout.pids / f"{name}.start"
    process = processes.recall(file)
    if process:
        processes.end([process])
    file.unlink(missing_ok=True)


def running(layout: Layout, name: str) -> Process | None:
    return processes.recall(layout.pids / f"{name}.start")


def stop_all(layout: Layout) -> None:
    """Ends the jobs and daemons of a cluster, in whatever state a crash may have left it."""
    # Tasks may ignore TERM and outlive slurmd, which in turn waits for them: kill them first, and again for
    # those that slurmd started meanwhile.
    processes.kill(processes.jobs(layout))
    # slurmctld first: it must not see the nodes die and requeue their jobs.
    stop(layout, "slurmctld")
    nodes = [p for f in layout.pids.glob("slurmd-*.start") if (p := processes.recall(f))]
    processes.end(nodes, patience=2.0)
    processes.kill(processes.jobs(layout))
    for name in ("slurmdbd", "mariadbd", "munged"):
        stop(layout, name)
    # What no pid file tells of: a start that was killed between fork and write, or while it made the
    # database. That is made by a shell script, which may have started its next program meanwhile: look again.
    while unrecorded := processes.daemons(layout):
        processes.kill(unrecorded)
    processes.kill(processes.jobs(layout))
    for file in layout.pids.glob("*.start"):
        file.unlink(missing_ok=True)


def tool(layout: Layout, *argv: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Runs a Slurm command against the cluster; its exit code is the caller's to judge."""
    environment = os.environ | {"SLURM_CONF": str(layout.slurm_conf)}
    try:
        return subprocess.run(
            [program(argv[0]), *argv[1:]], env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(error.cmd, 124, "", f"no answer in {timeout} s")


def idle_nodes(cluster: Cluster) -> int:
    states = tool(cluster.layout, "sinfo", "-h", "-p", "cpu", "-N", "-o", "%T").stdout.split()
    return states.count("idle")


def namespaces() -> str:
    """How a node can get a hostname of its own here: "root", "user" (a user namespace), or "none"."""
    mode = "root" if os.getuid() == 0 else "user"
    trial = subprocess.run([*_unshare(mode), "true"], capture_output=True)
    return mode if trial.returncode == 0 else "none"


def _unshare(mode: str) -> list[str]:
    argv = [program("unshare"), "--uts", "--mount"]
    # slurmd must see itself as the user it is, not as root, yet keep the right to set a hostname.
    return argv + (["--user", "--map-current-user", "--keep-caps"] if mode == "user" else [])


def _argv(cluster: Cluster, name: str) -> list[str]:
    layout = cluster.layout
    if name == "munged":
        files = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        options = [f"--{option}={layout.munge / file}" for option, file in files.items()]
        # --force: a state directory in a group-writable place is no danger to a test cluster.
        return [program("munged"), "--foreground", "--force", "--num-threads=4", *options]
    if name == "mariadbd":
        home = _database_place(cluster)
        return [
            *_as_database_user(cluster),
            program("mariadbd"),
            "--no-defaults",
            f"--user={_database_user(cluster)}",
            f"--datadir={home / 'data'}",
            f"--socket={home / 'socket'}",
            f"--pid-file={home / 'pid'}",
            f"--tmpdir={home / 'tmp'}",
            "--skip-networking",
            f"--secure-file-priv={home / 'files'}",
            f"--init-file={home / 'init.sql'}",
            "--innodb-buffer-pool-size=64M",
            "--innodb-lock-wait-timeout=900",
            "--innodb-flush-log-at-trx-commit=0",
            "--skip-log-bin",
        ]
    if name == "slurmdbd":
        return [program("slurmdbd"), "-D"]
    if name == "slurmctld":
        return [program("slurmctld"), "-D", "-i"]
    node = name.removeprefix("slurmd-")
    slurmd = [program("slurmd"), "-D", "-N", node]
    if cluster.namespaces == "none":
        return slurmd
    # The bind mount of the node's folder on itself changes nothing but marks the namespace as this node's.
    script = 'hostname "$1" && mount --bind "$2" /etc/hosts && mount --bind "$3" "$3" && shift 3 && exec "$@"'
    place = str(layout.node(node))
    return [*_unshare(cluster.namespaces), "sh", "-c", script, "sh", node, str(layout.hosts), place, *slurmd]


def _spawn(layout: Layout, name: str, argv: list[str]) -> None:
    if name.startswith("slurmd-"):
        (layout.node(name.removeprefix("slurmd-")) / "spool").mkdir(parents=True, exist_ok=True)
    # A daemon must not inherit what belongs to a job or a shell: slurmd gives its environment to jobs.
    kept = {k: v for k, v in os.environ.items() if k in ("HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "TZ")}
    environment = kept | {
        "PATH": PATH,
        "SLURM_CONF": str(layout.slurm_conf),
        processes.DAEMON_VARIABLE: str(layout.state),
    }
    if name == "slurmdbd":  # no setting names the database's socket; its client library looks here
        environment["MYSQL_UNIX_PORT"] = str(layout.database / "socket")
    log = os.open(layout.logs / f"{name}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)
    processes.remember(layout.pids / f"{name}.start", pid)


def _ready(cluster: Cluster, name: str) -> bool:
    layout = cluster.layout
    if name == "munged":
        return layout.munge_socket.exists()
    if name == "mariadbd":
        return _listens(layout.database / "socket")
    if name == "slurmdbd":
        return tool(layout, "sacctmgr", "-nP", "list", "cluster", timeout=5).returncode == 0
    if name == "slurmctld":
        return "is UP" in tool(layout, "scontrol", "ping", timeout=5).stdout
    node = name.removeprefix("slurmd-")
    state = tool(layout, "sinfo", "-h", "-n", node, "-p", "cpu", "-o", "%T").stdout.strip()
    return state in ("idle", "mixed", "allocated")


def _until(cluster: Cluster, name: str, condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if not running(cluster.layout, name):
            raise StartError(f"{name} ended: {_last_words(cluster.layout, name)}")
        if time.monotonic() > deadline:
            raise StartError(f"not true after 60 s: {what}; {_last_words(cluster.layout, name)}")
        time.sleep(0.05)


def _last_words(layout: Layout, name: str) -> str:
    """Why a daemon ended, in one line: the last errors that it wrote, or else what it wrote last."""
    lines: list[str] = []
    for file in (layout.logs / f"{name}.out", layout.logs / f"{name}.log"):
        if file.exists():
            # Some write the same to both, once with the time and once with their name before it.
            text = re.sub(
                rf"(?m)^(\[[^]]*\] |{name.partition('-')[0]}: )", "", file.read_text(errors="replace")
            )
            lines += text.splitlines()[-20:]
    errors = [line for line in lines if re.search(r"error|fatal", line, re.IGNORECASE)]
    words = " | ".join(list(dict.fromkeys(errors or lines))[-3:]) or "it wrote nothing"
    if "Invalid user for SlurmUser" in words:
        words += "; start the cluster as another user, one that is not nobody"
    return f"{words} (its logs: {layout.logs}/{name}.*)"


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


DATABASE_USER = "mysql"
"""The account that MariaDB's package makes."""
DATABASE_HOME = Path("/mnt")
"""Where that user sees the database, in a mount namespace; any folder that is everywhere. (The package's own,
/var/lib/mysql, is not made any more by Debian testing's.)"""


def _database_user(cluster: Cluster) -> str:
    """Whom the database runs as: not root, where that can be helped."""
    if cluster.namespaces != "root" or not DATABASE_HOME.is_dir():
        return user()
    try:
        return pwd.getpwnam(DATABASE_USER).pw_name
    except KeyError:
        return user()


def _database_place(cluster: Cluster) -> Path:
    """The database's folder as the database sees it."""
    own = _database_user(cluster) == user()
    return cluster.layout.database if own else DATABASE_HOME


def _as_database_user(cluster: Cluster) -> list[str]:
    """Shows a program the database's folder where another user may reach it, whoever's the folders above the
    state directory are."""
    if _database_place(cluster) == cluster.layout.database:
        return []
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    home = str(DATABASE_HOME)
    return [program("unshare"), "--mount", "sh", "-c", script, "sh", str(cluster.layout.database), home]


def _make_key(layout: Layout) -> None:
    key = layout.munge / "key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
    layout.munge_socket.unlink(missing_ok=True)  # a crash leaves it, and its being there means ready
    Path(f"{layout.munge_socket}.lock").unlink(missing_ok=True)


def _make_database(cluster: Cluster) -> None:
    place = cluster.layout.database
    # Others are not to reach its socket; the tables are in the hands of a user who has nothing else.
    place.chmod(0o700)
    shutil.chown(place, _database_user(cluster))
    # Its own: a MariaDB that starts removes every "#sql…" in its folder, another's in use, too.
    temporary = place / "tmp"
    temporary.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(temporary, _database_user(cluster))
    if not (place / "data").is_dir():
        # Under another name until it is whole: a start that is killed here must not leave half a database.
        unfinished = place / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        install = [
            *_as_database_user(cluster),
            program("mariadb-install-db"),
            "--no-defaults",
            f"--user={_database_user(cluster)}",
            f"--datadir={_database_place(cluster) / 'unfinished'}",
            f"--tmpdir={_database_place(cluster) / 'tmp'}",
            "--skip-test-db",
            "--auth-root-authentication-method=socket",
            f"--auth-root-socket-user={user()}",
        ]
        environment = os.environ | {"PATH": PATH, processes.DAEMON_VARIABLE: str(cluster.layout.state)}
        done = subprocess.run(install, capture_output=True, text=True, env=environment)
        if done.returncode:
            words = " ".join((done.stdout + done.stderr).split())
            raise StartError(f"mariadb-install-db failed: {words[-500:]}")
        unfinished.rename(place / "data")
    (place / "files").mkdir(mode=0o700, exist_ok=True)
    init = place / "init.sql"
    init.unlink(missing_ok=True)
    with os.fdopen(os.open(init, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(
            "CREATE DATABASE IF NOT EXISTS slurm_acct_db;\n"
            f"CREATE OR REPLACE USER 'slurm'@'localhost' IDENTIFIED BY '{config.password(cluster.layout)}';\n"
            "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost';\n"
        )
    shutil.chown(init, _database_user(cluster))


def _make_account(cluster: Cluster) -> None:
    known = tool(cluster.layout, "sacctmgr", "-nP", "list", "cluster", "format=cluster").stdout.split()
    if cluster.name not in known:
        made = tool(cluster.layout, "sacctmgr", "-i", "add", "cluster", cluster.name)
        if made.returncode:
            raise StartError(f"sacctmgr add cluster: {' '.join((made.stdout + made.stderr).split())}")
