"""A mistake of the user's: one line with what, where and the fix; exit code 2; nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TINY = ("--config", "tests/support/configs/tiny.py")
LOCAL = ("--cluster", "local")


def launch(script: str, *arguments: str, runs: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    return subprocess.run(
        [sys.executable, f"launch/{script}.py", *arguments],
        cwd=ROOT,
        env=environment | {"BATON_RUNS": str(runs)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_interrupt_before_there_is_a_command_is_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C while modules are read, which a slow file system makes long."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'launch.submit':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
    )
    done = subprocess.run(
        [sys.executable, "launch/status.py"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


CASES = {
    "missing dataset": ("train", [*LOCAL, *TINY, "--data-root", "/nowhere"], "python launch/prepare.py"),
    "unknown config": ("train", [*LOCAL, "--config", "configs/upernett.py"], "configs/demo.py"),
    "no gpus": ("train", [*LOCAL, *TINY, "--gpus", "0"], "--gpus must be a whole number from 1 to 1024"),
    "no nodes": ("train", [*LOCAL, *TINY, "--nodes", "0"], "`nodes` must be 1 or more"),
    "two nodes without Slurm": ("train", [*LOCAL, *TINY, "--nodes", "2"], "use --nodes 1, or --cluster"),
    **{
        f"{said} without Slurm": (script, [*LOCAL, *words], f"error: {said}: only Slurm knows that")
        for script, said, words in (
            ("train", "--partition and --time", [*TINY, "--partition", "gpu", "--time", "10:00:00"]),
            ("prepare", "--exclude and --sbatch", ["--sbatch", "nice=5", "--exclude", "n1"]),
        )
    },
    "a bad name": ("train", [*LOCAL, *TINY, "--run", "a; rm -rf b"], "cannot be a run's name"),
    "a line break in a name": ("train", [*LOCAL, *TINY, "--run", "a\nb"], "cannot be a run's name"),
    "a line break in a path": ("train", [*LOCAL, *TINY, "--data-root", "/a\nb"], "control character"),
    "a bad override": ("train", [*LOCAL, *TINY, "--set", "lr"], "write KEY=VALUE"),
    "an override with a typo": (
        "train",
        [*LOCAL, *TINY, "--set", "train_dataloder.batch_size=2"],
        "--set train_dataloder.batch_size: nothing reads train_dataloder: did you mean train_dataloader?",
    ),
    "a sweep with a typo": (
        "train",
        [*LOCAL, *TINY, "--sweep", "optim_wraper.optimizer.lr=0.1,0.2"],
        "--sweep optim_wraper.optimizer.lr: nothing reads optim_wraper: did you mean optim_wrapper?",
    ),
    "an override of a variable": (
        "train",
        [*LOCAL, "--set", "crop_size=(64,64)"],
        "crop_size is a variable of the config's file",
    ),
    "no number of epochs": (
        "train",
        [*LOCAL, *TINY, "--set", "train_cfg.max_epochs=abc"],
        "train_cfg.max_epochs is 'abc': it must be a whole number of at least 1",
    ),
    "a sweep that lacks a bracket": (
        "train",
        [*LOCAL, *TINY, "--sweep", "model.backbone.depth=[18,34"],
        "--sweep 'model.backbone.depth=[18,34': a ] is missing",
    ),
    "too many seeds": ("train", [*LOCAL, *TINY, "--seeds", "0-3000"], "a sweep has 1000 runs at most"),
    "a seed of seeds too large": (
        "train",
        [*LOCAL, *TINY, "--seeds", "99999999999999"],
        "--seeds: a seed must be 0 to 4294967295",
    ),
    "seeds from the end": (
        "train",
        [*LOCAL, *TINY, "--seeds", "4-0"],
        "write whole numbers, as 0,1,2 or 0-4",
    ),
    "a file that is no checkpoint": (
        "evaluate",
        [*LOCAL, *TINY, "--checkpoint", "/etc/passwd"],
        "--checkpoint /etc/passwd is not a checkpoint",
    ),
    "a bad sweep": ("train", [*LOCAL, *TINY, "--sweep", "lr="], "write KEY=A,B,C"),
    "unknown profile": ("train", ["--cluster", "locl", *TINY], "did you mean 'local'?"),
    "a bad time": ("train", ["--cluster", "slurm", *TINY, "--time", "tomorrow"], "write HH:MM:SS"),
    "an own option": (
        "train",
        ["--cluster", "slurm", *TINY, "--sbatch", "output=x"],
        "must not set 'output'",
    ),
    "unknown run": ("evaluate", [*LOCAL, "nobody"], "there is no run 'nobody'"),
    "several passes of several": (
        "evaluate",
        [*LOCAL, "x", "--tta", "--batch", "2"],
        "--batch does not work with",
    ),
    **{
        f"pictures {' '.join(given)}": (
            "evaluate",
            ["x", "--pictures", *given],
            "give all, a number (0 for none)",
        )
        for given in (["-1"], ["None"], ["all", "3"], ["2007_000033", "-3"])
    },
    **{
        f"{option} {value}": (script, [option, value], f"{option} must be a number from {low} to ")
        for script, option, low in (("status", "--watch", "0.1"), ("doctor", "--probe-minutes", "0"))
        for value in ("nan", "inf", "-1", "1e400", "1e20", "soon")
    },
    **{
        f"an empty {name}": (
            script,
            [*LOCAL, *words],
            f"{name} has an empty value: is a variable not set?",
        )
        for script, name, words in (
            ("train", "--resume", ["--resume", ""]),
            ("train", "--config", ["--config", ""]),
            ("train", "--data-root", [*TINY, "--data-root="]),
            ("infer", "IMAGE", ["x", "a.jpg", ""]),
            ("infer", "--out", ["x", "a.jpg", "--out", ""]),
        )
    },
    "nothing to overwrite": ("doctor", ["--force"], "error: --force is for --write-profile"),
    "nothing to wait for": (
        "doctor",
        ["--probe-minutes", "0"],
        "error: --probe-minutes is for --submit-probe",
    ),
    "nothing to resume": ("train", [*LOCAL, "--resume", "nobody"], "there is no run 'nobody'"),
    "a resume with another seed": ("train", ["--resume", "x", "--seed", "0"], "it takes no --seed"),
    "a resume with another config": ("train", ["--resume", "x", *TINY], "it takes no --config"),
    "a resume with other data": ("train", ["--resume", "x", "--data-root", "/x"], "it takes no --data-root"),
    "a resume not submitted": ("train", ["--resume", "x", "--no-submit"], "it takes no --no-submit"),
    "two seeds": (
        "train",
        [*LOCAL, *TINY, "--seed", "3", "--set", "randomness.seed=5"],
        "--seed and --set randomness.seed: give the seed only once",
    ),
    "a bad checkpoint": ("train", [*LOCAL, *TINY, "--checkpoint", "bset"], "did you mean 'best'?"),
    "a line break in a run's path": ("infer", [*LOCAL, "/x\nrm/y", "x.jpg"], "there is no run"),
    "unknown dataset": ("prepare", [*LOCAL, "--dataset", "imaginary"], "choose one of ade20k, "),
    "a part of VOC": ("prepare", [*LOCAL, "--partial"], "--partial is for other datasets"),
    "looking and packing": ("prepare", [*LOCAL, "--verify", "--pack"], "leave out --pack"),
    "checking and packing": ("prepare", [*LOCAL, "--check", "x.py", "--pack"], "leave out --pack"),
    "checking with more": (
        "prepare",
        [*LOCAL, "--check", "x.py", "--partial", "--no-checksum"],
        "--check says which datasets, and makes nothing: leave out --no-checksum and --partial",
    ),
    "looking and making": (
        "prepare",
        [*LOCAL, "--verify", "--weights", "a", "--converter-args", ""],
        "--verify only looks: leave out --weights and --converter-args",
    ),
    "unpacking and making": (
        "prepare",
        [*LOCAL, "--unpack", "--archives", "/tmp"],
        "--unpack makes the files again of what is there: leave out --archives",
    ),
    "unpacking what is to be made": (
        "prepare",
        [*LOCAL, "--dataset", "x", "--images", ".", "--masks", ".", "--classes", "c", "--unpack"],
        "--images makes a dataset of your own: leave out --unpack",
    ),
    "weights and none": (
        "prepare",
        [*LOCAL, "--weights", "a", "--no-weights"],
        "--no-weights fetches none: leave out --weights",
    ),
    "a config and a dataset": (
        "prepare",
        [*LOCAL, "--for-config", "x.py", "--dataset", "voc"],
        "--for-config says which dataset and weights: leave out --dataset",
    ),
    "nothing to unpack": (
        "prepare",
        [*LOCAL, "--data-root", "/nowhere", "--unpack"],
        "there is no prepared dataset to unpack",
    ),
    "an open quote": (
        "prepare",
        [*LOCAL, "--dataset", "cityscapes", "--converter-args", "'{out}"],
        "No closing quotation",
    ),
    "gpus without end": ("train", [*LOCAL, *TINY, "--gpus", "1" + "0" * 20], "whole number from 1 to 1024"),
    "gpus in other digits": ("train", [*LOCAL, *TINY, "--gpus", "٢"], "whole number from 1 to 1024, not '٢'"),
    "nodes in other digits": ("train", [*LOCAL, *TINY, "--nodes", "٢"], "`nodes` must be 1 or more"),
    "a seed below": ("train", [*LOCAL, *TINY, "--seed", "-1"], "--seed must be a whole number from 0 to"),
    "a seed too large": ("train", [*LOCAL, *TINY, "--seed", str(2**32)], "from 0 to 4294967295"),
    "a config's seed too large": (
        "train",
        [*LOCAL, *TINY, "--set", f"randomness.seed={2**32}"],
        "a seed must be 0 to 4294967295",
    ),
    "a sweep's seed too large": (
        "train",
        [*LOCAL, *TINY, "--sweep", f"randomness.seed=1,{2**32}"],
        "a seed must be 0 to 4294967295",
    ),
    "weights without a name": (
        "prepare",
        [*LOCAL, "--weights", "https://h/a/.."],
        "does not end in a file's name",
    ),
    "weights of no address": ("prepare", [*LOCAL, "--weights", "https://[h/a.pth"], "is no address"),
    "weights behind a password": (
        "prepare",
        [*LOCAL, "--weights", "https://me:s3cr3t@h/a.pth"],
        "the address of h/a.pth contains a password or a key",
    ),
    "a checkpoint behind a key": (
        "evaluate",
        [
            "--config",
            str(ROOT / "configs/demo.py"),
            "--checkpoint",
            "https://h/a.pth?access_token=s3cr3t.pth",
        ],
        "the address of h/a.pth contains a password or a key",
    ),
    "a secret on the command line": (
        "train",
        [*LOCAL, *TINY, "--set", "visualizer.vis_backends.0.init_kwargs.api_key=abc"],
        "a secret does not belong on a command line",
    ),
    "no archives": ("prepare", [*LOCAL, "--archives", "/nowhere"], "there is no such folder"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_code_2(case: str, tmp_path: Path) -> None:
    script, arguments, said = CASES[case]
    done = launch(script, *arguments, runs=tmp_path / "runs")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("no GPU here")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_taken_name_is_refused_and_the_run_left_alone(tmp_path: Path, voc_small: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "run.yaml").write_text("name: mine\n")
    arguments = [*LOCAL, *TINY, "--run", "mine", "--data-root", str(voc_small)]
    done = launch("train", *arguments, runs=tmp_path / "runs")
    assert done.returncode == 2
    assert "'mine' is taken" in done.stderr
    assert "--resume mine" in done.stderr
    assert [path.name for path in run.iterdir()] == ["run.yaml"]


def test_missing_weights_are_named_before_anything_is_submitted(tmp_path: Path, voc_small: Path) -> None:
    """With the file's place and its address; the default config is the one that asks for them."""
    done = launch("train", "--cluster", "slurm", "--data-root", str(voc_small), runs=tmp_path / "runs")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(voc_small / "pretrained" / "resnet50_v1c-2cccc1ad.pth") in line
    assert "https://download.openmmlab.com/pretrain/third_party/resnet50_v1c-2cccc1ad.pth" in line
    assert not (tmp_path / "runs").exists()


def test_an_unknown_run_gets_a_suggestion(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "run.yaml").write_text("name: first\n")
    done = launch("infer", *LOCAL, "frist", "x.jpg", runs=tmp_path / "runs")
    assert done.returncode == 2
    assert "did you mean first?" in done.stderr


def test_an_unknown_profile_key_gets_a_suggestion(tmp_path: Path) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text("train:\n  partiton: gpu\n")
    done = launch("train", "--cluster", str(profile), *TINY, "--dry-run", runs=tmp_path / "runs")
    assert done.returncode == 2
    expected = f"error: {profile}: unknown key 'partiton' in `train`; did you mean 'partition'?\n"
    assert done.stderr == expected
