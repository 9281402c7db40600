"""The test cluster itself: that it is a Slurm like any other, and that it leaves nothing behind."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, up

from jobs.run.errors import UserError
from tests.strangers import needs_root, succeeds_as_stranger
from tests.support.cluster import config, daemons, packages, processes
from tests.support.cluster.config import Layout
from tests.support.cluster.down import stop
from tests.support.cluster.up import start
from tests.support.slurm import Slurm, wait_for

# Deaf to what ends an ordinary process, out of its process group, and without Slurm's variables.
STUBBORN = """#!/bin/bash
srun --overlap bash -c 'trap : TERM; echo $$ >>pids; env -i setsid bash -c "trap : TERM; echo \\$\\$ >>pids;
while :; do sleep 60; done" & while :; do sleep 60; done'
"""


def everything(state: Path) -> list[processes.Process]:
    layout = Layout(state)
    return processes.daemons(layout) + processes.jobs(layout)


def mounts(state: Path) -> list[str]:
    """Mounts below `state` that any process of the machine sees."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            found |= {line for line in file.read_text().splitlines() if str(state) in line}
        except OSError:
            continue  # gone meanwhile
    return sorted(found)


def test_nodes_are_hosts_of_their_own(cluster: Slurm, tmp_path: Path) -> None:
    if cluster.cluster.namespaces == "none":
        pytest.skip("this user may not make namespaces: all nodes have the machine's hostname")
    script = "hostname; getent hosts n3 | cut -d' ' -f1"
    out = cluster.run("srun", "-N4", "--ntasks-per-node=1", "sh", "-c", script, cwd=tmp_path).split()
    assert sorted(out) == ["127.0.0.1"] * 4 + ["n1", "n2", "n3", "n4"]


def test_fake_gpus_are_given_out(cluster: Slurm, tmp_path: Path) -> None:
    show = ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    both = cluster.run(
        "srun", "-pgpu", "-N2", "--ntasks-per-node=1", "--gpus-per-node=2", *show, cwd=tmp_path
    )
    assert both.split() == ["0,1", "0,1"]
    assert cluster.run("srun", "-pgpu", "--gres=gpu:1", *show, cwd=tmp_path).strip() in ("0", "1")
    assert cluster.run("srun", "-pcpu", *show, cwd=tmp_path).strip() == ""


def test_accounting(cluster: Slurm, tmp_path: Path) -> None:
    job = cluster.submit("#!/bin/sh\nexit 3\n", "-J", "three", cwd=tmp_path)
    assert cluster.wait_ended(job) == "FAILED"
    # It lags: for a moment the job is unknown, or known without its name.
    sacct = ("sacct", "-nPXj", job, "-o", "JobName,ExitCode")
    wait_for(lambda: cluster.run(*sacct).strip() == "three|3:0", "sacct knows the job")


def test_preemption_requeues_and_the_job_goes_on(cluster: Slurm, tmp_path: Path) -> None:
    script = "#!/bin/sh\n[ -z $SLURM_RESTART_COUNT ] || exit 0\nsleep 600\n"
    job = cluster.submit(script, "-pgpu", "--requeue", cwd=tmp_path)
    cluster.wait_state(job, "RUNNING")
    cluster.preempt(job)
    assert cluster.wait_ended(job) == "COMPLETED"
    assert cluster.job(job)["Restarts"] == "1"


def test_a_killed_node_counts_as_dead_and_can_come_back(cluster: Slurm, tmp_path: Path) -> None:
    job = cluster.submit("#!/bin/sh\nsleep 600\n", "--nodelist=n4", "--no-requeue", cwd=tmp_path)
    cluster.wait_state(job, "RUNNING")
    wait_for(lambda: cluster.processes_of(job, "n4"), "the job has processes")
    cluster.kill_node("n4")
    assert cluster.processes_of(job) == []
    assert cluster.wait_ended(job) == "NODE_FAIL"
    cluster.revive_node("n4")
    assert "n4" in cluster.run("srun", "--nodelist=n4", "hostname", cwd=tmp_path) or (
        cluster.cluster.namespaces == "none"
    )


def test_stopping_leaves_nothing_though_jobs_resist(state: Path, tmp_path: Path) -> None:
    slurm = up(state, "--no-accounting", "--nodes", "2")
    slurm.submit(STUBBORN, "-N2", "--ntasks-per-node=1", cwd=tmp_path)
    pids = tmp_path / "pids"
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 4, "both tasks have their children")
    stubborn = [p for pid in pids.read_text().split() if (p := processes.identify(int(pid)))]
    assert len(stubborn) == 4
    stop(state, wipe=True)
    assert not any(processes.alive(p) for p in stubborn)
    assert everything(state) == []
    assert mounts(state) == []
    assert not state.exists()


