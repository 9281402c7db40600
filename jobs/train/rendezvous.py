"""The supervisors of a step find each other over TCP, before torch is there and without a fixed port.

Rank 0 listens on the first free port of a short sequence that every rank works out from the job's identity;
the others try this sequence until someone there proves to know the run's secret, so a stranger on one of the
ports (another run, any service) is passed over. The ports lie below the usual ephemeral range, where no
outgoing connection takes them. The port after the one that rank 0 holds is torch's MASTER_PORT: nobody who
looks for ports in this way can take it meanwhile.

The connections stay open: supervise.py uses them to learn at once of any rank's end.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.train.task import Task

TRIES = 16
HANDSHAKE_SECONDS = 3.0
_LONGEST_LINE = 1 << 20
_SIOCGIFADDR = 0x8915


class RendezvousError(Exception):
    """The supervisors did not all meet in time; says who is missing, and where it was looked for."""


class Connection:
    """JSON objects, one a line, over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self._buffer = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: dict[str, Any]) -> bool:
        """False if the other end is gone (or has not read for a long time, which is as bad)."""
        try:
            self.socket.settimeout(HANDSHAKE_SECONDS)
            self.socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have come in, possibly none; None when the other end is gone or talks nonsense.

        Call it when the socket is readable, or let it wait as long as the socket's timeout.
        """
        try:
            data = self.socket.recv(65536)
        except (TimeoutError, BlockingIOError):
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LONGEST_LINE:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def close(self) -> None:
        self.socket.close()


@dataclass
class Meeting:
    """What every rank knows after the supervisors have met."""

    hosts: list[str]
    """Host of each rank."""
    start: int
    """Number of this start of the run."""
    stop: str | None
    """Why this start must end at once, if it must."""
    master_address: str
    master_port: int
    interface: str | None
    """The network interface that leads to the other nodes, where it could be told."""
    peers: dict[int, Connection] = field(default_factory=dict)
    """On rank 0: a connection to each other rank. On the others: one to rank 0."""
    listener: socket.socket | None = None
    """On rank 0: still open, as it holds the pair of ports. Whoever else connects is to be turned away."""


def secret(directory: Path) -> bytes:
    """The run's secret, readable by its owner alone; made by whoever comes first."""
    path = directory / "secret"
    temporary = directory / f".secret.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    if not path.exists():
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_hex(32).encode())
        try:
            os.link(temporary, path)  # whole or not at all, and only one wins
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return path.read_bytes()


def ports(identity: str) -> list[int]:
    """The even ports at which rank 0 of this step may listen, in order. The odd one after it is torch's."""
    found: dict[int, None] = {}
    number = 0
    while len(found) < TRIES:
        digest = hashlib.blake2b(f"{identity}/{number}".encode(), digest_size=4).digest()
        found[20000 + 2 * (int.from_bytes(digest, "big") % 6000)] = None
        number += 1
    return list(found)


def meet(
    task: Task, key: bytes, seconds: float, start: int | None = None, stop: str | None = None
) -> Meeting:
    """Returns when all supervisors of the step are there. Rank 0 gives `start` and perhaps `stop`.

    Raises RendezvousError after `seconds`.
    """
    deadline = time.monotonic() + seconds
    if task.rank == 0:
        if start is None:
            raise ValueError("rank 0 must give the number of the start")
        return _gather(task, key, deadline, seconds, start, stop)
    return _join(task, key, deadline, seconds)


def listen(candidates: Sequence[int], loopback: bool) -> tuple[socket.socket, int]:
    """A listening socket on the first of the ports that is free together with the next one.

    Raises RendezvousError if none is.
    """
    for port in candidates:
        try:
            listener = _bind(port, loopback)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            continue
        try:
            _bind(port + 1, loopback).close()
        except OSError:
            listener.close()
            continue
        return listener, port
    raise RendezvousError(f"none of the ports {', '.join(map(str, candidates))} is free here")


