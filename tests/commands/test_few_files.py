"""Few files, near the GPU: what `train.py --stage` and `prepare.py` say as a user types them."""

from __future__ import annotations

import shutil
from pathlib import Path

from jobs.prepare.packed import convert
from jobs.run import file_systems
from jobs.run.directory import Run
from tests.unit.fake_slurm import Site, one_line


def test_what_is_no_path_is_refused(site: Site) -> None:
    one_line(site.train("--stage", "here"), "`stage` must be an absolute path on the nodes", "'here'")
    assert not (site.runs / "mine").exists()


def test_the_run_has_the_path_as_it_was_given_and_hears_when_nothing_is_packed(
    site: Site, voc_small: Path, tmp_path: Path
) -> None:
    site.command("sbatch", "echo Submitted batch job 5")
    made = site.train("--stage", "$TMPDIR")
    assert made.returncode == 0, made.stderr
    command = f"python launch/prepare.py --data-root {site.data} --pack"
    assert f"this config reads none: {command} packs one" in made.stderr
    site.data = shutil.copytree(voc_small, tmp_path / "a blank")
    (site.data / "VOCdevkit").rename(site.data / "mine")
    of_own = ("--set", "train_dataloader.dataset.data_root=data/mine/VOC2012")
    made = site.train(
        "--stage", "$TMPDIR", "--run", "own", *of_own, *(one.replace("train", "val") for one in of_own)
    )
    assert f"--data-root '{site.data}' --dataset mine --pack packs one" in made.stderr
    assert Run(site.runs / "mine").request().cluster.stage == "$TMPDIR"
    site.data = shutil.copytree(voc_small, tmp_path / "packed")
    convert.pack(site.data, "VOCdevkit")
    again = site.train("--stage", "$TMPDIR", "--run", "again")
    assert again.returncode == 0, again.stderr
    assert "reads none" not in again.stderr


def test_a_preparation_says_when_the_quota_does_not_take_its_files(site: Site, tmp_path: Path) -> None:
    mounted = file_systems.source(tmp_path)
    site.command("quota", f'echo "{mounted} 1 0 0 0 20000 21000 30000 0"')
    site.command("sbatch", "echo Submitted batch job 5")
    place = ("--data-root", str(tmp_path / "none"))
    plain, packed = site("prepare", *place, "--json"), site("prepare", *place, "--pack", "--json")
    assert (plain.returncode, packed.returncode) == (0, 0), plain.stderr + packed.stderr
    assert "will be about 25,533 files" in plain.stderr
    assert "has room for only 1,000 more of yours: --pack makes it at most 10" in plain.stderr
    assert "files" not in packed.stderr
