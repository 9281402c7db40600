"""Which interpreter a command goes on with, and which environments no run is submitted with."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import pytest

from jobs.run import environment
from tests.support import tiny
from tests.unit.fake_slurm import Site

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = sorted(
    path.relative_to(ROOT)
    for folder in ("launch", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)

GOOD = {
    **{name: "9999" for need in environment._needs() for name, _, below in need[:1] if not below},
    "torch": "2.4.1+cu121",
    "numpy": "1.26.4",
    "mmcv-lite": "2.1.0",
    "setuptools": "80.10.2",
}


# ------------------------------------------------------------------------------- entering the environment


@pytest.mark.parametrize("path", COMMANDS, ids=str)
def test_a_login_nodes_old_python_reads_every_command(path: Path) -> None:
    """Up to the place where it goes on with a newer one, which comes before anything that may be missing."""
    tree = ast.parse((ROOT / path).read_text(), feature_version=(3, 6))
    before = []
    for node in tree.body:
        if ast.unparse(node) in ("import checkout", "import repository"):
            break
        before.append(node)
    else:
        raise AssertionError("it does not enter the environment")
    names = set()
    for node in before:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(f"{node.module}".split(".")[0])
    assert names <= sys.stdlib_module_names
    assert "__future__" not in names  # annotations: since 3.7


def test_a_login_nodes_old_python_reads_what_they_enter_by() -> None:
    entries = ("launch/checkout.py", "benchmarks/repository.py")
    for path in (*entries, "jobs/run/environment.py", "jobs/run/__init__.py", "jobs/__init__.py"):
        text = (ROOT / path).read_text()
        ast.parse(text, feature_version=(3, 6))
        assert "\nfrom __future__" not in text


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without an environment."""
    for folder in ("launch", "jobs", "benchmarks", "env"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def bare(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command, run by an interpreter without a single package."""
    return subprocess.run(
        [sys.executable, "-S", *command],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("path", COMMANDS, ids=str)
def test_outside_the_environment_one_line_says_how_to_get_in(path: Path, checkout: Path) -> None:
    done = bare(checkout, str(path))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: Python 3.")
    assert done.stderr.count("\n") == 1
    assert "lacks msgspec" in done.stderr
    assert "env/setup.sh makes the environment, . .venv/bin/activate enters it" in done.stderr


def test_outside_the_environment_a_command_goes_on_with_the_checkouts_own(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho own >&2\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = bare(checkout, "launch/train.py", "--run", "a b", "--config", "nowhere.py", "--cluster", "local")
    assert done.returncode == 2
    assert done.stderr.startswith("own\nerror: ")
    assert "'a b'" in done.stderr or "nowhere.py" in done.stderr  # the arguments came along
    python.write_text("#!/nowhere/python\n")
    done = bare(checkout, "launch/train.py")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{python} does not start" in done.stderr


# ------------------------------------------------------------------------------------ judging environments


def test_the_environment_of_these_tests_is_fit() -> None:
    assert environment.problems() == []
    assert environment.wanted() == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"torch": "2.1.0"}, None),
        ({"torch": "2.5.0a0+872d972e41.nv24.8"}, None),
        ({"torch": "2.0.1+cu118"}, "torch 2.0.1+cu118 is older than 2.1"),
        ({"torch": "1.13.1"}, "torch 1.13.1 is older than 2.1"),
        ({"torch": "2.2.2", "numpy": "2.0.0"}, "numpy 2.0.0 is too new for torch 2.2.2: numpy<2"),
        ({"torch": "2.3.0", "numpy": "2.0.0"}, None),
        ({"numpy": "1.24.4"}, "numpy 1.24.4 is older than 1.26"),
        ({"mmcv-lite": "", "mmcv": "2.1.0"}, None),
        ({"mmcv-lite": "", "mmcv": "2.2.0"}, "mmcv 2.2.0 is too new: mmcv<2.2"),
        ({"mmcv-lite": ""}, "mmcv-lite is missing"),
        ({"setuptools": "82.0.0"}, "setuptools 82.0.0 is too new: setuptools<81"),
        ({"opencv-python-headless": "", "opencv-python": "4.9.0.80"}, None),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, str], problem: str | None) -> None:
    found = {name: version for name, version in (GOOD | change).items() if version}
    assert environment.problems(found) == ([problem] if problem else [])


def test_only_what_is_missing_or_unfit_is_installed() -> None:
    found = GOOD | {"numpy": "1.20.0", "setuptools": "82.0.0"}
    del found["submitit"], found["torch"]
    names = {line.split("==")[0] for line in environment.wanted(found | {"cloudpickle": "1.0"})}
    assert {"submitit", "setuptools", "numpy"} <= names
    assert not names & {"torch", "torchvision", "cloudpickle", "mmengine", "pytest", "colorama", "mypy"}


@pytest.mark.parametrize(("torch", "numpy"), [("2.2.2", "1.26.4"), ("2.4.1", "2.")])
def test_numpy_is_installed_as_torch_was_built_for_it(torch: str, numpy: str) -> None:
    found = {name: version for name, version in GOOD.items() if name != "numpy"} | {"torch": torch}
    (line,) = [line for line in environment.wanted(found) if line.startswith("numpy==")]
    # There is no NumPy 1 for Python 3.13, nor a torch that would want it.
    assert line.startswith(f"numpy=={numpy}" if sys.version_info < (3, 13) else "numpy==2.")


# ----------------------------------------------------------------------------------------- refusing to submit


@pytest.fixture
def old_torch(tmp_path: Path) -> str:
    """A PYTHONPATH by which the environment seems to hold a torch that is too old."""
    folder = tmp_path / "old"
    (folder / "torch-2.0.1.dist-info").mkdir(parents=True)
    return str(folder)


def train(runs: Path, data: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    arguments = ["--config", "tests/support/configs/tiny.py", "--data-root", str(data), "--cluster", *options]
    return subprocess.run(
        [sys.executable, "launch/train.py", *arguments],
        cwd=ROOT, env=kept | {"BATON_RUNS": str(runs)} | variables,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_no_run_is_submitted_with_what_could_not_resume_it(
    tmp_path: Path, voc_small: Path, old_torch: str
) -> None:
    done = train(tmp_path / "runs", voc_small, "local", PYTHONPATH=old_torch)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {sys.executable} could not train and resume a run: torch 2.0.1 is older than 2.1; "
        f"env/setup.sh --python {sys.executable} installs what it lacks\n"
    )
    assert not list((tmp_path / "runs").glob("*"))


def profile(folder: Path, *lines: str) -> str:
    path = folder / "site.yaml"
    path.write_text("\n".join(["executor: slurm", "gres: none", *lines]) + "\n")
    return str(path)


def test_the_interpreter_that_a_profile_names_is_asked(
    tmp_path: Path, voc_small: Path, old_torch: str
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={old_torch} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = train(tmp_path / "runs", voc_small, profile(tmp_path, f"python: {python}"), "--dry-run")
    assert done.returncode == 2
    assert f"error: {python} could not train and resume a run: torch 2.0.1" in done.stderr
    # One that this machine does not have, or that answers nothing, may well run on the nodes.
    python.write_text("#!/bin/sh\nexit 1\n")
    for unknown in (python, "/nowhere/python"):
        done = train(tmp_path / "runs", voc_small, profile(tmp_path, f"python: {unknown}"), "--dry-run")
        assert done.returncode == 0, done.stderr
    container = ("container: {kind: apptainer, image: /x.sif}", "python: /opt/venv/bin/python")
    done = train(tmp_path / "runs", voc_small, profile(tmp_path, *container), "--dry-run")
    assert done.returncode == 0, done.stderr


def test_what_the_set_up_lines_may_bring_is_not_missed(tmp_path: Path, voc_small: Path) -> None:
    python = tmp_path / "python"
    python.write_text("""#!/bin/sh\necho '{"python": "3.11.7", "problems": ["torch is missing"]}'\n""")
    python.chmod(0o755)
    lines = [f"python: {python}"]
    done = train(tmp_path / "runs", voc_small, profile(tmp_path, *lines), "--dry-run")
    assert done.returncode == 2
    assert "torch is missing" in done.stderr
    lines.append("setup: [module load pytorch]")
    larger = ("--set", "model.data_preprocessor.size=(96, 32)")
    done = train(tmp_path / "runs", voc_small, profile(tmp_path, *lines), "--dry-run", *larger)
    assert done.returncode == 0
    assert "model.data_preprocessor.size is (96, 32), and RandomCrop's crop_size (" in done.stderr


def test_a_training_looks_for_itself_at_its_start(tmp_path: Path, old_torch: str) -> None:
    """What was submitted without a launcher, or runs in a container, was not looked at before."""
    run = tiny.make_run(tmp_path / "run", tiny.make_data(tmp_path / "data"))
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train", str(run.path)],
        cwd=run.code, env=os.environ | {"PYTHONPATH": old_torch}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "could not train and resume a run: torch 2.0.1 is older than 2.1" in done.stderr
    assert "Traceback" not in done.stderr
    assert '"stopped"' in run.events.read_text()


# ------------------------------------------------------------------------------------------ what is required

FOR_OTHERS = {"cityscapesscripts", "matplotlib", "tensorboard"}
"""Imported by mmsegmentation's converter, mmengine's visualizer, PyTorch's writer of TensorBoard's files."""


def test_what_baton_requires_it_imports() -> None:
    text = (ROOT / "env" / "requirements.in").read_text().partition("# development")[0]
    required = {line for line in text.splitlines() if line and not line.startswith("#")} - FOR_OTHERS
    assert len(required) > 10
    imported = set()
    for path in (path for top in ("jobs", "launch") for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    # importlib.metadata.packages_distributions goes by what few wheels have before Python 3.11.
    provided = {name: {Path(file.parts[0]).stem for file in files(name) or ()} for name in required}
    assert {name for name in required if not provided[name] & imported} == set()


def test_paths_may_have_umlauts_in_the_true_c_locale(tmp_path: Path, voc_small: Path) -> None:
    """Without Python's own ways out of it, such a path was half a character each in the report, the request
    and the log."""
    (tmp_path / "ü").mkdir()
    site = Site(tmp_path / "ü", voc_small)
    site.command("sbatch", "echo Submitted batch job 5")
    (tmp_path / "ü" / "data").symlink_to(voc_small)
    true_c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = site.train("--cluster", "slurm", "--data-root", str(tmp_path / "ü" / "data"), **true_c)
    assert done.returncode == 0, done.stderr
    assert f"data_root: {tmp_path}/ü/data\n" in (site.runs / "mine" / "run.yaml").read_text(encoding="utf-8")
    (site.runs / "mine" / "job" / "5_0_log.out").write_text("grün\n", encoding="utf-8")
    for command in (["status"], ["status", "mine"], ["report", "mine"], ["logs", "mine"]):
        done = site(command[0], *command[1:], **true_c)
        assert done.returncode == 0, done.stderr
    assert "grün" in done.stdout
    assert f"{tmp_path}/ü/data" in (site.runs / "mine" / "report.html").read_text(encoding="utf-8")


def test_a_path_that_is_no_text_is_refused(site: Site, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xfc")
    odd.mkdir()
    shutil.copy(ROOT / "tests/support/configs/tiny.py", odd)
    given = ["--cluster", "local", "--config", str(odd / "tiny.py"), "--data-root"]
    for data, said in ((site.data, "which run.yaml cannot hold"), (odd, "bytes that are not UTF-8")):
        done = site("train", *given, str(data))
        assert done.returncode == 2
        assert said in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
