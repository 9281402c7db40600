"""What settings of a cluster mean, from Slurm's own texts; the real clusters are in tests/slurm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch import cluster_facts, doctor, findings, probe_job, profiles
from launch.cluster_facts import Facts, Partition
from launch.efficiency import Costs

PARTITIONS = (
    "PartitionName=gpu AllowGroups=ALL Default=YES GraceTime=60 MaxTime=1-00:00:00 DefaultTime=00:10:00 "
    "PreemptMode=REQUEUE PriorityTier=1 State=UP TotalCPUs=64 TotalNodes=2\n"
    "PartitionName=high Default=NO GraceTime=0 MaxTime=UNLIMITED DefaultTime=NONE PreemptMode=OFF "
    "PriorityTier=10 State=DOWN TotalNodes=2\n"
)


def facts(**changes: Any) -> Facts:
    config = {"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE", "KillWait": "30 sec"}
    config |= {"JobRequeue": "1", "SelectType": "select/cons_tres"} | changes.pop("config", {})
    gpu = {"name": "gpu", "preempt_mode": "REQUEUE", "grace": 60, "tier": 1, "nodes": 2, "preemptible": True}
    partition = Partition(**gpu | {"gpus": 4, "cpus": 32, "start": 0.0} | changes.pop("partition", {}))
    return Facts(version="23.11.4", config=config, partitions=[partition], **changes)


def told(given: Facts, costs: Costs | None = None) -> dict[str, list[findings.Finding]]:
    found: dict[str, list[findings.Finding]] = {}
    for one in findings.all_findings(given, costs):
        found.setdefault(one.topic, []).append(one)
    return found


def test_partitions_are_read() -> None:
    gpu, high = cluster_facts.parse_partitions(PARTITIONS)
    assert (gpu.default, gpu.grace, gpu.max_time, gpu.default_time) == (True, 60, 86400, 600)
    assert (high.max_time, high.up, high.tier) == (None, False, 10)
    nodes = "gpu|n1|32|64000|gpu:a100:4(S:0-1),gpu:v100:2|idle\ngpu|n2|16+|32000|(null)|idle\n"
    cluster_facts.add_nodes([gpu, high], nodes)
    assert (gpu.cpus, gpu.memory, gpu.gpus, gpu.gpu_types) == (16, 32000, 4, ["a100", "v100"])


def test_the_user_signal_under_both_names() -> None:
    assert not facts().user_signal
    assert facts(config={"SlurmctldParameters": "a,preempt_send_user_signal"}).user_signal
    assert facts(config={"PreemptParameters": "send_user_signal"}).user_signal


def test_the_grace_is_held_against_the_measured_save() -> None:
    enough = told(facts(), Costs(save_seconds=20.0))["partition gpu"]
    assert any("no finished step is lost" in one.means for one in enough)
    short = told(facts(partition={"grace": 0}), Costs(save_seconds=45.0))["partition gpu"]
    assert any(one.level == "bad" and "45.0 s: too little" in one.means for one in short)
    guess = told(facts(partition={"grace": 0}, config={"KillWait": "3 sec"}))["partition gpu"]
    assert any(one.level == "warning" and "no run has measured" in one.means for one in guess)


@pytest.mark.parametrize(
    ("changes", "topic", "words"),
    [
        ({"partition": {"preempt_mode": "CANCEL"}}, "partition gpu", "are cancelled"),
        ({"partition": {"preempt_mode": "SUSPEND,GANG"}}, "partition gpu", "suspended"),
        ({"partition": {"up": False}}, "partition gpu", "not up"),
        ({"partition": {"refused": "Invalid account"}}, "partition gpu", "Invalid account"),
        ({"partition": {"start": 90000.0}}, "partition gpu", "in 25 h"),
        ({"partition": {"max_time": 7200}}, "partition gpu", "time limit 2 h"),
        ({"partition": {"gpus": 0}}, "GPUs", "no node has GPUs"),
        ({"config": {"JobRequeue": "0"}}, "requeue", "JobRequeue=0"),
        ({"config": {"PreemptType": "preempt/none"}}, "preemption", "none"),
        ({"config": {"KillWait": "5 sec"}}, "KillWait", "5 s from TERM"),
        ({"config": {"DefMemPerCPU": "512"}}, "memory", "512 MB a CPU"),
        ({"accounts": ["a", "b"]}, "account", "a, b"),
        ({"config": {"MinJobAge": "2 sec"}}, "MinJobAge", "forgotten after 2 s"),
    ],
)
def test_each_setting_has_its_finding(changes: dict[str, Any], topic: str, words: str) -> None:
    assert any(words in one.found for one in told(facts(**changes))[topic])
    if words not in ("none",):
        assert not any(words in one.found for one in told(facts(accounting=True)).get(topic, []))


def test_a_profile_from_facts_is_one_that_profiles_take() -> None:
    import yaml

    given = facts(accounts=["a", "b"], partition={"max_time": 3600})
    text = doctor.profile_text("x", given, given.partitions[0], Costs(save_seconds=10.0))
    raw = yaml.load(text, yaml.BaseLoader)
    settings = profiles.resolve(profiles.parse(raw, "x.yaml", "x"), "train", {}).settings
    assert (settings.partition, settings.account, settings.time) == ("gpu", "a", "01:00:00")
    assert (settings.gres, settings.cpus_per_gpu, settings.signal_delay) == ("gpus-per-node", 8, 120)


def test_old_schedulers_take_gres() -> None:
    assert findings.gres_style(facts(config={"SelectType": "select/cons_res"})) == "gres"
    assert findings.gres_style(facts(partition={"gpus": 0})) == "none"


def test_what_the_probes_answers_mean(tmp_path: Path) -> None:
    good = {"ok": True, "text": "fine", "seconds": 1.0}
    bad = {"ok": False, "text": "ImportError: no torch", "seconds": 1.0}
    answer = {"host": "n1", "token": "t", "environment": good, "meeting": good, "gloo": good}
    found = probe_job.meaning([answer, answer | {"host": "n2"}], "t", 2, tmp_path, "")
    assert {one.level for one in found} == {"good"}
    found = probe_job.meaning([answer, answer | {"environment": bad}], "t", 2, tmp_path, "")
    assert any(one.level == "bad" and "no torch" in one.found for one in found)
    assert probe_job.meaning([answer], "t", 2, tmp_path, "")[0].level == "bad"
    assert "no such file" in probe_job.meaning([], "t", 2, tmp_path, "no such file")[0].found
