"""Further jobs of a run (--resume, evaluate.py, infer.py) are what the run was submitted as."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from jobs.run.directory import Run
from tests.unit.fake_slurm import ROOT, Site, one_line
from tests.unit.test_identity import row

PROFILE = """
account: us
partition: big
setup: [module load cuda]
env: {A: "1", B: top}
python: /opt/python
sbatch: {nice: "5"}
train: {env: {B: train}, time: "9:00:00"}
evaluate: {partition: small, memory: 3G}
infer: {time: "0:05:00"}
"""


@pytest.fixture
def made(site: Site) -> Site:
    """A run `mine` of a profile that is gone since, with a checkpoint."""
    profile = site.runs.parent / "site.yaml"
    profile.write_text(PROFILE)
    site.command("sbatch", "echo Submitted batch job 5")
    done = site.train("--cluster", str(profile), "--gpus", "2", "--qos", "low", "--no-evaluation")
    assert done.returncode == 0, done.stderr
    profile.unlink()
    checkpoints = site.runs / "mine" / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "epoch_1.pth").touch()
    (checkpoints / "epoch_1.pth.json").touch()
    return site


def shown(done: object) -> list[str]:
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    return list(done.stdout.splitlines())  # type: ignore[attr-defined]


def test_what_follows_a_run_takes_its_profile(made: Site) -> None:
    photo = made.runs.parent / "photo.jpg"
    photo.touch()
    common = ["#SBATCH --account=us", "#SBATCH --qos=low", "#SBATCH --nice=5", "module load cuda"]
    common += ["python=/opt/python host_python"]
    commands = {
        "train": ["train", "--resume", "mine", "--dry-run"],
        "evaluation": ["train", "--resume", "mine", "--dry-run=evaluate"],
        "evaluate": ["evaluate", "mine", "--dry-run"],
        "infer": ["infer", "mine", str(photo), "--dry-run"],
        "export": ["export", "mine", "--dry-run"],
    }
    evaluation = ["#SBATCH --partition=small", "#SBATCH --mem=3G"]
    infer = ["#SBATCH --partition=big", "#SBATCH --time=0:05:00", "#SBATCH --gpus-per-node=1"]
    own = {
        "train": [
            *("#SBATCH --partition=big", "#SBATCH --time=9:00:00", "#SBATCH --gpus-per-node=2"),
            "#   time: '9:00:00' (run.yaml of mine (train))",
        ],
        "evaluation": evaluation,
        "evaluate": evaluation,
        "infer": infer,
        "export": [*infer, 'cd "$run/code"'],
    }
    for name, command in commands.items():
        lines = shown(made(*command))
        for line in [*common, *own[name]]:
            assert any(one.startswith(line) for one in lines), (name, line, lines)
    for stage, value in (("train", "train"), ("evaluate", "top"), ("infer", "top"), ("export", "top")):
        assert (made.runs / "mine/job" / f"{stage}.env").read_text() == f"export A=1\nexport B={value}\n"


@pytest.mark.parametrize("cluster", ["", "local"])
def test_a_dry_run_for_a_program_is_one_document(made: Site, cluster: str) -> None:
    photo = made.runs.parent / "photo.jpg"
    photo.touch()
    commands = {
        ("train", "--config", "tests/support/configs/tiny.py"): ["run", "train", "evaluate"],
        ("train", "--resume", "mine"): ["run", "train", "evaluate"],
        ("train", "--resume", "mine", "--no-evaluation"): ["run", "train"],
        ("train", "--config", "tests/support/configs/tiny.py", "--no-evaluation"): ["run", "train"],
        ("evaluate", "mine"): ["run", "evaluate"],
        ("infer", "mine", str(photo)): ["run", "infer"],
        ("export", "mine"): ["run", "export"],
        ("prepare",): ["run", "prepare"],
    }
    where = ["--cluster", cluster] if cluster else []
    for command, keys in commands.items():
        done = made(*command, "--dry-run", "--json", *where)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert list(found) == keys
        assert ("--dry-run=evaluate" in done.stderr) <= ("evaluate" in keys)  # what to do by hand
        assert ("jobs.train" in found["train"]) if "train" in keys else found["run"]


def test_the_command_line_wins_over_the_runs_profile(made: Site) -> None:
    given = ["--partition", "new", "--qos", "high", "--nodes", "2"]
    lines = shown(made("train", "--resume", "mine", "--dry-run", *given))
    for line in ("--partition=new", "--qos=high", "--nodes=2", "--account=us", "--gpus-per-node=2"):
        assert f"#SBATCH {line}" in lines
    lines = shown(made("train", "--resume", "mine", "--dry-run=evaluate", *given))
    for line in ("--partition=small", "--qos=high", "--nodes=1", "--account=us"):  # its own section stays
        assert f"#SBATCH {line}" in lines
    lines = shown(made("train", "--resume", "mine", "--dry-run", "--cluster", "slurm"))
    assert "#SBATCH --gpus-per-node=2" in lines  # another profile, the same size
    assert not any("account" in line for line in lines)


def test_a_resumed_run_keeps_its_profile(made: Site) -> None:
    before = (made.runs / "mine" / "run.yaml").read_text()
    done = made("train", "--resume", "mine", "--json")
    assert json.loads(done.stdout)["jobs"] == {"train": "5", "evaluate": "5"}
    after = (made.runs / "mine" / "run.yaml").read_text()
    for words in ("account: us", "- module load cuda", "nice: '5'", "(train)", "(evaluate)"):
        assert words in before
        assert words in after


def test_a_run_is_resumed_with_the_modules_it_has_taken_along(site: Site, tmp_path: Path) -> None:
    """When the files that it was made of are gone: modules that `custom_imports` names or the config imports,
    beside the config and beside a base elsewhere."""
    site.command("sbatch", "echo Submitted batch job 5")
    home = tmp_path / "home"
    (home / "exp" / "parts").mkdir(parents=True)
    (home / "base.py").write_text((ROOT / "tests/support/configs/tiny.py").read_text())
    for name in ("of_base.py", "exp/hooky.py", "exp/parts/__init__.py"):
        (home / name).write_text("")
    (home / "exp" / "my.py").write_text(
        "import parts\n_base_ = '../base.py'\ncustom_imports = dict(imports=['hooky', 'of_base'])\n"
    )
    made = site.train("--config", str(home / "exp" / "my.py"))
    assert made.returncode == 0, made.stderr
    shutil.rmtree(home)
    # Code of the user's may read any key.
    done = site("train", "--resume", "mine", "--set", "a_key_of_hooky=3")
    assert done.returncode == 0, done.stderr
    (site.runs / "mine" / "code" / "hooky.py").unlink()
    one_line(site("train", "--resume", "mine"), "hooky is neither beside the config nor installed")


def test_what_an_earlier_version_took_is_not_refused_when_the_run_goes_on(made: Site) -> None:
    run = Run(made.runs / "mine")
    config = run.code / run.request().config
    config.write_text(config.read_text() + "\nrunner_type = 'MyRunner'\n")
    assert shown(made("train", "--resume", "mine", "--dry-run"))


def test_what_is_no_training_is_not_resumed(site: Site, tmp_path: Path) -> None:
    """Nor does cancel.py say so."""
    site.command("sbatch", "echo Submitted batch job 5")
    weights, photo = tmp_path / "w.pth", tmp_path / "p.jpg"
    for file in (weights, photo):
        file.write_bytes(b"\x80")
    tiny = ("--config", "tests/support/configs/tiny.py", "--data-root", str(site.data))
    evaluated = site("evaluate", *tiny, "--checkpoint", str(weights), "--json")
    prepared = site("prepare", "--data-root", str(site.data), "--check", tiny[1], "--json")
    for done, by in ((evaluated, "evaluate.py"), (prepared, "prepare.py")):
        name = json.loads(done.stdout)["run"]
        before = site.contents()
        one_line(site("train", "--resume", name), f"--resume {name}: that is not a training ({by} made it)")
        assert site.contents() == before
    name = json.loads(prepared.stdout)["run"]
    for command in (["evaluate", name], ["infer", name, str(photo)], ["export", name]):
        one_line(site(*command, "--checkpoint", str(weights)), f"{name} is a preparation: only")
    name = json.loads(evaluated.stdout)["run"]
    queued = row(f"{site.runs}/{name}/job/evaluate.sbatch", name, number="5")
    site.command("squeue", f"echo '{queued.replace('2026-09-23T00:00:00', f'{datetime.now():%FT%T}')}'")
    said = site("cancel", name, "--now").stdout
    assert said == f"{name}: cancelled 5\nnext: python launch/status.py {name}\n"


def test_before_its_first_checkpoint_a_run_takes_another_batch_size(made: Site) -> None:
    run = made.runs / "mine"
    batch = run / "job" / "global-batch"
    batch.write_text("8\n")
    change = ("train", "--resume", "mine", "--set", "train_dataloader.batch_size=2")
    one_line(made(*change), "--set train_dataloader.batch_size would make it a different one")
    (run / "checkpoints" / "epoch_1.pth.json").unlink()  # which a start writes last
    one_line(made(*change), "--set train_dataloader.batch_size would make it a different one")
    (run / "checkpoints" / "epoch_1.pth").unlink()
    one_line(made(*change[:-1], "train_dataloder.batch_size=2"), "did you mean train_dataloader?")
    shown_only = made(*change, "--dry-run")
    assert (shown_only.returncode, "--set appears in no script" in shown_only.stderr) == (0, True)
    assert batch.exists()
    assert "batch_size" not in (run / "run.yaml").read_text()
    done = made(*change)
    assert done.returncode == 0, done.stderr
    assert not batch.exists()  # of the start that failed
    assert "train_dataloader.batch_size: 2" in (run / "run.yaml").read_text()


def test_before_its_first_checkpoint_an_override_is_taken_back(made: Site) -> None:
    """What only the job could know to be a mistake, such as a backbone's misspelt argument."""
    run = made.runs / "mine"
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    mistaken = (
        "model.backbone.dpeth=101",
        "model.backbone.strides=(1,2,2,2)",
        "train_dataloader.batch_size=2",
    )
    done = made("train", "--resume", "mine", "--set", *mistaken)
    assert done.returncode == 0, done.stderr
    batch = run / "job" / "global-batch"
    batch.write_text("4\n")
    change = ("train", "--resume", "mine", "--unset")
    there = "model.backbone.dpeth, model.backbone.strides, train_dataloader.batch_size"
    one_line(made(*change, "model.backbone.depht"), f"that is not an override of mine: they are {there}")
    one_line(made("train", "--unset", "model.backbone.dpeth"), "so it needs --resume RUN")
    taken = [*(pair.partition("=")[0] for pair in mistaken), "model.backbone.dpeth"]
    done = made(*change, *taken, "--set", "model.backbone.depth=101", "--dry-run")
    assert (done.returncode, "dpeth" in (run / "run.yaml").read_text()) == (0, True), done.stderr
    done = made(*change, *taken, "--set", "model.backbone.depth=101")
    assert done.returncode == 0, done.stderr
    after = Run(run).request().overrides
    assert after["model.backbone.depth"] == 101
    assert not {"model.backbone.dpeth", "model.backbone.strides", "train_dataloader.batch_size"} & set(after)
    assert not batch.exists()
    (run / "checkpoints" / "epoch_1.pth.json").touch()
    one_line(made(*change, "model.backbone.depth"), "mine has trained with it")


