"""The meeting of supervisors, over real sockets, one thread a rank, and strangers who want to be in it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from jobs.run.task import Task
from jobs.supervise import handshake, rendezvous
from jobs.supervise.handshake import Connection
from jobs.supervise.rendezvous import Meeting, RendezvousError, meet
from tests.stages import wait_until
from tests.strangers import needs_root, stranger, succeeds_as_stranger

HELLO = handshake.HELLO + bytes(32)


def place(rank: int, world: int, hosts: tuple[str, ...] = ("a",), job: str = "job") -> Task:
    return Task(job, 0, "0", rank, world, rank, world, f"h{rank}", hosts, ("nonsense.invalid", "127.0.0.1"))


def together(folder: Path, world: int, hosts: tuple[str, ...] = ("a",), job: str = "job") -> list[Meeting]:
    with ThreadPoolExecutor(world) as pool:
        meetings = [
            pool.submit(meet, place(rank, world, hosts, job), folder, 20.0, 7 if rank == 0 else None)
            for rank in range(world)
        ]
        return [meeting.result() for meeting in meetings]


def close(meetings: list[Meeting]) -> None:
    for meeting in meetings:
        meeting.close()


def publication(folder: Path) -> Path:
    return folder / "meeting-job.0.0"


def published(folder: Path) -> tuple[int, bytes]:
    """The port and key that rank 0 has published, once it has."""
    wait_until(lambda: publication(folder).exists() and rendezvous._look_up(publication(folder)))
    found = rendezvous._look_up(publication(folder))
    assert found is not None
    return found


@pytest.mark.parametrize("hosts", [("a",), ("a", "b")], ids=["one node", "two nodes"])
def test_all_meet_and_agree(tmp_path: Path, hosts: tuple[str, ...]) -> None:
    meetings = together(tmp_path, 4, hosts)
    first = meetings[0]
    assert {(tuple(m.hosts), m.start, m.master_port, m.store_key, m.stop) for m in meetings} == {
        (("h0", "h1", "h2", "h3"), 7, first.master_port, first.store_key, None)
    }
    assert sorted(first.peers) == [1, 2, 3]
    first.peers[2].send({"to": 2})
    assert meetings[2].peers[0].receive() == [{"to": 2}]
    meetings[2].peers[0].send({"from": 2})
    assert first.peers[2].receive() == [{"from": 2}]
    assert {m.interface for m in meetings} == {"lo"}
    # What torch's store will listen on, at no other address than the one by which all have come.
    assert first.store is not None
    assert first.store.getsockname() == ("127.0.0.1", first.master_port)
    assert {m.master_address for m in meetings} == {"127.0.0.1"}
    close(meetings)


def test_one_rank_meets_nobody_and_listens_nowhere(tmp_path: Path) -> None:
    meeting = meet(place(0, 1), tmp_path, 20.0, 3)
    assert (meeting.hosts, meeting.start, meeting.peers, meeting.store) == (["h0"], 3, {}, None)
    assert list(tmp_path.iterdir()) == []


def test_orders_that_follow_the_welcome_at_once_are_not_lost(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(meet, place(1, 2), tmp_path, 20.0)
        send = Connection.send

        def send_twice(connection: Connection, message: dict[str, object]) -> bool:
            return send(connection, message) and ("hosts" not in message or send(connection, {"do": "end"}))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Connection, "send", send_twice)
            gathered = meet(place(0, 2), tmp_path, 20.0, 1)
        assert joining.result().peers[0].receive() == [{"do": "end"}]
        close([gathered, joining.result()])


def test_two_steps_meet_in_one_folder_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        steps = [pool.submit(together, tmp_path, 2, ("a",), job) for job in ("one", "two")]
        one, two = (step.result() for step in steps)
    assert one[1].store_key == one[0].store_key != two[0].store_key == two[1].store_key
    close(one + two)


def test_the_port_is_closed_when_all_have_met(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        gathering = pool.submit(meet, place(0, 2), tmp_path, 20.0, 1)
        port, _ = published(tmp_path)
        joined = meet(place(1, 2), tmp_path, 20.0)
        gathered = gathering.result()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    close([gathered, joined])


def test_says_who_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RendezvousError, match=r"ranks 1, 2 of 3"):
        meet(place(0, 3), tmp_path, 0.2, 1)
    with pytest.raises(RendezvousError, match=r"has published no port in .*meeting-job"):
        meet(place(1, 3), tmp_path, 0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["meeting-over"]
    publish(publication(tmp_path), free_port())
    with pytest.raises(RendezvousError, match=r"nonsense.invalid: .*; 127.0.0.1: nobody listens there"):
        meet(place(1, 3), tmp_path, 0.2)


def test_interfaces() -> None:
    assert rendezvous.interface_of("127.0.0.1") == rendezvous.interface_of("::ffff:127.0.0.1") == "lo"
    assert rendezvous.interface_of("192.0.2.1") is None


# ----------------------------------------------------------------------------------------- what is published


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def publish(path: Path, port: int, key: bytes = bytes(32)) -> None:
    path.write_text(f"{port:5} {key.hex()}\n")
    path.chmod(0o600)


@needs_root
def test_what_is_published_is_its_owners_alone(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o755)
    with ThreadPoolExecutor(1) as pool:
        old = os.umask(0)
        try:
            gathering = pool.submit(meet, place(0, 2), tmp_path, 20.0, 1)
            published(tmp_path)
        finally:
            os.umask(old)
        assert stat.S_IMODE(publication(tmp_path).stat().st_mode) == 0o600
        assert succeeds_as_stranger(publication(tmp_path).stat)
        assert not succeeds_as_stranger(publication(tmp_path).read_bytes)
        close([meet(place(1, 2), tmp_path, 20.0), gathering.result()])
    # Afterwards there is no key in it any more, but room on the disk for the next.
    (left,) = tmp_path.iterdir()
    assert left.read_text().strip() == ""
    assert left.stat().st_size > 64
    number = left.stat().st_ino
    close(together(tmp_path, 2, job="next"))
    assert [path.stat().st_ino for path in tmp_path.iterdir()] == [number]


def test_a_publication_left_by_a_killed_start_leads_nowhere(tmp_path: Path) -> None:
    """Somebody else listens at its port by now, who greets like ssh; and one who knows an old key."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(2) as pool:
        publish(publication(tmp_path), server.getsockname()[1])

        def greet() -> None:
            guest, _ = server.accept()
            with guest:
                guest.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3 " * 3 + b"\r\n")

        greeting = pool.submit(greet)
        joining = pool.submit(meet, place(1, 2), tmp_path, 20.0)
        greeting.result(timeout=20)
        gathered = meet(place(0, 2), tmp_path, 20.0, 1)
        close([gathered, joining.result()])


