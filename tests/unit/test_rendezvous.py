"""The meeting of supervisors, over real sockets, one thread a rank."""

from __future__ import annotations

import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.train import rendezvous
from jobs.train.rendezvous import Meeting, RendezvousError, meet
from jobs.train.task import Task

KEY = b"secret"


def place(job: str, rank: int, world: int, hosts: tuple[str, ...] = ("a",)) -> Task:
    return Task(job, 0, "0", rank, world, rank, world, f"h{rank}", hosts, ("nonsense.invalid", "127.0.0.1"))


def together(job: str, world: int, hosts: tuple[str, ...] = ("a",)) -> list[Meeting]:
    with ThreadPoolExecutor(world) as pool:
        meetings = [
            pool.submit(meet, place(job, rank, world, hosts), KEY, 20.0, 7 if rank == 0 else None)
            for rank in range(world)
        ]
        return [meeting.result() for meeting in meetings]


def close(meetings: list[Meeting]) -> None:
    for meeting in meetings:
        for connection in meeting.peers.values():
            connection.close()
        if meeting.listener:
            meeting.listener.close()


@pytest.mark.parametrize("hosts", [("a",), ("a", "b")], ids=["one node", "two nodes"])
def test_all_meet_and_agree(hosts: tuple[str, ...]) -> None:
    meetings = together("meet", 4, hosts)
    assert {(tuple(m.hosts), m.start, m.master_port, m.stop) for m in meetings} == {
        (("h0", "h1", "h2", "h3"), 7, meetings[0].master_port, None)
    }
    assert sorted(meetings[0].peers) == [1, 2, 3]
    meetings[0].peers[2].send({"to": 2})
    assert meetings[2].peers[0].receive() == [{"to": 2}]
    assert {m.interface for m in meetings} == ({None} if len(hosts) == 1 else {"lo"})
    # MASTER_PORT is free for torch.
    socket.create_server(("127.0.0.1", meetings[0].master_port)).close()
    close(meetings)


def test_two_runs_share_a_node_even_with_the_same_ports() -> None:
    """Steps whose port sequences are the same, but whose secrets differ."""
    with ThreadPoolExecutor(4) as pool:
        futures = {
            (key, rank): pool.submit(meet, place("twins", rank, 2), key, 20.0, 1 if rank == 0 else None)
            for key in (b"one", b"two")
            for rank in (0, 1)
        }
        met = {who: future.result() for who, future in futures.items()}
    ports = {met[key, 0].master_port for key in (b"one", b"two")}
    assert len(ports) == 2
    for key in (b"one", b"two"):
        assert met[key, 1].master_port == met[key, 0].master_port
    close(list(met.values()))


def test_a_foreign_service_on_the_port_is_passed_over() -> None:
    """One that says nothing would be waited for; this one greets like ssh, and the next closes at once."""
    first, second, *_ = rendezvous.ports("foreign.0.0")
    servers = [socket.create_server(("127.0.0.1", port)) for port in (first, second)]

    def greet(server: socket.socket, words: bytes) -> None:
        while True:
            try:
                guest, _ = server.accept()
            except OSError:
                return
            with guest:
                guest.sendall(words)

    threads = [
        threading.Thread(target=greet, args=pair)
        for pair in zip(servers, (b"SSH-2.0-OpenSSH\r\n", b""), strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        meetings = together("foreign", 2)
        assert meetings[0].master_port not in (first + 1, second + 1)
        close(meetings)
    finally:
        for server in servers:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
        for thread in threads:
            thread.join()


def test_a_stranger_who_knocks_is_not_let_in() -> None:
    with ThreadPoolExecutor(2) as pool:
        gathering = pool.submit(meet, place("knock", 0, 2), KEY, 20.0, 1)
        with pytest.raises(RendezvousError, match="somebody else's service"):
            meet(place("knock", 1, 2), b"wrong", 1.0)
        joining = pool.submit(meet, place("knock", 1, 2), KEY, 20.0)
        assert joining.result().start == gathering.result().start == 1
        close([gathering.result(), joining.result()])


def test_says_who_is_missing() -> None:
    with pytest.raises(RendezvousError, match=r"ranks 1, 2 of 3"):
        meet(place("missing", 0, 3), KEY, 0.2, 1)
    with pytest.raises(RendezvousError, match=r"nonsense.invalid: .*; 127.0.0.1: nobody listens there"):
        meet(place("missing", 1, 3), KEY, 0.2)


def test_no_free_port_is_an_error_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RendezvousError, match=str(port)):
            rendezvous.listen([port], loopback=True)


def test_ports_are_below_the_ephemeral_range_and_in_pairs() -> None:
    found = rendezvous.ports("x")
    assert len(set(found)) == rendezvous.TRIES
    assert all(port % 2 == 0 and 20000 <= port < 32767 for port in found)


def test_secret_is_made_once_and_is_the_owners(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: rendezvous.secret(tmp_path), range(8)))
    assert len(found) == 1
    assert len(found.pop()) == 64
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_ipv6_interface() -> None:
    assert rendezvous.interface_of("127.0.0.1") == rendezvous.interface_of("::ffff:127.0.0.1") == "lo"
    assert rendezvous.interface_of("192.0.2.1") is None