def test_a_checkpoint_is_looked_for_before_anything_is_submitted(made: Site) -> None:
    photo = made.runs.parent / "photo.jpg"
    photo.touch()
    for command in (["evaluate", "mine"], ["infer", "mine", str(photo)], ["export", "mine"]):
        one_line(made(*command, "--checkpoint", "lst"), "did you mean 'last'?")
        one_line(made(*command, "--checkpoint", "epoch_7.pth"), "there is no such file; it takes best")
        one_line(made(*command, "--checkpoint", "epoch_1"), "did you mean 'epoch_1.pth'?")
        if command[0] != "evaluate":  # whose job fetches one
            away = made(*command, "--checkpoint", "https://example.org/x.pth")
            one_line(away, "only evaluate.py accepts a URL")
        lines = shown(made(*command, "--checkpoint", "epoch_1.pth", "--dry-run"))
        assert any("--checkpoint epoch_1.pth" in line for line in lines)
    assert len(made.calls("sbatch")) == 1


@pytest.mark.parametrize("way", ["photos", "link", "."])
def test_photos_are_not_overwritten_by_their_masks(way: str, made: Site, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "one.png").write_bytes(b"a photo")
    (tmp_path / "link").symlink_to(photos)
    out = photos if way == "." else tmp_path / way
    one_line(made("infer", "mine", str(photos), "--out", str(out)), "name a folder that is new or empty")
    assert [path.name for path in photos.iterdir()] == ["one.png"]
    assert len(made.calls("sbatch")) == 1