@needs_root
@pytest.mark.parametrize("kind", ["link", "anothers", "second name", "folder", "fifo"])
def test_what_lies_where_it_publishes_is_not_followed(tmp_path: Path, kind: str) -> None:
    path, target = publication(tmp_path), tmp_path / "target"
    target.write_text("precious")
    if kind == "link":
        path.symlink_to(target)
    elif kind == "anothers":
        publish(path, 1)
        os.chown(path, 65534, 65534)
    elif kind == "second name":
        os.link(target, path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path, 0o600)
    for rank in (0, 1):
        with pytest.raises(RendezvousError, match="is not this user's own file"):
            meet(place(rank, 2), tmp_path, 20.0, 1)
    assert target.read_text() == "precious"


# --------------------------------------------------------------------------------------------------- guests

WORDS = [
    b"",
    b"\x00" * 10_000,
    b'{"nonce":"\\ud800"}\n',
    '{"proof":"é"}\n'.encode(),
    b"[" * 100_000 + b"\n",
    b"GET / HTTP/1.1\r\n\r\n",
    handshake.HELLO[:3],
    HELLO,
    HELLO + b"\xff" * 32,
    HELLO + "é\n".encode() * 5_000,
    HELLO + b"[" * 100_000,
    bytes(range(256)) * 20,
]


@needs_root
@pytest.mark.parametrize("words", WORDS, ids=lambda words: repr(words[:24]))
def test_no_strangers_bytes_reach_beyond_his_connection(tmp_path: Path, words: bytes) -> None:
    with ThreadPoolExecutor(1) as pool:
        gathering = pool.submit(meet, place(0, 2), tmp_path, 20.0, 1)
        port, _ = published(tmp_path)

        def speak() -> None:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                sock.sendall(words)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass

        succeeds_as_stranger(speak)  # he may well be cut off
        assert not gathering.done()
        close([meet(place(1, 2), tmp_path, 20.0), gathering.result()])


@pytest.mark.parametrize(
    "message",
    [b"[" * 100_000, b"\xff", b"[]", b'{"rank":true,"host":"h"}', b'{"rank":2,"host":"h"}', b'{"rank":"1"}',
     b'{"rank":1,"host":"\\ud800', b"null"],
)  # fmt: skip
def test_nor_do_those_of_one_who_knows_the_key(tmp_path: Path, message: bytes) -> None:
    """A rank of the user's own that has gone mad."""
    with ThreadPoolExecutor(1) as pool:
        gathering = pool.submit(meet, place(0, 2), tmp_path, 20.0, 1)
        port, key = published(tmp_path)
        with socket.create_connection(("127.0.0.1", port)) as sock:
            connection = handshake.shake_hands(sock, key)
            assert connection is not None
            assert connection.send_bytes(message, 5.0)
            sock.settimeout(10)
            assert sock.recv(1) == b""
        close([meet(place(1, 2), tmp_path, 20.0), gathering.result()])


