"""Identity of a task from the variables of srun and of the local chain."""

from __future__ import annotations

import pytest

from jobs.run import task
from jobs.run.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08],x-1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURMD_NODENAME": "gpu08",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}


def test_slurm() -> None:
    found = task.read(SLURM)
    assert (found.job, found.restart, found.rank, found.world_size) == ("77", 0, 3, 5)
    assert (found.local_rank, found.local_world_size, found.host) == (1, 2, "gpu08")
    assert found.hosts == ("gpu07", "gpu08", "x-1")
    assert found.addresses == ("gpu07", "10.0.0.7", "gpu08", "x-1")


def test_array_element_and_restart_are_part_of_the_identity() -> None:
    element = task.read(SLURM | {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "4"})
    assert element.job == "70_4"
    again = task.read(SLURM | {"SLURM_RESTART_COUNT": "2"})
    other_step = task.read(SLURM | {"SLURM_STEP_ID": "2"})
    assert again.restart == 2
    assert len({t.identity for t in (task.read(SLURM), element, again, other_step)}) == 4


def test_local_wins_inside_an_allocation() -> None:
    local = {
        "SUBMITIT_LOCAL_JOB_ID": "9",
        "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_LOCAL_GLOBALID": "1",
        "SUBMITIT_LOCAL_LOCALID": "1",
        "BATON_RESTART": "3",
    }
    found = task.read(SLURM | local)
    assert (found.job, found.restart, found.rank, found.world_size) == ("local-9", 3, 1, 2)
    assert found.addresses == ("127.0.0.1",)


def test_alone_without_any_scheduler() -> None:
    found = task.read({})
    assert (found.rank, found.world_size, found.local_world_size) == (0, 1, 1)


def test_outside_of_srun_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="srun"):
        task.read({"SLURM_JOB_ID": "77"})


@pytest.mark.parametrize(
    ("notation", "counts"), [("3", [3]), ("2(x3)", [2, 2, 2]), ("4,2(x2),1", [4, 2, 2, 1])]
)
def test_tasks_per_node(notation: str, counts: list[int]) -> None:
    assert [task.tasks_on_node(notation, node) for node in range(len(counts))] == counts
