"""The supervisors of a job step find each other over TCP, before torch is there, on an untrusted network.

Rank 0 listens on a port that the kernel picks, and publishes it with a new random key in a file in the run
directory that only its owner can read, named after this job step. Whoever connects must prove that it knows
the key, with messages of fixed length that need no parsing; after that, every message carries a MAC over its
number, with keys that are derived from both sides' nonces and differ by direction: whoever relays the
handshake can neither forge, replay, reorder nor reflect what follows (handshake.py). A file left over from a
start that was killed leads to nobody who knows its key: the others keep looking at the file.

The connections stay open: supervisor.py uses them to learn at once of any rank's end, engine/ranks.py to add
up what the ranks have counted. Finally, rank 0 also opens the socket on which torch's store will listen: on
loopback for one node, else on the address at which the other nodes reach this one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jobs.run import files, private
from jobs.run.errors import UserError
from jobs.run.task import Task
from jobs.supervise.handshake import HANDSHAKE_SECONDS, NONCE, Connection, Guest, shake_hands

GUESTS = 64
"""How many unproved connections, besides those of the ranks, may be open; then the oldest is closed."""
_LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915


class RendezvousError(Exception):
    """The supervisors did not all meet in time; says which are missing, and where rank 0 was sought."""


@dataclass
class Meeting:
    """What every rank knows after the supervisors have met."""

    hosts: list[str]
    """The host of each rank."""
    start: int
    """Number of this start of the run."""
    stop: str | None
    """Why this start must end at once; None if it need not."""
    master_address: str = _LOOPBACK
    master_port: int = 0
    """The port of torch's store; 0 with one rank, which needs none."""
    store_key: str = ""
    """Prefix of all keys that the ranks put into the store, which strangers cannot guess."""
    interface: str | None = None
    """The network interface that leads to the other ranks, if known."""
    peers: dict[int, Connection] = field(default_factory=dict)
    """On rank 0, a connection to each other rank; on the others, one to rank 0."""
    store: socket.socket | None = None
    """On rank 0 of several: the listening socket, which torch's store takes over."""

    def close(self) -> None:
        for connection in self.peers.values():
            connection.close()
        if self.store:
            self.store.close()


