"""The batch script: the tracked ones are what is rendered, and nothing of a user's text becomes shell."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.run import image
from jobs.run.directory import Run
from jobs.run.errors import UserError
from launch.submit import batch_script as script
from launch.submit import job_environment, profiles
from launch.submit.executors import local

ROOT = Path(__file__).resolve().parents[2]
NASTY = ["a b", "a'b", 'a"b', "a;touch x", "$(touch x)", "`touch x`", "a&b", "-x", "%j", "a#b", "é"]


def resolved(text: str = "", stage: str = "train", **chosen: object) -> profiles.Resolved:
    raw = yaml.load(text, yaml.BaseLoader) if text else {}
    return profiles.resolve(profiles.parse(raw, "site.yaml", "site"), stage, dict(chosen))


def batch(run: Path, text: str = "", stage: str = "train", **options: object) -> script.Batch:
    return script.Batch(resolved=resolved(text, stage), name="x", run=run, checkout=ROOT, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", profiles.STAGES)
def test_the_tracked_scripts_are_what_the_launchers_render(stage: str) -> None:
    assert (ROOT / "jobs" / f"{stage}.sbatch").read_text() == script.tracked(stage)


def fake_commands(folder: Path) -> Path:
    """`srun` and `python` that write down their arguments, one a line, in place of running anything."""
    bin = folder / "bin"
    bin.mkdir()
    for name in ("srun", "scontrol", "squeue"):
        (bin / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {shlex.quote(str(folder))}/{name}.args\n')
        (bin / name).chmod(0o755)
    return bin


@pytest.mark.parametrize("nasty", NASTY)
def test_nasty_paths_and_values_arrive_as_they_are(nasty: str, tmp_path: Path) -> None:
    run = tmp_path / nasty / "run"
    (run / "code").mkdir(parents=True)
    (run / "job").mkdir()
    one = batch(run, "gres: none", "infer", arguments=["--", nasty])
    one.resolved.settings.env["VALUE"] = nasty
    job_environment.write(Run(run), one.resolved)
    bin = fake_commands(tmp_path)
    environment = {"PATH": f"{bin}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    subprocess.run(
        ["bash", "-s"], input=script.text(one), text=True, env=environment, cwd=tmp_path, check=True
    )
    arguments = (tmp_path / "srun.args").read_text().splitlines()
    assert arguments[-1] == nasty
    assert str(run) in arguments
    assert f"--output={str(run).replace('%', '%%')}/job/7_%t_log.out" in arguments
    assert not list(tmp_path.rglob("x"))
    assert subprocess.run(["bash", "-n"], input=script.text(one), text=True, check=False).returncode == 0


def test_directives_say_what_was_asked_for() -> None:
    text = """
