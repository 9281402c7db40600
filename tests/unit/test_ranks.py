"""The processes of an evaluation add up over the connections by which they have met."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.engine.ranks import Ranks, gather, share
from jobs.supervise.rendezvous import meet
from tests.unit.test_rendezvous import place


def met(folder: Path, size: int) -> list[Ranks]:
    with ThreadPoolExecutor(size) as pool:
        meetings = [
            pool.submit(meet, place(rank, size), folder, 20.0, 1 if rank == 0 else None)
            for rank in range(size)
        ]
        found = []
        for rank, future in enumerate(meetings):
            meeting = future.result()
            if meeting.store:
                meeting.store.close()
            found.append(Ranks(rank, size, "cpu", "job", meeting.hosts, meeting.peers))
        return found


def test_rank_0_gets_all_parts_in_order_and_nobody_goes_before(tmp_path: Path) -> None:
    ranks = met(tmp_path, 3)
    parts = [bytes([number]) * 500_000 for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(gather, ranks[number], parts[number]) for number in (2, 1)]
        assert not any(other.done() for other in others)
        assert gather(ranks[0], parts[0]) == parts
        assert [other.result(timeout=20) for other in others] == [None, None]
    assert gather(Ranks(0, 1, "cpu", "job"), b"alone") == [b"alone"]


def test_a_lost_process_is_an_error_on_all_that_wait_for_it(tmp_path: Path) -> None:
    ranks = met(tmp_path, 3)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(gather, ranks[number], b"part") for number in (0, 1)]
        ranks[2].peers[0].close()
        with pytest.raises(ConnectionError, match="process 2 on h2 ended"):
            waiting[0].result(timeout=20)
        ranks[0].peers[1].close()
        with pytest.raises(ConnectionError, match="process 0 on h0 ended"):
            waiting[1].result(timeout=20)


def test_what_rank_0_says_all_hear(tmp_path: Path) -> None:
    ranks = met(tmp_path, 3)
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(share, ranks[number], b"mine") for number in (1, 2)]
        assert share(ranks[0], b"told") == b"told"
        assert [other.result(timeout=20) for other in others] == [b"told", b"told"]
    assert share(Ranks(0, 1, "cpu", "job"), b"alone") == b"alone"