def interface_of(address: str) -> str | None:
    """Name of this machine's network interface with this IP address; None if there is none."""
    address = address.removeprefix("::ffff:").split("%")[0]
    if ":" in address:
        wanted = socket.inet_pton(socket.AF_INET6, address).hex()
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
        return next((line.split()[5] for line in lines if line.split()[0] == wanted), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def _bind(port: int, loopback: bool) -> socket.socket:
    if loopback:
        return socket.create_server(("127.0.0.1", port), backlog=1024)
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("", port), backlog=1024)


def _proof(key: bytes, side: str, nonce: str) -> str:
    return hmac.new(key, f"{side}/{nonce}".encode(), hashlib.sha256).hexdigest()


def _step_key(key: bytes, task: Task) -> bytes:
    """A supervisor of another step of the same run (an orphan, say) must not be let in."""
    return hmac.new(key, task.identity.encode(), hashlib.sha256).digest()


@dataclass
class _Guest:
    """A connection that has not yet proved itself."""

    connection: Connection
    until: float
    nonce: str = ""


def _gather(task: Task, key: bytes, deadline: float, seconds: float, start: int, stop: str | None) -> Meeting:
    step_key = _step_key(key, task)
    alone = len(task.hosts) == 1
    listener, port = listen(ports(task.identity), loopback=alone)
    hosts = {0: task.host}
    peers: dict[int, Connection] = {}
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        guests: dict[int, _Guest] = {}

        def dismiss(guest: _Guest) -> None:
            selector.unregister(guest.connection)
            del guests[guest.connection.fileno()]
            guest.connection.close()

        while len(hosts) < task.world_size:
            now = time.monotonic()
            if now > deadline:
                missing = [rank for rank in range(task.world_size) if rank not in hosts]
                raise RendezvousError(
                    f"rank 0 on {task.host} waited {seconds:.0f} s at port {port} for "
                    f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:20]))} of {task.world_size}"
                )
            for guest in [guest for guest in guests.values() if guest.until < now]:
                dismiss(guest)
            for ready, _ in selector.select(timeout=0.5):
                if ready.fileobj is listener:
                    try:
                        sock, _ = listener.accept()
                    except OSError:  # gone again before it was let in
                        continue
                    guest = _Guest(Connection(sock), now + HANDSHAKE_SECONDS)
                    sock.setblocking(False)
                    guests[sock.fileno()] = guest
                    selector.register(guest.connection, selectors.EVENT_READ)
                    continue
                guest = guests[ready.fd]
                rank = _examine(guest, step_key, task.world_size, hosts)
                if rank is None:
                    dismiss(guest)
                elif rank >= 0:
                    selector.unregister(guest.connection)
                    del guests[guest.connection.fileno()]
                    if rank in peers:  # it gave up on its first connection and came again
                        peers[rank].close()
                    peers[rank] = guest.connection
        for guest in list(guests.values()):
            dismiss(guest)
    names = [hosts[rank] for rank in range(task.world_size)]
    for rank, connection in peers.items():
        if not connection.send({"hosts": names, "port": port + 1, "start": start, "stop": stop}):
            raise RendezvousError(f"rank {rank} on {hosts[rank]} was lost as soon as all had met")
    mine = [str(connection.socket.getsockname()[0]) for connection in peers.values()]
    interface = None if alone else next((name for a in mine if (name := interface_of(a))), None)
    # torch's store listens on every address of this host, so its own rank reaches it at loopback.
    return Meeting(names, start, stop, "127.0.0.1", port + 1, interface, peers, listener)