partition: gpu
gres: gres
gpu_type: a100
memory: 64G
exclude: [n1, n2]
sbatch: {mail-type: END, exclusive: true}
"""
    one = script.Batch(
        resolved=resolved(text, gpus=4, nodes="2", cpus_per_gpu=3), name="x", run=Path("/r/x"), checkout=ROOT
    )
    lines = script.text(one).splitlines()
    for line in (
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=3",
        "--gres=gpu:a100:4",
        "--mem=64G",
        "--exclude=n1,n2",
        "--mail-type=END",
        "--exclusive",
        "--signal=USR2@120",
        "--requeue",
        "--output=/r/x/job/%j_log.out",
    ):
        assert f"#SBATCH {line}" in lines
    assert "#   gpus: 4 (command line)" in lines
    assert "#   partition: 'gpu' (site.yaml)" in lines
    assert "#   sbatch.mail-type: 'END' (site.yaml)" in lines


def test_a_range_of_nodes_leaves_the_tasks_to_srun() -> None:
    settings = resolved("{}", gpus=4, nodes="1-2", cpus_per_gpu=3)
    text = script.text(script.Batch(resolved=settings, name="x", run=Path("/r/x"), checkout=ROOT))
    assert "#SBATCH --nodes=1-2\n" in text
    assert "#SBATCH --mincpus=12\n" in text
    assert "#SBATCH --ntasks" not in text
    assert "#SBATCH --cpus-per-task" not in text
    assert "SLURM_CPUS_PER_TASK" not in text
    assert "srun --kill-on-bad-exit=1 --ntasks-per-node=4 --cpus-per-task=3 " in text


def test_a_container_sees_the_folder_of_the_archives(tmp_path: Path) -> None:
    for text, words in (
        ("container: {kind: apptainer, image: x.sif}", "--bind '/a b/archives'"),
        ("container: {kind: pyxis, image: x}", "'/a b/archives':'/a b/archives'"),
    ):
        one = batch(tmp_path, f"prepare: {{{text}}}", "prepare", mounts=[Path("/a b/archives")])
        assert words in script.text(one)


def test_a_preparation_is_told_of_its_time_limit_and_goes_on() -> None:
    text = script.text(batch(Path("/r/x"), stage="prepare"))
    assert "#SBATCH --signal=USR2@120\n" in text
    assert '-m jobs.slurm.afterwards prepare "$run" "$code")' in text
    # The successor of a job by the tracked script gets the same arguments.
    assert '-m jobs.slurm.afterwards prepare "$run" "$code" "$@")' in script.tracked("prepare")
    assert '-m jobs.slurm.afterwards infer "$run" "$code" "$name" "$@")' in script.tracked("infer")


def test_a_successor_is_submitted_in_advance_only_where_the_profile_says_so() -> None:
    text = script.text(batch(Path("/r/x"), "presubmit: 'true'"))
    assert text.index('jobs.supervise.afterwards "$run" --presubmit') < text.index("while :; do")
    assert "--presubmit" not in script.text(batch(Path("/r/x")))
    assert "--presubmit" not in script.text(batch(Path("/r/x"), "presubmit: 'true'", "evaluate"))


def test_a_cpu_job_asks_for_no_gpu() -> None:
    assert "gpu" not in "\n".join(
        line for line in script.text(batch(Path("/r/x"), stage="prepare")).splitlines() if "#SBATCH" in line
    )


def run_script(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    bin = fake_commands(folder)
    environment = {"PATH": f"{bin}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    return subprocess.run(
        ["bash", "-s"], input=text, text=True, env=environment, cwd=folder, capture_output=True, check=False
    )


def test_a_setup_line_that_fails_ends_the_job_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    one = batch(tmp_path, "setup: ['true', 'ls /nowhere', 'touch reached']", "evaluate")
    done = run_script(script.text(one), tmp_path)
    assert done.returncode == 2  # ls's own
    assert "error: set-up line failed: ls /nowhere (exit code 2)" in done.stderr
    assert not (tmp_path / "reached").exists()
    assert not (tmp_path / "srun.args").exists()


@pytest.mark.parametrize("line", ["set -e", "set -euo pipefail", "trap 'exit 1' ERR", "trap - USR2 TERM"])
def test_no_setup_line_keeps_a_preempted_training_from_coming_back(line: str, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    bin = fake_commands(tmp_path)
    (bin / "srun").write_text("#!/bin/sh\nkill -TERM $PPID\nexit 85\n")  # saved and left
    text = script.text(batch(tmp_path, f'setup: ["{line}"]'))
    host = shlex.quote(sys.executable)
    assert f"host_python={host}" in text
    (bin / "python").write_text(f'#!/bin/sh\necho "$@" > {shlex.quote(str(tmp_path))}/afterwards\nexit 85\n')
    (bin / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", "-s"],
        input=text.replace(f"host_python={host}", f"host_python={shlex.quote(str(bin / 'python'))}"),
        text=True,
        env={"PATH": f"{bin}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 85
    told = (tmp_path / "afterwards").read_text()
    assert told == f"-m jobs.supervise.afterwards {tmp_path} --exit-code 85\n"


@pytest.mark.parametrize("place", ["/x/n\ntouch PWN;#/r", "/x/back\\slash"])
@pytest.mark.parametrize("stage", ["train", "infer"])
def test_a_path_that_no_directive_can_carry_is_refused(place: str, stage: str) -> None:
    with pytest.raises(UserError, match="control character"):
        script.text(batch(Path(place), stage=stage))


def test_a_profile_whose_file_name_would_be_a_command_is_refused() -> None:
    profile = profiles.parse({"partition": "gpu"}, "a\ntouch PWN\n.yaml", "a")
    one = script.Batch(resolved=profiles.resolve(profile, "train", {}), name="x", run=Path("/r/x"))
    with pytest.raises(UserError, match="a batch script cannot contain a line break"):
        script.text(one)


def test_a_script_that_makes_its_run_does_so_in_the_place_it_was_printed_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_RUNS", str(tmp_path / "two words"))
    one = batch(tmp_path / "two words" / "x", made=False, make=["train", "--run", "x"])
    assert f"exec env BATON_RUNS='{tmp_path}/two words' \"$host_python\" {ROOT}/launch/train.py --run x)" in (
        script.text(one)
    )


def test_a_container_is_put_before_the_interpreter_and_not_before_the_requeueing() -> None:
    apptainer = "container: {kind: apptainer, image: /i/a b.sif, mounts: ['/scratch']}"
    text = script.text(batch(Path("/r/x"), apptainer))
    assert "apptainer exec --nv --bind" in text
    assert "'/i/a b.sif' \"$python\" -u -m jobs.train" in text
    assert '\n  (trap "" USR2 TERM; exec "$host_python" -m jobs.supervise.afterwards' in text
    pyxis = script.text(batch(Path("/r/x"), "container: {kind: pyxis, image: 'nvcr.io#x'}"))
    assert "--container-image='nvcr.io#x'" in pyxis


def test_the_shells_own_names_are_those_that_a_profile_may_not_set() -> None:
    texts = [script.tracked(stage) for stage in profiles.STAGES]
    texts += [script.text(batch(Path("/r/x"), "setup: ['true']", stage)) for stage in profiles.STAGES]
    texts.append(script.text(batch(Path("/r/x"), elements=3)))
    found = {name for text in texts for name in re.findall(r"(?m)(?:^|[\s{;(])([a-z_]\w*)=", text)}
    assert found == profiles.SCRIPT_VARIABLES


def test_tasks_run_from_the_image_where_their_code_can(tmp_path: Path) -> None:
    setting = "{environment: image, stage: '$TMPDIR/a b'}"
    command = f""" "$python" -S -c '{image.START}' '$TMPDIR/a b' -u -m jobs."""
    older = """ "$python" -m jobs.supervise.image '$TMPDIR/a b' -u -m jobs."""
    for stage in profiles.STAGES:
        assert command + stage in script.text(batch(tmp_path / "no-run", setting, stage, made=False))
        assert command + stage in script.text(batch(tmp_path / "being-made", setting, stage))
    (tmp_path / "code/jobs/supervise").mkdir(parents=True)
    assert command not in script.text(batch(tmp_path, setting))  # code that is older
    (tmp_path / "code/jobs/supervise/image.py").touch()
    assert older in script.text(batch(tmp_path, setting))
    (tmp_path / "code/jobs/supervise/unpacking.py").touch()
    assert command in script.text(batch(tmp_path, setting))
    boxed = "{environment: image, stage: /local, container: {kind: apptainer, image: x.sif}}"
    assert f"""x.sif "$python" -S -c '{image.START}' /local -u""" in script.text(batch(tmp_path, boxed))
    pyxis = script.text(batch(tmp_path, boxed.replace("apptainer", "pyxis")))
    assert "--container-image=x.sif " in pyxis
    assert f""" baton "$python" -S -c '{image.START}' /local -u -m jobs.train "$run\"""" in pyxis