@needs_root
def test_a_stranger_with_any_number_of_connections_keeps_nobody_out(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        gathering = pool.submit(meet, place(0, 2), tmp_path, 60.0, 1)
        port, _ = published(tmp_path)

        def besiege() -> None:
            held: list[socket.socket] = []
            while True:
                try:
                    held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                    held[-1].sendall(HELLO)
                except OSError:
                    held.clear()
                if len(held) > 400:
                    held.pop(0).close()

        with stranger(besiege):
            wait_until(lambda: connections_to(port) > rendezvous.GUESTS)
            joined = meet(place(1, 2), tmp_path, 60.0)
        close([joined, gathering.result()])


def connections_to(port: int) -> int:
    """Established ones at this port of this machine, by /proc/net/tcp (the local address is the second)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


# ---------------------------------------------------------------------------- between two who know each other

Tamper = Callable[[bytes, bytes], bytes]
"""What the one between makes of what rank 0 sends after the handshake, given what the guest has sent."""


@contextmanager
def between(folder: Path, tamper: Tamper) -> Iterator[tuple[Meeting, Meeting]]:
    """Rank 0 and rank 1 have met through somebody on the way, who passes on the handshake and the welcome.

    From then on he sends rank 1 what `tamper` makes of rank 0's next bytes.
    """
    with ThreadPoolExecutor(3) as pool, socket.create_server(("127.0.0.1", 0)) as server:
        gathering = pool.submit(meet, place(0, 2), folder, 20.0, 1)
        port, key = published(folder)
        publish(publication(folder), server.getsockname()[1], key)

        def relay() -> None:
            guest, _ = server.accept()
            with guest, socket.create_connection(("127.0.0.1", port)) as host:
                guest.settimeout(20)
                said = bytearray()

                def up() -> None:
                    with suppress(OSError):  # the end of it
                        while data := guest.recv(4096):
                            said.extend(data)
                            host.sendall(data)

                going_up = pool.submit(up)
                guest.sendall(handshake.read_exactly(host, 64))
                head = handshake.read_exactly(host, 4)
                guest.sendall(head + handshake.read_exactly(host, struct.unpack(">I", head)[0] + 32))
                host.settimeout(20)
                guest.sendall(tamper(host.recv(4096), bytes(said[len(HELLO) + 32 :])))
                guest.shutdown(socket.SHUT_WR)
                going_up.result(timeout=20)

        relaying = pool.submit(relay)
        joined = meet(place(1, 2), folder, 20.0)
        gathered = gathering.result(timeout=20)
        try:
            yield gathered, joined
        finally:
            close([gathered, joined])
            relaying.result(timeout=20)


def heard(joined: Meeting) -> list[dict[str, object]]:
    """All that rank 1 takes for rank 0's, until the connection ends."""
    found: list[dict[str, object]] = []
    deadline = time.monotonic() + 20
    while (messages := joined.peers[0].receive()) is not None:
        assert time.monotonic() < deadline
        found += messages
    return found


def forged(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content + secrets.token_bytes(32)


@pytest.mark.parametrize(
    ("tamper", "arrives"),
    [
        (lambda down, _: down, {1}),
        (lambda _, __: forged(b'{"do":"end","code":0}'), {0}),
        (lambda _, __: json.dumps({"do": "end"}).encode() + b"\n", {0}),
        (lambda down, _: down.replace(b"dump", b"kill"), {0}),
        (lambda down, _: down + down, {0, 1}),
        (lambda _, up: up, {0}),
        (lambda down, _: down[:-1] + bytes([down[-1] ^ 1]), {0}),
        (lambda down, _: b"\xff\xff\xff\xff" + down[4:], {0}),
    ],
    ids=["untouched", "forged", "a line", "changed", "repeated", "turned around", "false MAC", "endless"],
)
def test_who_relays_the_handshake_can_give_no_orders(
    tmp_path: Path, tamper: Tamper, arrives: set[int]
) -> None:
    with between(tmp_path, tamper) as (gathered, joined):
        joined.peers[0].send({"phase": "train", "step": 1})
        assert gathered.peers[1].receive() == [{"phase": "train", "step": 1}]
        gathered.peers[1].send({"do": "dump"})
        found = heard(joined)
        assert len(found) in arrives
        assert found == [{"do": "dump"}] * len(found)


@pytest.fixture
def pair() -> Iterator[tuple[Connection, Connection]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    connections = Connection(here, b"a", b"b"), Connection(there, b"b", b"a")
    yield connections
    for connection in connections:
        connection.close()


def test_messages_cannot_change_places(pair: tuple[Connection, Connection]) -> None:
    sender, receiver = pair
    sender.send({"n": 1})
    first = receiver.socket.recv(4096)
    sender.send({"n": 2})
    second = receiver.socket.recv(4096)
    sender.socket.sendall(second + first)
    assert receiver.receive() is None


def test_a_long_message_arrives_whole(pair: tuple[Connection, Connection]) -> None:
    sender, receiver = pair
    content = secrets.token_bytes(3_000_000)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(sender.send_bytes, content, 20.0)
        found: list[bytes] = []
        while not found:
            messages = receiver.receive_bytes(one=True)
            assert messages is not None
            found = messages
        assert sending.result()
    assert found == [content]
    with pytest.raises(ValueError, match="at most 67108864 are allowed"):
        sender.send_bytes(bytes(handshake.LONGEST + 1), 1.0)
