"""What settings of a cluster mean, from Slurm's own texts; the real clusters are in tests/slurm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.run import cuda
from launch.observe.doctor import facts as cluster_facts
from launch.observe.doctor import findings, profile
from launch.observe.doctor import probe as probe_job
from launch.observe.doctor.facts import Facts, Partition
from launch.observe.doctor.findings import Measured
from launch.observe.efficiency import Costs
from launch.submit import batch_script as script
from launch.submit import job_environment, profiles

ROOT = Path(__file__).resolve().parents[2]
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


def measured(seconds: float) -> Measured:
    return Measured(costs=Costs(save_seconds=seconds), run="first", bytes=532_000_000)


def told(given: Facts, costs: Measured | None = None) -> dict[str, list[findings.Finding]]:
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
    enough = told(facts(), measured(20.0))["partition gpu"]
    assert any("no finished step is lost" in one.means for one in enough)
    short = told(facts(partition={"grace": 0}), measured(45.0))["partition gpu"]
    told_of = "in run first a save of 532 MB took 45.0 s: too little"
    assert any(one.level == "bad" and told_of in one.means for one in short)
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
        ({"partition": {"cpus": 4}}, "CPUs", "4 CPUs a node for 4 GPUs"),
    ],
)
def test_each_setting_has_its_finding(changes: dict[str, Any], topic: str, words: str) -> None:
    found = told(facts(**changes))
    assert any(words in one.found for one in found[topic])
    for one in (finding for topic in found.values() for finding in topic):
        assert one.means, one
        assert one.fix or one.level == "good", one
    if words not in ("none",):
        assert not any(words in one.found for one in told(facts(accounting=True)).get(topic, []))


def test_a_profile_from_facts_is_one_that_profiles_take() -> None:
    import yaml

    given = facts(accounts=["a", "b"], partition={"max_time": 3600})
    text = profile.text("x", given, given.partitions[0], measured(10.0), {"qos": "long"})
    raw = yaml.load(text, yaml.BaseLoader)
    settings = profiles.resolve(profiles.parse(raw, "x.yaml", "x"), "train", {}).settings
    assert (settings.partition, settings.account, settings.time) == ("gpu", "a", "01:00:00")
    assert settings.qos == "long"
    assert (settings.gres, settings.cpus_per_gpu, settings.signal_delay) == ("gpus-per-node", 8, 120)


def test_old_schedulers_take_gres() -> None:
    old = facts(config={"SelectType": "select/cons_res"})
    assert cluster_facts.gres_style(old) == "gres"
    assert cluster_facts.one_gpu(old, old.partitions[0]) == {"gres": "gpu:1"}
    assert cluster_facts.gres_style(facts(partition={"gpus": 0})) == "none"
    assert cluster_facts.one_gpu(facts(), Partition(name="cpu")) == {}


GOOD = {"ok": True, "text": "fine", "seconds": 1.0}
CUDA = {"given": 1, "cuda": "12.8", "usable": 1, "names": ["NVIDIA A100"]}
ANSWER = {"host": "n1", "token": "t", "environment": GOOD, "meeting": GOOD, "gloo": GOOD, "gpus": CUDA}
ON_GPU = ANSWER | {"compute": GOOD, "nccl": GOOD}


def meant(*answers: dict[str, Any], wants: int = 1, log: str = "") -> dict[str, Any]:
    found = probe_job.meaning(list(answers), "t", 2, wants, Path("/probe"), log)
    assert all(one.means and (one.fix or one.level == "good") for one in found)
    return {one.topic: one for one in found}


def test_what_the_probes_answers_mean() -> None:
    found = meant(ON_GPU, ON_GPU | {"host": "n2"})
    assert {one.level for one in found.values()} == {"good"}
    assert set(found) >= {"shared files", "GPUs on the nodes", "gloo", "NCCL"}
    bad = {"ok": False, "text": "ImportError: no torch", "seconds": 1.0}
    found = meant(ON_GPU, ANSWER | {"environment": bad})
    assert (found["environment"].level, "no torch" in found["environment"].found) == ("bad", True)
    assert meant(ON_GPU)["shared files"].level == "bad"
    assert "no such file" in meant(log="no such file")["nodes"].found


def test_gpus_that_a_training_would_not_use_are_no_good() -> None:
    cpu_build: dict[str, Any] = {"given": 1, "cuda": None, "usable": 0, "names": []}
    found = meant(ANSWER | {"gpus": cpu_build, "interpreter": "/env/bin/python"}, ANSWER)
    assert found["GPUs on the nodes"].level == "bad"
    assert "for the CPU only" in found["GPUs on the nodes"].found
    assert "/env/bin/python" in found["GPUs on the nodes"].fix
    assert found["gloo"].level == "good"
    assert found["NCCL"].level == "warning", "NCCL is called good although nobody tried it"
    found = meant(ANSWER | {"gpus": CUDA | {"usable": 0}}, ANSWER)
    assert "Slurm gave 1, torch (CUDA 12.8) sees none" in found["GPUs on the nodes"].found
    found = meant(ANSWER | {"gpus": CUDA | {"usable": 0, "given": 0}}, ANSWER)
    assert "gres:" in found["GPUs on the nodes"].fix
    old = CUDA | {"usable": 0, "cuda": "13.0", "driver": "12.4"}
    found = meant(ANSWER | {"gpus": old}, ANSWER)
    assert "built for CUDA 13.0, and the driver takes 12.4" in found["GPUs on the nodes"].found
    assert "env/setup.sh --torch 2.8.0" in found["GPUs on the nodes"].fix
    # Where none was asked for, none is missed.
    quiet = meant(ANSWER | {"gpus": cpu_build}, ANSWER | {"gpus": cpu_build}, wants=0)
    assert {one.level for one in quiet.values()} == {"good"}
    assert "NCCL" not in quiet


@pytest.mark.parametrize(
    ("built", "driver", "said"),
    [
        ("13.0", "12.8", "--torch 2.8.0"),
        ("12.1", "11.4", "--torch 2.6.0+cu118"),
        ("11.8", "10.2", "a driver for CUDA 11"),
        ("12.8", "12.2", ""),
        ("12.1", "13.0", ""),
        (None, "12.2", ""),
        ("12.8", None, ""),
    ],
)
def test_a_driver_that_is_too_old_for_torch_is_named(built: str, driver: str, said: str) -> None:
    way = cuda.fix(built, driver)
    assert (said in way) if said else way == ""


def test_the_cuda_of_torch_is_known_without_importing_it() -> None:
    import torch

    assert cuda.build() == torch.version.cuda


@pytest.mark.parametrize(
    ("nodes", "gpus", "ranks"),
    [(4, 2, (2, 1)), (1, 2, (1, 2)), (1, 1, (1, 1)), (1, 0, (1, 2)), (1, 8, (1, 2))],
)
def test_no_two_ranks_of_the_probe_share_a_gpu(nodes: int, gpus: int, ranks: tuple[int, int]) -> None:
    given = facts(partition={"nodes": nodes, "gpus": gpus})
    resolved = probe_job.settings(given, given.partitions[0], profiles.load("slurm"), {})
    assert (resolved.nodes[0], resolved.settings.gpus) == ranks
    assert (resolved.settings.gres == "none") == (gpus == 0)


def test_the_probe_takes_the_profile(tmp_path: Path) -> None:
    raw = {"python": "/their/python", "setup": ["module load cuda"], "account": "mine", "partition": "other"}
    given = facts()
    profile = profiles.parse(raw | {"env": {"NCCL_DEBUG": "INFO"}, "time": "24:00:00"}, "x.yaml", "x")
    resolved = probe_job.settings(given, given.partitions[0], profile, {"qos": "short"})
    text = script.text(script.Batch(resolved=resolved, name="baton-doctor", run=tmp_path))
    for part in (
        "--partition=gpu", "--account=mine", "--qos=short", "--time=10", "--gpus-per-node=1",
        "module load cuda", "python=/their/python", '-m jobs.probe "$run"',
    ):  # fmt: skip
        assert part in text, text
    assert "export NCCL_DEBUG=INFO\n" in job_environment.text(resolved.settings)


REFUSING = """#!/bin/sh
case $0 in
*scontrol) case "$*" in
  *config*) echo "SLURM_VERSION = 23.02.1"; echo "JobRequeue = 0"; echo "SelectType = select/cons_tres" ;;
  *) echo "PartitionName=gpu Default=YES State=UP TotalNodes=2"; echo "PartitionName=big State=DOWN" ;;
  esac ;;
