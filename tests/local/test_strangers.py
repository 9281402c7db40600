"""Another user of the machine joins a training as a rank, and sends what a pickle would run."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from mmengine.dist import collect_results

from jobs.engine import distributed, wire
from jobs.engine.session import Session
from jobs.run.directory import Request, Run
from jobs.supervise import rendezvous
from tests.strangers import needs_root, succeeds_as_stranger

pytestmark = needs_root
UID = 12345
KEY = "known to the attacker, at the worst"
RAN, REFUSED, OTHER = 0, 1, 2
"""How the trainer's rank ends: it took what came, it would not read it, it could do nothing with it."""


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"id -u > {self.path}",)


def session(folder: Path) -> Session:
    request = Request(name="x", config="x", data_root="/", created="")
    return Session(Run(folder), request, rank=0, ranks=2, local_rank=0, local_ranks=2, start=1, job=None)


def trainer(folder: Path, listener: socket.socket, exchange: str) -> int:
    """Rank 0, in a process of its own: joins as a training does, then exchanges something."""
    os.environ["BATON_STORE_FD"] = str(listener.detach())
    ours = session(folder)
    distributed.join(ours)
    try:
        if exchange == "gather":
            distributed.gather(ours, {"statistics": {}})
        elif exchange == "metric":
            collect_results([1], 2, "gpu")  # as a validation does
        else:
            # What hooks of the user's may call.
            dist.recv_object_list([None], src=1, group=ours.control)
    except wire.WireError:
        return REFUSED
    return RAN


def attacker(port: int, exchange: str, code: Code) -> None:
    """Rank 1, with torch as it comes."""
    wait = timedelta(seconds=60)
    store = dist.TCPStore("127.0.0.1", port, 2, False, timeout=wait, wait_for_workers=False)
    dist.init_process_group("gloo", store=dist.PrefixStore(KEY, store), rank=1, world_size=2, timeout=wait)
    control = dist.new_group(backend="gloo", timeout=wait)
    if exchange == "gather":
        dist.gather_object(code, None, dst=0, group=control)
    elif exchange == "metric":
        try:
            dist.all_gather_object([None, None], code)
        except Exception as error:  # it would read its own pickle as well
            print(error)
    else:
        dist.send_object_list([code], dst=0, group=control)


def forked(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = OTHER
    try:
        code = work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


@pytest.mark.parametrize("exchange", ["gather", "metric", "objects"])
@pytest.mark.parametrize("defended", [True, False], ids=["defended", "as torch comes"])
def test_a_stranger_who_joins_as_a_rank_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: str, defended: bool
) -> None:
    """Without the defence the attack works, which shows that it is one."""
    ran = tmp_path / "ran"
    if not defended:
        monkeypatch.setattr(distributed, "send_objects_without_pickle", lambda: None)
    listener = rendezvous.listen("127.0.0.1")
    port = listener.getsockname()[1]
    for name, value in {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "BATON_STORE_KEY": KEY,
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    pid = forked(lambda: trainer(tmp_path, listener, exchange))
    listener.close()
    succeeds_as_stranger(lambda: attacker(port, exchange, Code(ran)), UID)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert (code == REFUSED) == defended
    assert ran.exists() != defended
    if ran.exists():
        assert ran.read_text() == f"{os.getuid()}\n"


def test_who_does_not_know_the_key_is_no_rank() -> None:
    """He finds the port, as everybody can, and joins by the names that torch gives things."""
    listener = rendezvous.listen("127.0.0.1")
    port = listener.getsockname()[1]
    wait = timedelta(seconds=60)
    store = distributed.open_store(2, True, wait, listener, ("127.0.0.1", port))
    ranks = dist.PrefixStore(KEY, store)

    def join() -> None:
        theirs = dist.TCPStore("127.0.0.1", port, 2, False, timeout=wait, wait_for_workers=False)
        for name in ("", "guess/"):
            theirs.set(f"{name}/default_pg/0//0//cpu//1/0", "me")

    assert succeeds_as_stranger(join, UID)
    with pytest.raises(Exception, match="imeout"):
        ranks.wait(["/default_pg/0//0//cpu//1/0"], timedelta(milliseconds=300))


def test_the_store_listens_where_the_ranks_are_and_nowhere_else() -> None:
    listener = rendezvous.listen("127.0.0.1")
    port = listener.getsockname()[1]
    store = distributed.open_store(1, True, timedelta(seconds=20), listener, ("127.0.0.1", port))
    store.set("a", "b")
    listening = [
        row.split()[1]
        for file in ("/proc/net/tcp", "/proc/net/tcp6")
        for row in Path(file).read_text().splitlines()[1:]
        if row.split()[3] == "0A" and row.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]


def test_a_store_that_takes_no_open_socket_gives_way_to_the_older_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in torch 2.4 to 2.6."""
    make = dist.TCPStore

    def picky(*arguments: Any, use_libuv: bool = True, **options: Any) -> Any:
        if use_libuv and "master_listen_fd" in options:
            raise NotImplementedError("the libuv backend does not support initialization with a listen fd")
        return make(*arguments, **options)

    monkeypatch.setattr(dist, "TCPStore", picky)
    listener = rendezvous.listen("127.0.0.1")
    address = ("127.0.0.1", listener.getsockname()[1])
    store = distributed.open_store(1, True, timedelta(seconds=20), listener, address)
    store.set("one", "two")
    assert store.get("one") == b"two"
