"""What a test cluster is: its options, where its files lie, and the configuration files that say so to Slurm.

Each line that is not self-evident was found by trial on Slurm 22.05 (Debian 12); where later versions name
a setting differently, the version decides.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import socket
import stat
from pathlib import Path

import msgspec

from jobs.run import private
from jobs.run.errors import MALFORMED, UserError

GPUS_PER_NODE = 2


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How this cluster differs from any other."""

    nodes: int = 4
    cpus: int = 8
    """CPUs a node claims; more than the machine has is fine, nothing is bound to them."""
    user_signal: bool = False
    """Whether a preempted job gets its `--signal` too, or only TERM."""
    grace: int = 30
    """Seconds between the signal and the kill of a job preempted in partition `low`."""
    kill_wait: int = 3
    """Seconds between TERM and KILL."""
    requeue: bool = True
    """False: no job can be requeued, whatever it asks for."""
    accounting: bool = True
    """False: no slurmdbd and no database; sacct says that it is disabled."""
    preempt_mode: str = "REQUEUE"
    """What happens to a preempted job of partitions cpu, gpu, low: REQUEUE or CANCEL."""
    max_requeues: int = 5
    """How often Slurm requeues a job by itself (MaxBatchRequeue) before it holds it."""
    node_timeout: int = 15
    """Seconds without an answer after which a node counts as dead."""


class Layout:
    """Where each file of the cluster in `state` lies. Making one touches nothing on disk."""

    def __init__(self, state: Path | str) -> None:
        self.state = Path(state).resolve()
        self.marker = self.state / "cluster.json"
        self.lock = self.state / "lock"
        self.etc = self.state / "etc"
        self.slurm_conf = self.etc / "slurm.conf"
        self.hosts = self.etc / "hosts"
        self.env = self.state / "env.sh"
        self.logs = self.state / "log"
        self.pids = self.state / "pid"
        self.munge = self.state / "munge"
        self.munge_socket = self.munge / "socket"
        self.database = self.state / "mysql"
        self.nodes = self.state / "node"
        self.devices = self.state / "dev"
        self.ctld_state = self.state / "state"

    def node(self, name: str) -> Path:
        """A node's own folder: its spool, and the mount point by which its processes are told."""
        return self.nodes / name

    def directories(self) -> list[Path]:
        return [
            self.etc,
            self.logs,
            self.pids,
            self.munge,
            self.database,
            self.nodes,
            self.devices,
            self.ctld_state,
        ]


class Ports(msgspec.Struct, frozen=True):
    ctld: int
    dbd: int
    first_node: int


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the configuration files are rendered from; kept in `cluster.json`."""

    state: str
    name: str
    options: Options
    ports: Ports
    version: tuple[int, int]
    namespaces: str
    """How nodes get their own hostnames: root, user (unprivileged user namespaces), or none."""

    @property
    def layout(self) -> Layout:
        return Layout(self.state)

    @property
    def nodes(self) -> list[str]:
        return [f"n{i + 1}" for i in range(self.options.nodes)]


def load(state: Path | str) -> Cluster:
    """The cluster that was last started in `state`. Raises UserError if there never was one."""
    layout = Layout(state)
    try:
        return msgspec.json.decode(layout.marker.read_bytes(), type=Cluster)
    except FileNotFoundError:
        raise UserError(
            f"{layout.state} holds no test cluster; start one: python -m tests.support.cluster.up STATE"
        ) from None
    except (msgspec.MsgspecError, *MALFORMED) as error:
        raise UserError(f"{layout.marker} is damaged ({error}); delete {layout.state}") from None


def user() -> str:
    """Whose processes these are, whatever USER says. Raises UserError for one without a name, which no
    daemon here takes."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise UserError(f"this machine has no user name for uid {os.getuid()}, which Slurm needs") from None


def check(state: Path, options: Options) -> None:
    """Raises UserError for a state directory or options that Slurm could not live with."""
    text = str(state)
    if any(c.isspace() or c in "\"'#=,[]%\\;()$&" for c in text):
        raise UserError(
            f"{text!r} cannot hold a cluster: slurm.conf has no way to quote it; take a plain path"
        )
    if len(text) > 80:
        raise UserError(f"{text} is too long for the sockets in it ({len(text)} characters, at most 80)")
    if not 1 <= options.nodes <= 64:
        raise UserError(f"--nodes {options.nodes}: between 1 and 64")
    if options.preempt_mode not in ("REQUEUE", "CANCEL"):
        raise UserError(f"--preempt-mode {options.preempt_mode}: REQUEUE or CANCEL")
    if options.kill_wait < 1 or options.grace < 0:
        raise UserError("--kill-wait is at least 1, --grace at least 0")