*sinfo) echo "gpu|n1|32|64000|gpu:2|idle" ;;
*sbatch) case "$*" in *--account=good*--gpus-per-node=1* | *--gpus-per-node=1*--account=good*)
    echo "sbatch: Job 1 to start at 2026-01-01T00:00:00 using 1 processors" >&2 ;;
  *) echo "sbatch: error: allocation failure: Invalid account" >&2; exit 1 ;;
  esac ;;
esac
"""


def test_findings_are_shown_where_no_partition_takes_a_job(tmp_path: Path) -> None:
    for program in ("scontrol", "sinfo", "sbatch"):
        (tmp_path / program).write_text(REFUSING)
        (tmp_path / program).chmod(0o755)
    environment = {
        "PATH": str(tmp_path), "HOME": str(tmp_path), "BATON_RUNS": str(tmp_path / "runs"),
        "SLURM_CONF": "/dev/null",
    }  # fmt: skip

    def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "launch/doctor.py"), *arguments],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    done = doctor()
    assert done.returncode == 0, done.stderr
    for part in ("with a GPU: Invalid account", "partition big: it is not up", "JobRequeue=0"):
        assert part in done.stdout
    probe = doctor("--submit-probe")
    assert probe.returncode == 2
    assert "with a GPU: Invalid account" in probe.stdout
    assert "no partition accepts your jobs" in probe.stderr
    assert "a small job with a GPU would start at once" in doctor("--account", "good").stdout


def test_without_slurm_nothing_of_it_is_asked_or_advised(tmp_path: Path) -> None:
    def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "launch/doctor.py"), *arguments],
            env={"PATH": "/nonexistent", "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    for options in ((), ("--cluster", "local")):
        done = doctor(*options)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("nothing prevents a run; next: python launch/demo.py\n")
    for asked, said in (
        ("--cluster=nope", "there is no cluster profile 'nope'"),
        ("--cluster=slurm", "--cluster slurm is a profile for Slurm, and there is no Slurm here"),
        ("--partition=gpu", "--partition gpu: there is no Slurm here"),
        ("--submit-probe", "there is no Slurm here"),
    ):
        done = doctor(asked)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {said}")


FORTY = """#!/bin/sh
case $0 in
*scontrol) case "$*" in
  *config*) printf '%s\\n' "SLURM_VERSION = 24.11.5" "PreemptType = preempt/partition_prio" \\
      "PreemptMode = REQUEUE" "KillWait = 30 sec" "SelectType = select/cons_tres" ;;
  *) for n in $(seq 10 49); do
      mode=REQUEUE; test $n -ge 47 && mode=CANCEL
      tier=$((n / 49 + 1))
      echo "PartitionName=p$n State=UP TotalNodes=2 PreemptMode=$mode GraceTime=60 PriorityTier=$tier" \\
        "MaxTime=0$((n % 3 + 1)):00:00 DefaultTime=00:10:00"
    done ;;
  esac ;;