def test_a_local_run_takes_no_image() -> None:
    with pytest.raises(UserError, match=r"site\.yaml.*: `environment` is for Slurm jobs; a local run uses"):
        local.check(resolved("{environment: image, stage: /local}"))


@pytest.mark.parametrize(
    ("text", "says"),
    [("environment: image", "environment` needs `stage`"), ("environment: tar", "'tar'")],
)
def test_an_environment_that_cannot_be_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError) as raised:
        resolved(text)
    assert says in str(raised.value)


def test_no_setup_line_takes_the_names_of_the_shell(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    lines = [f"{name}=/nowhere" for name in sorted(profiles.SCRIPT_VARIABLES)]
    done = run_script(script.text(batch(tmp_path, f"setup: {lines}", "evaluate")), tmp_path)
    assert done.returncode == 0, done.stderr
    arguments = (tmp_path / "srun.args").read_text().splitlines()
    assert f"--output={tmp_path}/job/7_%t_log.out" in arguments
    assert str(tmp_path) in arguments
    assert sys.executable in arguments


@pytest.mark.parametrize("stage", profiles.STAGES)
def test_what_a_shell_inside_srun_leaves_behind_reaches_no_step(stage: str) -> None:
    lines = script.tracked(stage).splitlines()
    leaked = [
        "SLURM_CPU_BIND",
        "SLURM_CPU_BIND_LIST",
        "SLURM_MPI_TYPE",
        "SLURM_EXPORT_ENV",
        "SRUN_EXPORT_ENV",
        "SLURM_CLUSTERS",
    ]
    first = next(number for number, line in enumerate(lines) if line.lstrip().startswith("srun "))
    begin = next(number for number, line in enumerate(lines) if line.startswith("unset "))
    end = next(number for number in range(begin, first) if not lines[number])
    given = dict.fromkeys(leaked, "NONE") | {"PATH": os.environ["PATH"], "SLURM_NTASKS": "2"}

    def left(**memory: str) -> dict[str, str]:
        done = subprocess.run(
            ["bash", "-c", "\n".join([*lines[begin:end], "env"])],
            env=given | memory, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return dict(
            line.split("=", 1) for line in done.stdout.splitlines() if line.startswith(("SLURM_", "SRUN_"))
        )

    assert left() == {"SLURM_NTASKS": "2"}
    for name in ("NODE", "CPU", "GPU"):
        assert left(**{f"SLURM_MEM_PER_{name}": "5"})[f"SLURM_MEM_PER_{name}"] == "5"
    assert left(SLURM_MEM_PER_NODE="5", SLURM_MEM_PER_CPU="3") == {"SLURM_NTASKS": "2"}
    assert left(SLURM_MEM_PER_NODE="5", SLURM_MEM_PER_GPU="3") == {"SLURM_NTASKS": "2"}