def check_own(state: Path) -> None:
    """Makes the state directory if it is not there. Raises UserError if others could put things into it: in
    /tmp the name may have been another user's first."""
    with contextlib.suppress(FileExistsError):
        state.mkdir(mode=0o755, parents=True)
    status = state.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UserError(
            f"{state} is not a folder that only this user writes to, or is a link: take another, or remove it"
        )


def check_names() -> None:
    """Raises UserError where this machine cannot look up its own name, which MariaDB and srun do, or has
    none for the user."""
    for name in ("localhost", socket.gethostname()):
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            raise UserError(
                f"this machine's name {name!r} does not resolve, which Slurm and MariaDB need; "
                f"as root: echo 127.0.0.1 {name} >> /etc/hosts"
            ) from None
    user()


def write(cluster: Cluster) -> None:
    """Writes all configuration files of a cluster whose directories exist."""
    layout = cluster.layout
    layout.slurm_conf.write_text(slurm_conf(cluster))
    dbd = layout.etc / "slurmdbd.conf"
    dbd.touch(mode=0o600)  # holds a password; slurmdbd refuses anything wider
    dbd.chmod(0o600)
    dbd.write_text(slurmdbd_conf(cluster))
    (layout.etc / "gres.conf").write_text(gres_conf(cluster))
    (layout.etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n" if cluster.version < (22, 5) else "")
    (layout.etc / "job_submit.lua").write_text(JOB_SUBMIT)
    layout.hosts.write_text(hosts(cluster))
    layout.env.write_text(env_sh(cluster))
    for i in range(GPUS_PER_NODE):
        # A GPU file must stat() as a device; its number becomes the index in CUDA_VISIBLE_DEVICES.
        device = layout.devices / f"nvidia{i}"
        if not device.is_symlink():
            device.symlink_to("/dev/null")


def slurm_conf(cluster: Cluster) -> str:
    layout, options, ports = cluster.layout, cluster.options, cluster.ports
    owner, host = user(), socket.gethostname().split(".")[0]
    last = ports.first_node + options.nodes - 1
    names = f"n[1-{options.nodes}]"
    lines = [
        f"ClusterName={cluster.name}",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmUser={owner}",
        f"SlurmdUser={owner}",
        f"SlurmctldPort={ports.ctld}",
        "AuthType=auth/munge",
        "CredType=cred/munge" if cluster.version < (23, 11) else "CredType=auth/munge",
        # cred_expire is also how long a requeued job waits; below 5 it silently becomes 120.
        f"AuthInfo=socket={layout.munge_socket},cred_expire=5",
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
        f"StateSaveLocation={layout.ctld_state}",
        f"SlurmdSpoolDir={layout.nodes}/%n/spool",
        f"SlurmctldPidFile={layout.pids}/slurmctld.pid",
        f"SlurmdPidFile={layout.pids}/slurmd-%n.pid",
        f"SlurmctldLogFile={layout.logs}/slurmctld.log",
        f"SlurmdLogFile={layout.logs}/slurmd-%n.log",
        "SlurmctldDebug=verbose",
        "SlurmdDebug=verbose",
        # No cgroups: they need root, and may not be there at all.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=5",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "SlurmdParameters=config_overrides",  # more CPUs and memory than the machine has
        "GresTypes=gpu",
        "MpiDefault=none",
        "MailProg=/bin/true",
        "ReturnToService=2",
        f"SlurmdTimeout={options.node_timeout}",
        "SlurmctldTimeout=30",
        f"KillWait={options.kill_wait}",
        "InactiveLimit=0",
        "MinJobAge=600",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=2,sched_interval=5,sched_min_interval=0,batch_sched_delay=0",
        "PriorityType=priority/basic",
        "PreemptType=preempt/partition_prio",
        f"PreemptMode={options.preempt_mode}",
        "JobCompType=jobcomp/none",
        "DefMemPerCPU=512",
        f"JobRequeue={int(options.requeue)}",
    ]
    if not options.requeue:
        # JobRequeue=0 is only the default of a job that does not ask; the script refuses those that do.
        lines.append("JobSubmitPlugins=lua")
    if cluster.version >= (24, 5):
        # Before, it is 5 whatever one would like, and a preemption's requeue does not count.
        lines.append(f"MaxBatchRequeue={options.max_requeues}")
    if options.user_signal:
        # Renamed in 23.02; an unknown key is fatal to every Slurm command.
        new = cluster.version >= (23, 2)
        lines.append(
            "PreemptParameters=send_user_signal" if new else "SlurmctldParameters=preempt_send_user_signal"
        )
    if options.accounting:
        lines += [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={ports.dbd}",
            f"AccountingStoragePass={layout.munge_socket}",  # AuthInfo alone does not reach slurmdbd
            "AccountingStorageTRES=gres/gpu",
        ]
    # All nodes on one address: with one loopback address each, srun inside a job hangs.
    hostname = names if cluster.namespaces != "none" else host
    lines += [
        f"NodeName={names} NodeHostname={hostname} NodeAddr=127.0.0.1 Port=[{ports.first_node}-{last}]"
        f" CPUs={options.cpus} Sockets=1 CoresPerSocket={options.cpus} ThreadsPerCore=1 RealMemory=64000"
        f" Gres=gpu:fake:{GPUS_PER_NODE} State=UNKNOWN",
        "PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP OverSubscribe=NO",
        f"PartitionName=cpu Default=YES PriorityTier=1 PreemptMode={options.preempt_mode} GraceTime=0",
        f"PartitionName=gpu PriorityTier=1 PreemptMode={options.preempt_mode} GraceTime=0",
        f"PartitionName=low PriorityTier=1 PreemptMode={options.preempt_mode} GraceTime={options.grace}",
        f"PartitionName=lowcan PriorityTier=1 PreemptMode=CANCEL GraceTime={options.grace}",
        "PartitionName=high PriorityTier=10 PreemptMode=OFF",
    ]
    return "\n".join(lines) + "\n"


# Runs in slurmctld for every job: a cluster on which requeueing is forbidden.
JOB_SUBMIT = """\
function slurm_job_submit(job_desc, part_list, submit_uid)
  job_desc.requeue = 0
  return slurm.SUCCESS
end

function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
  return slurm.SUCCESS
end
"""


def slurmdbd_conf(cluster: Cluster) -> str:
    layout, ports = cluster.layout, cluster.ports
    return "\n".join(
        [
            "AuthType=auth/munge",
            f"AuthInfo=socket={layout.munge_socket}",
            "DbdHost=localhost",
            "DbdAddr=127.0.0.1",
            f"DbdPort={ports.dbd}",
            f"SlurmUser={user()}",
            f"LogFile={layout.logs}/slurmdbd.log",
            f"PidFile={layout.pids}/slurmdbd.pid",
            "StorageType=accounting_storage/mysql",
            "StorageHost=localhost",  # its socket, see daemons.py
            "StorageUser=slurm",
            f"StoragePass={password(layout)}",
            "StorageLoc=slurm_acct_db",
            "",
        ]
    )


def password(layout: Layout) -> str:
    """Slurm's in the database, made up when first asked for."""
    fd = private.open_own(layout.etc / "database-password")
    try:
        found = os.read(fd, 64).decode() or secrets.token_hex(16)
        os.pwrite(fd, found.encode(), 0)
    finally:
        os.close(fd)
    return found


def gres_conf(cluster: Cluster) -> str:
    files = f"{cluster.layout.devices}/nvidia[0-{GPUS_PER_NODE - 1}]"
    return f"AutoDetect=off\nNodeName=n[1-{cluster.options.nodes}] Name=gpu Type=fake File={files}\n"


def hosts(cluster: Cluster) -> str:
    """/etc/hosts as the nodes see it: node names resolve inside jobs only."""
    names = " ".join(["localhost", socket.gethostname(), *cluster.nodes])
    return f"127.0.0.1 {names}\n::1 localhost\n"


def env_sh(cluster: Cluster) -> str:
    return f"export SLURM_CONF={cluster.layout.slurm_conf}\n"