*sinfo) for n in $(seq 10 49); do echo "p$n|n$n|2|64000|gpu:a100:4|idle"; done ;;
*sbatch) echo "sbatch: Job 1 to start at 2026-01-01T00:00:00 using 1 processors" >&2 ;;
esac
"""


@pytest.fixture
def forty(tmp_path: Path):  # type: ignore[no-untyped-def]
    """doctor.py on a cluster of forty partitions."""
    for program in ("scontrol", "sinfo", "sbatch"):
        (tmp_path / program).write_text(FORTY)
        (tmp_path / program).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "BATON_RUNS": str(tmp_path / "runs"),
        "SLURM_CONF": "/dev/null",
    }  # fmt: skip

    def doctor(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, str(ROOT / "launch/doctor.py"), *arguments],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return doctor


def test_forty_partitions_are_read_on_one_screen(forty) -> None:  # type: ignore[no-untyped-def]
    short, long = forty(), forty("--verbose")
    lines = short.splitlines()
    assert len(lines) <= 50, short
    assert max(map(len, lines)) < 300
    assert len(long.splitlines()) > 240
    assert "mend" not in short
    assert (
        "40 partitions (p10, p11, p12, p13, p14 and 35 more): a small job with a GPU would start at once"
        in short
    )
    # What a few have of their own is not lost among the others.
    assert "(p47, p48): preempted jobs are cancelled" in short
    assert "time limit 2 h" in short
    assert short.count("fix: ") >= 3
    assert "partition p23: " in long


def test_one_partition_alone_and_all_of_them_for_a_program(forty) -> None:  # type: ignore[no-untyped-def]
    import json

    one = forty("--partition", "p23")
    assert "partition p23: " in one
    assert "p24" not in one
    found = json.loads(forty("--json"))["findings"]
    assert len({finding["topic"] for finding in found if finding["topic"].startswith("partition ")}) == 40