def test_stopping_after_the_daemons_were_killed(state: Path, tmp_path: Path) -> None:
    slurm = up(state, "--nodes", "2")
    slurm.submit(STUBBORN, "-N2", "--ntasks-per-node=1", cwd=tmp_path)
    pids = tmp_path / "pids"
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 4, "both tasks have their children")
    stubborn = [p for pid in pids.read_text().split() if (p := processes.identify(int(pid)))]
    processes.kill(processes.daemons(slurm.layout))
    stop(state)
    assert not any(processes.alive(p) for p in stubborn)
    assert everything(state) == []
    assert mounts(state) == []
    # What is left can be started again: the accounting goes on.
    again = up(state, "--nodes", "2")
    assert again.cluster.name == slurm.cluster.name
    assert "n1" in again.run("sinfo", "-hN", "-o", "%N")


@pytest.mark.parametrize("moment", ["pid/munged.start", "mysql/unfinished/mysql"])
def test_stopping_after_the_start_was_killed_half_way(state: Path, moment: str) -> None:
    command = [sys.executable, "-m", "tests.support.cluster.up", str(state)]
    starting = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    wait_for((state / moment).exists, f"{moment} is there")
    os.kill(starting.pid, signal.SIGKILL)
    starting.wait()
    stop(state)
    assert everything(state) == []
    left = sorted(state.rglob("*"))
    # A database that was half made is not taken for one, and nobody goes on making it.
    assert "n1" in up(state, "--nodes", "1").run("sinfo", "-hN", "-o", "%N")
    assert Layout(state).database / "data" / "mysql" not in left


@pytest.mark.usefixtures("installed")
def test_clusters_start_side_by_side(tmp_path: Path) -> None:
    states = [tmp_path / name for name in ("a", "b", "c")]
    # What a database has open in /tmp while another starts.
    table = Path(tempfile.gettempdir()) / f"#sql-{os.getpid():x}-baton"
    table.touch()
    if os.geteuid() == 0:
        shutil.chown(table, daemons.DATABASE_USER)
    try:
        with ThreadPoolExecutor() as pool:
            slurms = list(pool.map(lambda s: up(s, "--nodes", "2"), states))
        assert table.exists()
        names = [f"only-{i}" for i in range(3)]
        for slurm, name in zip(slurms, names, strict=True):
            slurm.submit("#!/bin/sh\nsleep 600\n", "-J", name, cwd=tmp_path)
        for slurm, name in zip(slurms, names, strict=True):
            assert slurm.run("squeue", "-h", "-o", "%j").split() == [name]
        stop(states[0])
        assert everything(states[0]) == []
        for slurm in slurms[1:]:
            assert "is UP" in slurm.run("scontrol", "ping")
            assert slurm.run("squeue", "-h", "-o", "%j").split() != []
    finally:
        table.unlink(missing_ok=True)
        for state in states:
            if Layout(state).lock.exists():
                stop(state, wipe=True)