def _examine(guest: _Guest, key: bytes, world_size: int, hosts: dict[int, str]) -> int | None:
    """One step of the handshake: the guest's rank once it has proved itself, -1: wait on, None: dismiss."""
    messages = guest.connection.receive()
    if messages is None:
        return None
    for message in messages:
        if not guest.nonce:
            guest.nonce = secrets.token_hex(16)
            answer = {"proof": _proof(key, "server", str(message.get("nonce"))), "nonce": guest.nonce}
            if not guest.connection.send(answer):
                return None
            continue
        if not hmac.compare_digest(str(message.get("proof")), _proof(key, "client", guest.nonce)):
            return None
        rank = message.get("rank")
        if not isinstance(rank, int) or not 0 < rank < world_size:
            return None
        hosts[rank] = str(message.get("host"))
        return rank
    return -1


def _join(task: Task, key: bytes, deadline: float, seconds: float) -> Meeting:
    step_key = _step_key(key, task)
    pause = 0.05
    trouble: dict[str, str] = {}
    while True:
        for address in task.addresses:
            connection = _look_for_rank_0(address, task, step_key, deadline, trouble)
            if connection is not None:
                return _wait_for_all(connection, task, address, deadline)
        if time.monotonic() > deadline:
            last = "; ".join(f"{address}: {why}" for address, why in trouble.items())
            raise RendezvousError(
                f"rank {task.rank} on {task.host} did not reach rank 0 within {seconds:.0f} s ({last})"
            )
        time.sleep(pause)  # rank 0 is not listening yet
        pause = min(2 * pause, 1.0)


def _look_for_rank_0(
    address: str, task: Task, key: bytes, deadline: float, trouble: dict[str, str]
) -> Connection | None:
    """One go through the ports at an address: a proved connection, or None and why in `trouble`."""
    trouble.setdefault(address, "nobody listens there")
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        trouble[address] = str(error)
        return None
    for port in ports(task.identity):
        if time.monotonic() > deadline:
            return None
        try:
            sock = socket.create_connection((address, port), timeout=HANDSHAKE_SECONDS)
        except ConnectionRefusedError:
            continue
        except OSError as error:  # no way there at all: the other ports would only take as long
            trouble[address] = str(error)
            return None
        connection = Connection(sock)
        if _shake_hands(connection, key, task):
            return connection
        trouble[address] = f"on port {port} is somebody else's service"
        connection.close()
    return None


def _shake_hands(connection: Connection, key: bytes, task: Task) -> bool:
    """Whether rank 0 of this very step is at the other end, and now knows that it is us."""
    nonce = secrets.token_hex(16)
    answer = _ask(connection, {"nonce": nonce})
    if answer is None:
        return False
    if not hmac.compare_digest(str(answer.get("proof")), _proof(key, "server", nonce)):
        return False
    proof = _proof(key, "client", str(answer.get("nonce")))
    return connection.send({"proof": proof, "rank": task.rank, "host": task.host})


def _ask(connection: Connection, question: dict[str, Any]) -> dict[str, Any] | None:
    """The other end's answer within the time of a handshake; None if it gives none."""
    if not connection.send(question):
        return None
    until = time.monotonic() + HANDSHAKE_SECONDS
    while (left := until - time.monotonic()) > 0:
        connection.socket.settimeout(left)
        messages = connection.receive()
        if messages is None:
            return None
        if messages:
            return messages[0]
    return None


def _wait_for_all(connection: Connection, task: Task, address: str, deadline: float) -> Meeting:
    while (left := deadline - time.monotonic()) > 0:
        connection.socket.settimeout(left)
        messages = connection.receive()
        if messages is None:
            raise RendezvousError(
                f"rank {task.rank} on {task.host} lost rank 0 ({address}) before all had met"
            )
        if messages:
            welcome = messages[0]
            mine = str(connection.socket.getsockname()[0])
            interface = None if len(task.hosts) == 1 else interface_of(mine)
            return Meeting(
                list(welcome["hosts"]),
                int(welcome["start"]),
                welcome["stop"],
                address,
                int(welcome["port"]),
                interface,
                {0: connection},
            )
    raise RendezvousError(
        f"rank {task.rank} on {task.host} is with rank 0 ({address}), but others never came"
    )
