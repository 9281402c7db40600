"""Cluster profiles: what wins over what, what is refused and how."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.run.errors import UserError
from launch.submit import profiles

SITE = """
partition: gpu
time: 24:00:00
exclude: [n1, n2]
env: {OMP_NUM_THREADS: 4, A: top}
sbatch: {mail-type: END, exclusive: true}
setup:
  - module load cuda
train:
  time: 2-00
  env: {A: train}
evaluate:
  partition: small
  gpus: 1
"""


def site(text: str = SITE) -> profiles.Profile:
    return profiles.parse(yaml.load(text, yaml.BaseLoader), "site.yaml", "site")


def test_command_line_over_section_over_top_over_default() -> None:
    resolved = profiles.resolve(site(), "train", {"partition": "long"})
    settings, sources = resolved.settings, resolved.sources
    assert (settings.partition, sources["partition"]) == ("long", "command line")
    assert (settings.time, sources["time"]) == ("2-00", "site.yaml (train)")
    assert (settings.exclude, sources["exclude"]) == (["n1", "n2"], "site.yaml")
    assert settings.cpus_per_gpu == 4
    assert "cpus_per_gpu" not in sources
    assert settings.env == {"OMP_NUM_THREADS": "4", "A": "train"}
    assert (sources["env.OMP_NUM_THREADS"], sources["env.A"]) == ("site.yaml", "site.yaml (train)")
    assert settings.sbatch == {"mail-type": "END", "exclusive": "true"}


def test_options_of_sbatch_that_are_none_of_ours_are_taken() -> None:
    names = ("mem-per-cpu", "nodelist", "time-min", "exclusive", "wait-all-nodes", "gres", "hold", "nice")
    text = f"sbatch: {{{', '.join(f'{name}: x' for name in names)}}}"
    assert sorted(profiles.resolve(site(text), "train", {}).settings.sbatch) == sorted(names)


def test_a_time_stays_as_it_was_typed() -> None:
    # YAML 1.1 reads 24:00:00 as 86400 seconds, which Slurm would take for minutes.
    assert profiles.resolve(site(), "infer", {}).settings.time == "24:00:00"


def test_the_section_of_the_evaluation_wins_over_what_the_training_was_told() -> None:
    common = {"partition": "long", "account": "me"}
    settings = profiles.resolve(site(), "evaluate", {}, common).settings
    assert (settings.partition, settings.account) == ("small", "me")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partiton: gpu", "unknown key 'partiton'; did you mean 'partition'?"),
        ("evaluate: {gpu: 2}", "unknown key 'gpu' in `evaluate`; did you mean 'gpus'?"),
        ("mail-type: END", "an sbatch option goes below `sbatch:`"),
        ("gpus: many", "Expected `int`, got `str` - at `gpus`"),
        ("gpus: 0", "`gpus` must be 1 to 1,024, not 0"),
        ("gpus: 100000000000000000000", "`gpus`"),
        ("nodes: '٣'", "`nodes` must be 1 or more, or a range"),
        ("nodes: 99999999999", "`nodes` must be 1 or more, or a range"),
        ("time: '١٢'", "`time` is not a time that Slurm reads"),
        ("memory: ٦٤G", "`memory` is not an amount of memory"),
        ("env: {run: x}", "`env` must not set 'run': the job itself uses that name"),
        ("train: {env: {logs: x}}", "`env` must not set 'logs'"),
        ("secrets: {code: x}", "`secrets` must not set 'code'"),
        ("env: {SLURM_JOB_ID: 7}", "`env` must not set 'SLURM_JOB_ID'"),
        ("env: {BATON_START: 7}", "`env` must not set 'BATON_START'"),
        ("env: {UID: 7}", "`env` must not set 'UID'"),
        ("setup: ['export WANDB_API_KEY=abc']", "`setup` holds a secret in clear (WANDB_API_KEY)"),
        ("srun: ['--export=ALL,HF_TOKEN=abc']", "`srun` holds a secret in clear (HF_TOKEN)"),
        (
            "container: {kind: apptainer, image: x, options: ['--env', 'API_KEY=abc']}",
            "`container` holds a secret in clear (API_KEY)",
        ),
        ("nodes: 3-2", "`nodes` must be 1 or more, or a range"),
        ("gres: both", "Invalid enum value 'both' - at `gres`; it may be gpus-per-node, gres, none"),
        ("environment: tar", "at `environment`; it may be image"),
        ("notify: {on: [ended]}", "at `notify.on[0]`; it may be finished, failed, stopped, evaluated"),
        ("time: soon", "`time` is not a time that Slurm reads"),
        ("time: '2'", "`time` 2 is not longer than `signal_delay` (the 120 s before"),
        ("train: {time: 0:05:00, signal_delay: 300}", "`time` 0:05:00 is not longer than `signal_delay`"),
        ("memory: lots", "`memory` is not an amount of memory"),
        ("sbatch: {--nice: 1}", "write sbatch's long option without its dashes"),
        ("sbatch: {output: x}", "must not set 'output'"),
        ("sbatch: {clusters: lab}", "use the environment variable SLURM_CLUSTERS"),
        ("sbatch: {quiet: true}", "must not set 'quiet': sbatch's answer names the job"),
        ("sbatch: {partition: gpu}", "must not set 'partition': use `partition`"),
        ("sbatch: {parti: gpu}", "must not set 'parti': use `partition`"),
        ("sbatch: {test-only: true}", "must not set 'test-only': use --dry-run"),
        ("sbatch: {wait: true}", "must not set 'wait': use --wait"),
        ("{gres: gres, sbatch: {gres: 'disk:1'}}", "must not set 'gres'"),
        ("train: {sbatch: {mem: 1G}}", "must not set 'mem': use `memory`"),
        ("notify: {webook: x}", "unknown key 'webook' in `notify`; did you mean 'webhook'?"),
        (
            'setup: ["false\\ntrue"]',
            "`setup` holds a line break or control character: 'false\\ntrue'; give each",
        ),
        ("sbatch: [nice]", "`sbatch` must hold names"),
        ('partition: "a\\nb"', "`partition` holds a line break"),
        ("env: {A-B: 1}", "`env` has a name that no shell takes: 'A-B'"),
        (
            "container: {kind: docker, image: x}",
            "at `container.kind`; it may be apptainer, singularity, pyxis",
        ),
        ("container: {kind: pyxis, image: x, mount: y}", "unknown key 'mount' in `container`"),
        ("executor: pbs", "`executor` is slurm or local, not 'pbs'"),
        ("- a", "it holds a list instead of keys"),
        ("train: fast", "`train` must hold keys of its own"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        site(text)
    assert said in str(error.value)
    assert str(error.value).startswith("site.yaml")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: [1,\nb: }")
    with pytest.raises(UserError, match=r"x\.yaml cannot be read"):
        profiles.load(str(file))


@pytest.mark.parametrize("file", sorted(profiles.CLUSTERS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_profiles_of_the_checkout_are_valid(file: Path) -> None:
    for stage in profiles.STAGES:
        profiles.resolve(profiles.load(file.stem), stage, {})