def test_without_accounting(variant: Callable[..., Slurm]) -> None:
    slurm = variant("--no-accounting", "--no-requeue")
    done = subprocess.run(["sacct"], env=slurm.environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "disabled" in done.stderr
    assert daemons.running(slurm.layout, "mariadbd") is None


def test_where_requeueing_is_forbidden(variant: Callable[..., Slurm], tmp_path: Path) -> None:
    slurm = variant("--no-accounting", "--no-requeue")
    job = slurm.submit("#!/bin/sh\nsleep 600\n", "-pgpu", "--requeue", cwd=tmp_path)
    slurm.wait_state(job, "RUNNING")
    slurm.preempt(job)
    assert slurm.wait_ended(job) in ("PREEMPTED", "CANCELLED")


@pytest.mark.parametrize(
    ("user", "apt", "target", "code"),
    [
        ("1000", 0, "slurm-if-possible", 0),
        ("1000", 0, "slurm", 2),
        ("0", 100, "slurm-if-possible", 2),
    ],
    ids=["the tests go on without root", "what needs Slurm does not", "a failed installation is loud"],
)
def test_where_slurm_is_not_installed(user: str, apt: int, target: str, code: int, tmp_path: Path) -> None:
    sbatch = shutil.which("sbatch")
    if os.getuid() != 0 or sbatch is None or subprocess.run(["unshare", "--mount", "true"]).returncode:
        pytest.skip("only root can hide a program")
    for name, body in (("id", f"echo {user}"), ("apt-get", f"exit {apt}")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    hidden = 'mount --bind /dev/null "$1" && exec make --no-print-directory "$2"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hidden, "sh", sbatch, target],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert ("as root: sh tests/support/cluster/install.sh" in done.stderr) == (user == "1000")


RIGHTS = ("--clear-groups", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


def as_user(name: str) -> tuple[pwd.struct_passwd, list[str]]:
    """Who that is, and how to run a command as that user, save that this checkout and its Python may be read
    whosever they are."""
    if os.getuid() != 0:
        pytest.skip("all the other tests are without root already")
    user = pwd.getpwnam(name)
    identity = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"]
    return user, ["setpriv", *identity, *RIGHTS, "env", "HOME=/nonexistent"]


@pytest.mark.versions
def test_without_root(guard: Callable[[Path], None]) -> None:
    user, rights = as_user("daemon")
    with tempfile.TemporaryDirectory(prefix="baton-user-") as folder:
        os.chown(folder, user.pw_uid, user.pw_gid)
        state = Path(folder) / "c"
        guard(state)
        python = [*rights, sys.executable, "-B", "-m"]
        options = ["--no-accounting", "--nodes", "1"]
        subprocess.run(
            [*python, "tests.support.cluster.up", state, *options], cwd=ROOT, check=True, timeout=300
        )
        try:
            slurm = Slurm(config.load(state))
            assert slurm.run(*rights, "srun", "id", "-u", cwd="/") == f"{user.pw_uid}\n"
        finally:
            down: list[str | Path] = [*python, "tests.support.cluster.down", state, "--wipe"]
            subprocess.run(down, cwd=ROOT, check=True, timeout=300)
        assert everything(state) == []
        assert mounts(state) == []


@pytest.mark.versions
def test_a_cluster_that_cannot_start_says_why_in_one_line(state: Path, tmp_path: Path) -> None:
    """A daemon that ends at once, as slurmctld does for a user that it does not take."""
    program = tmp_path / "bin" / "slurmctld"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -V ] && exec {packages.program("slurmctld")} -V\n'
        "echo 'slurmctld: debug: reading' >&2\n"
        "echo 'slurmctld: fatal: Invalid user for SlurmUser nobody, ignored' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.cluster.up", state, "--no-accounting", "--nodes", "1"],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: slurmctld ended: fatal: Invalid user for SlurmUser nobody")
    assert done.stderr.count("\n") == 1
    assert "start the cluster as another user" in done.stderr
    assert everything(state) == []


@needs_root
def test_another_user_does_not_get_at_the_database(cluster: Slurm) -> None:
    process = daemons.running(cluster.layout, "mariadbd")
    assert process is not None
    # Whoever breaks in has not broken into root's account. (The folder's owner is root where a process, as
    # newer MariaDBs do, forbids that it be dumped: proc_pid_status(5).)
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert 0 not in map(int, status.partition("Uid:")[2].split()[:4])
    rows = [line.split() for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}
    assert listening  # others' of this machine
    assert not listening & {os.readlink(fd) for fd in Path(f"/proc/{process.pid}/fd").iterdir()}
    path = str(cluster.layout.database / "socket")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)  # as root it can be reached

    def reach() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)

    assert not succeeds_as_stranger(reach)
    for secret in ("slurmdbd.conf", "database-password"):
        assert not succeeds_as_stranger((cluster.layout.etc / secret).read_bytes)
    # Even Slurm's account in it writes no files.
    query = "SELECT 'x' INTO OUTFILE '/tmp/baton-database-wrote-this'"
    login = ["--user=slurm", f"--password={config.password(cluster.layout)}", f"--socket={path}"]
    done = subprocess.run(["mariadb", *login, "-e", query], capture_output=True, text=True)
    assert "Access denied" in done.stderr
    denied = subprocess.run(
        ["mariadb", "--user=slurm", "--password=slurm", f"--socket={path}", "-e", "SELECT 1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "Access denied" in denied.stderr


@needs_root
@pytest.mark.parametrize("kind", ["link", "folder", "open"])
def test_a_state_directory_that_others_write_to_is_refused(tmp_path: Path, kind: str) -> None:
    state = tmp_path / "c"
    if kind == "link":
        (tmp_path / "e").mkdir()
        state.symlink_to(tmp_path / "e")
    else:
        state.mkdir()
        state.chmod(0o777 if kind == "open" else 0o755)
        os.chown(state, 65534 if kind == "folder" else -1, -1)
    with pytest.raises(UserError, match="is not a folder that only this user writes to"):
        start(state)
    assert list(state.iterdir()) == []


def test_mistakes_are_told_in_one_line(cluster: Slurm, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a cluster runs in"):
        start(cluster.layout.state)
    with pytest.raises(UserError, match="no test cluster"):
        stop(tmp_path / "nothing")
    with pytest.raises(UserError, match="has no way to quote"):
        config.check(tmp_path / "two words", config.Options())