def meet(
    task: Task, folder: Path, seconds: float, start: int | None = None, stop: str | None = None
) -> Meeting:
    """Returns once all supervisors of the job step have met. Rank 0 provides `start`, and perhaps `stop`.

    `folder`: where rank 0 publishes, the same for all. Raises RendezvousError after `seconds`, or at once if
    the file system lets others read or write what is published; OSError if it cannot be written.
    """
    if task.rank == 0 and start is None:
        raise ValueError("rank 0 must give the number of the start")
    if task.world_size == 1:
        return Meeting([task.host], start or 0, stop)
    path = folder / files.MEETING(STEP=task.identity)
    deadline = time.monotonic() + seconds
    if task.rank == 0:
        return _gather(task, path, deadline, seconds, start or 0, stop)
    return _join(task, path, deadline, seconds)


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface with this IP address; None if there is none."""
    address = _plain(address).split("%")[0]
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


def listen(address: str | None, port: int = 0) -> socket.socket:
    """A listening socket on one address of this machine, or on all of them; port 0: a free one."""
    if address is not None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        place = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4]
        return socket.create_server(place[:2] if len(place) == 2 else place, family=family, backlog=1024)
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("", port), backlog=1024)


# ----------------------------------------------------------------------------------------------- publishing


def _open(path: Path) -> int:
    try:
        return private.open_own(path)
    except UserError as error:
        raise RendezvousError(str(error)) from None


@contextlib.contextmanager
def _published(path: Path, port: int, key: bytes) -> Iterator[None]:
    """Publishes rank 0's port and key while the block runs. One write: a reader sees all of them or nothing.

    Afterwards the file is kept, blanked, under another name: the next start writes into its disk space, and
    so has some even on a full disk.
    """
    kept = path.with_name(files.MEETING(STEP="over"))
    with contextlib.suppress(FileNotFoundError):
        os.replace(kept, path)
    fd = _open(path)
    try:
        line = f"{port:5} {key.hex()}\n".encode()
        os.pwrite(fd, line, 0)
        os.fsync(fd)  # to the server, where the others look
        yield
        os.pwrite(fd, b" " * len(line), 0)
        os.replace(path, kept)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _look_up(path: Path) -> tuple[int, bytes] | None:
    """The port and key that rank 0 has published; None if it has not yet."""
    fd = _open(path)
    try:
        words = os.read(fd, 256).decode("ascii", "replace").split()
    finally:
        os.close(fd)
    try:
        port, key = words
        return int(port), bytes.fromhex(key)
    except ValueError:
        return None


def _leave_nothing(path: Path) -> None:
    """Removes the file if it is empty: it was only created by looking for it."""
    with contextlib.suppress(OSError):
        if path.lstat().st_size == 0:
            path.unlink()


# -------------------------------------------------------------------------------------------- the handshake
#
#   guest → rank 0    HELLO, nonce g
#   rank 0 → guest    nonce h, MAC("rank 0 knows", g, h)
#   guest → rank 0    MAC("guest knows ", g, h), then messages as of Connection


# --------------------------------------------------------------------------------------------------- rank 0


def _gather(task: Task, path: Path, deadline: float, seconds: float, start: int, stop: str | None) -> Meeting:
    alone = len(task.hosts) == 1
    key = secrets.token_bytes(NONCE)
    hosts = {0: task.host}
    with listen(_LOOPBACK if alone else None) as listener:
        port = listener.getsockname()[1]
        with _published(path, port, key):
            peers = _let_in(listener, task, key, hosts, deadline)
    if len(hosts) < task.world_size:
        for connection in peers.values():
            connection.close()
        missing = [rank for rank in range(task.world_size) if rank not in hosts]
        raise RendezvousError(
            f"rank 0 on {task.host} waited {seconds:.0f} s at port {port} for "
            f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:20]))} of {task.world_size}"
        )
    address = _LOOPBACK if alone else _common_address(peers.values())
    meeting = Meeting([hosts[rank] for rank in range(task.world_size)], start, stop)
    meeting.peers, meeting.store, meeting.store_key = peers, listen(address), secrets.token_hex(16)
    meeting.master_address = address or _LOOPBACK
    meeting.master_port = meeting.store.getsockname()[1]
    meeting.interface = interface_of(address) if address else _any_interface(peers.values())
    welcome = {
        "hosts": meeting.hosts, "start": start, "stop": stop,
        "address": address, "port": meeting.master_port, "store": meeting.store_key,
    }  # fmt: skip
    for rank, connection in peers.items():
        if not connection.send(welcome):
            meeting.close()
            raise RendezvousError(f"rank {rank} on {hosts[rank]} was lost as soon as all ranks had met")
    return meeting


def _let_in(
    listener: socket.socket, task: Task, key: bytes, hosts: dict[int, str], deadline: float
) -> dict[int, Connection]:
    """Waits for the other ranks, fills `hosts`, and turns everybody else away. Whatever a guest sends can
    only end its own connection."""
    peers: dict[int, Connection] = {}
    guests: list[Guest] = []
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ, None)

        def part_from(guest: Guest) -> None:
            selector.unregister(guest)
            guests.remove(guest)

        def dismiss(guest: Guest) -> None:
            part_from(guest)
            guest.socket.close()

        while len(hosts) < task.world_size and (now := time.monotonic()) < deadline:
            for guest in [guest for guest in guests if guest.until < now]:
                dismiss(guest)
            for ready, _ in selector.select(timeout=0.5):
                if ready.data is None:
                    if len(guests) >= GUESTS + task.world_size:
                        dismiss(guests[0])
                    try:
                        sock, _ = listener.accept()
                    except OSError:  # it has gone again, or there are no file descriptors left
                        if guests:
                            dismiss(guests[0])
                        continue
                    sock.setblocking(False)
                    guests.append(Guest(sock, now + HANDSHAKE_SECONDS))
                    selector.register(guests[-1], selectors.EVENT_READ, guests[-1])
                    continue
                guest = ready.data
                if guest not in guests:  # just dismissed
                    continue
                messages = guest.go_on(key)
                if messages is None:
                    dismiss(guest)
                elif messages:
                    introduced = _introduced(messages[0], task.world_size)
                    if introduced is None or guest.connection is None:
                        dismiss(guest)
                        continue
                    part_from(guest)
                    rank, hosts[introduced[0]] = introduced
                    if rank in peers:  # it gave up its first connection and reconnected
                        peers[rank].close()
                    peers[rank] = guest.connection
        for guest in list(guests):
            dismiss(guest)
    return peers


def _introduced(message: bytes, world_size: int) -> tuple[int, str] | None:
    """(rank, host) of a guest that has proved itself; None if its message is invalid."""
    try:
        said = json.loads(message)
        rank, host = said["rank"], said["host"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return (rank, host) if type(rank) is int and 0 < rank < world_size and isinstance(host, str) else None


def _common_address(peers: Iterable[Connection]) -> str | None:
    """The address at which the other nodes have reached this machine; None if it was not the same for all
    (ranks on this machine may have used loopback, but can use that address, too)."""
    mine = {_plain(str(connection.socket.getsockname()[0])) for connection in peers}
    outside = {address for address in mine if not _is_loopback(address)}
    found = outside or mine
    return found.pop() if len(found) == 1 else None


def _any_interface(peers: Iterable[Connection]) -> str | None:
    mine = (str(connection.socket.getsockname()[0]) for connection in peers)
    return next((name for address in mine if (name := interface_of(address))), None)


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


# ----------------------------------------------------------------------------------------------- the others


def _join(task: Task, path: Path, deadline: float, seconds: float) -> Meeting:
    pause = 0.05
    trouble: dict[str, str] = {}
    while True:
        if published := _look_up(path):
            for address in task.addresses:
                connection = _look_for_rank_0(address, *published, trouble)
                if connection is not None and connection.send({"rank": task.rank, "host": task.host}):
                    return _wait_for_all(connection, task, deadline)
        if time.monotonic() > deadline:
            last = "; ".join(f"{address}: {why}" for address, why in trouble.items())
            _leave_nothing(path)
            raise RendezvousError(
                f"rank {task.rank} on {task.host} did not reach rank 0 within {seconds:.0f} s "
                f"({last or f'it has published no port in {path}'})"
            )
        time.sleep(pause)  # rank 0 is not listening yet
        pause = min(2 * pause, 1.0)


def _look_for_rank_0(address: str, port: int, key: bytes, trouble: dict[str, str]) -> Connection | None:
    """A proved connection; or None, with the reason in `trouble`."""
    try:
        sock = socket.create_connection((address, port), timeout=HANDSHAKE_SECONDS)
    except OSError as error:
        refused = isinstance(error, ConnectionRefusedError)
        trouble[address] = f"nobody listens there at port {port}" if refused else str(error)
        return None
    connection = shake_hands(sock, key)
    if connection is None:
        trouble[address] = f"at port {port} is somebody else's service"
        sock.close()
    return connection


def _wait_for_all(connection: Connection, task: Task, deadline: float) -> Meeting:
    theirs = _plain(str(connection.socket.getpeername()[0]))
    while (left := deadline - time.monotonic()) > 0:
        connection.socket.settimeout(left)
        messages = connection.receive(one=True)
        if messages is None:
            raise RendezvousError(
                f"rank {task.rank} on {task.host} lost rank 0 ({theirs}) before all ranks had met"
            )
        if messages:
            welcome = messages[0]
            mine = str(connection.socket.getsockname()[0])
            return Meeting(
                list(welcome["hosts"]),
                int(welcome["start"]),
                welcome["stop"],
                welcome["address"] or theirs,
                int(welcome["port"]),
                str(welcome["store"]),
                interface_of(mine),
                {0: connection},
            )
    raise RendezvousError(f"rank {task.rank} on {task.host} is with rank 0 ({theirs}), but others never came")