@pytest.mark.parametrize("script", ["evaluate", "infer", "export", "train"])
def test_a_run_at_a_path_with_a_line_break_is_refused(script: str, made: Site) -> None:
    place = made.runs / "n\ntouch PWN;#"
    place.mkdir()
    (made.runs / "mine").rename(place / "mine")
    photo = made.runs.parent / "photo.jpg"
    photo.touch()
    run = str(place / "mine")
    more = {"infer": [run, str(photo)], "train": ["--resume", run]}.get(script, [run])
    one_line(made(script, *more, "--dry-run"), "control character")


def test_a_dry_run_leaves_nothing_to_the_shell_it_is_piped_from(site: Site, tmp_path: Path) -> None:
    """Places are absolute, and a run's place is written into the script."""
    site.command("sbatch", "exit 1")
    lines = shown(
        site.train("--dry-run", "--set", "model.b=c d", "--exclude", "n1", "--checkpoint", "epoch_3.pth")
    )
    (make,) = (line for line in lines if line.startswith('[ -e "$run/run.yaml" ]'))
    for words in (
        f"BATON_RUNS={tmp_path}/runs ",
        f"--config={ROOT}/tests/support/configs/tiny.py",
        f"--data-root={site.data}",
        "'--set=model.b=c d'",
        "--exclude=n1",
        "--cluster=slurm",
        "--checkpoint=epoch_3.pth",
    ):
        assert words in make
    profile = tmp_path / "x.yaml"
    profile.write_text("account: us\n")
    relative = os.path.relpath(profile, ROOT)
    lines = shown(site("prepare", "--cluster", relative, "--data-root", str(site.data), "--dry-run"))
    (make,) = (line for line in lines if line.startswith('[ -e "$run/run.yaml" ]'))
    assert "launch/prepare.py --no-submit --run prepare-1 " in make
    assert f"--cluster={ROOT}/{relative}" in make


@pytest.mark.parametrize(("gone", "executor"), [("code", "local"), ("code/jobs", "slurm")])
@pytest.mark.parametrize(
    "command",
    [["evaluate", "mine"], ["infer", "mine", "x.png"], ["export", "mine"], ["train", "--resume", "mine"]],
)
def test_a_run_whose_code_is_gone(
    command: list[str], executor: str, gone: str, made: Site, tmp_path: Path
) -> None:
    shutil.rmtree(made.runs / "mine" / gone)
    (tmp_path / "x.png").touch()
    given = [str(tmp_path / one) if one == "x.png" else one for one in command[1:]]
    before, jobs = made.contents(), len(made.calls("sbatch"))
    done = made(command[0], *given, "--cluster", executor)
    one_line(done, str(made.runs / "mine" / "code"), "is gone")
    assert made.contents() == before
    assert len(made.calls("sbatch")) == jobs


def test_a_run_that_has_lost_its_folder_of_scripts_gets_another(made: Site) -> None:
    shutil.rmtree(made.runs / "mine" / "job")
    done = made("evaluate", "mine", "--cluster", "slurm")
    assert done.returncode == 0, done.stderr
    assert (made.runs / "mine" / "job" / "evaluate.sbatch").is_file()
