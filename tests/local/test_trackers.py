"""W&B, MLflow and ClearML by their own packages: one run is one run there, and none of them holds it up."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.run import events, trackers
from jobs.run.directory import Run
from tests.stages import wait_until
from tests.unit.made_runs import common, made_run, started, submitted, with_everything, write
from tests.wandb_files import Told
from tests.wandb_server import WandbServer

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def needs(name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(
        missing, reason=f"{name} is not installed: env/setup.sh --with track installs it"
    )


KILLED_ONCE = (
    "baton.save_seconds=0",
    "custom_imports={'imports': ['tests.support.slurm_faults'], 'allow_failed_imports': False}",
    "custom_hooks=[{'type': 'Fault', 'plan': [{'step': 9, 'do': 'kill'}]}]",
)
"""18 steps, a checkpoint and a validation after 6, 12 and 18; killed before the ninth, so that 7 and 8 are
done again."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    services = ("SLURM", "BATON", "WANDB", "MLFLOW", "CLEARML")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(services)}
    own = {"BATON_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # Keys that lie in the user's own home are not for these tests.
    return kept | own | {"HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def call(environment: dict[str, str], script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"launch/{script}.py", *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


def trained(environment: dict[str, str], data: Path, *arguments: object) -> Run:
    """A run that was killed once, with its evaluation; nothing but the services is different from others."""
    done = call(
        environment, "train", "--cluster", "local", "--config", "tests/support/configs/tiny.py", "--gpus", 1,
        "--run", "mine", "--data-root", data, "--set", *KILLED_ONCE, "--wait", *arguments,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(Path(environment["BATON_RUNS"]) / "mine")
    names = [event["event"] for event in events.iterate(run.events)]
    assert (names.count("started"), names.count("finished"), names.count("evaluated")) == (2, 1, 1)
    return run


def without_waiting(said: str) -> list[str]:
    """All but that a service is waited for: on a busy machine the import of its package takes that long."""
    return [line for line in said.splitlines() if " has not answered yet" not in line]


def state_of(run: Run, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((run.path / "track" / f"{name}.json").read_text()))
    except FileNotFoundError:
        return {}


def expected(run: Run) -> dict[int, float]:
    """Step -> loss; of a step that was done twice, the newer."""
    found = {}
    for line in run.metrics.read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "train":
            found[row["step"]] = row["loss"]
    return found


@pytest.fixture
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    yield server
    server.close()


@needs("wandb")
def test_wandb(environment: dict[str, str], voc_small: Path, wandb_server: WandbServer) -> None:
    """The config names the backend, as mmengine has it; offline, since there is no key."""
    backends = "[{'type':'LocalVisBackend'},{'type':'WandbVisBackend','init_kwargs':{'project':'mine'}}]"
    drawn = ("default_hooks.visualization.draw=True", "default_hooks.visualization.interval=4")
    run = trained(environment, voc_small, "--set", f"visualizer.vis_backends={backends}", *drawn)
    wait_until(lambda: state_of(run, "wandb").get("evaluation") and not state_of(run, "wandb")["open"], 180)
    told = Told(run.path / "track" / "wandb")
    assert told.ids == {trackers.id_of("mine", run.request().created)}
    assert (told.run.project, told.run.display_name, list(told.run.tags)) == (
        "mine",
        "mine",
        ["baton", "tiny"],
    )
    assert [row["_step"] for row in told.rows] == list(range(1, 19))
    assert {row["_step"]: row["train/loss"] for row in told.rows} == expected(run)
    assert [row["_step"] for row in told.rows if "val/mIoU" in row] == [6, 12, 18]
    assert any(name.startswith("pictures/") for name in told.rows[5])
    assert told.summary["run/interruptions"] == 1
    assert {"run/ettr", "run/checkpoint/step", "eval/mIoU", "eval/IoU/background"} <= told.summary.keys()
    assert told.config["config.optim_wrapper.optimizer.lr"] == 0.01
    again = call(environment, "track", "mine")
    assert again.returncode == 0, again.stderr
    assert f"as {told.run.run_id}, up to step 18; offline, in {run.path}" in again.stdout
    assert len(Told(run.path / "track" / "wandb").rows) == 18, "nothing is sent twice"
    # As docs/tracking.md has it: the folders of all starts become one run.
    folders = sorted((run.path / "track" / "wandb").glob("offline-run-*"))
    assert len(folders) > 1
    key = {"WANDB_BASE_URL": wandb_server.address, "WANDB_API_KEY": "0" * 40}
    command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
    subprocess.run(command, env=environment | key, check=True, timeout=120, cwd=run.path)
    assert wandb_server.runs.keys() == told.ids
    assert [row["_step"] for row in wandb_server.rows(told.run.run_id)] == list(range(1, 19))
    summary = wandb_server.summary(told.run.run_id)
    assert {"run/interruptions", "eval/mIoU", "eval/IoU/background", "val/mIoU"} <= summary.keys()
    assert summary["train/loss"] == expected(run)[18]


@needs("wandb")
def test_wandb_online(environment: dict[str, str], voc_small: Path, wandb_server: WandbServer) -> None:
    """Each start takes up the run that is there."""
    environment |= {"WANDB_BASE_URL": wandb_server.address, "WANDB_API_KEY": "0" * 40}
    run = trained(environment, voc_small, "--track", "wandb")
    name = trackers.id_of("mine", run.request().created)
    wait_until(lambda: state_of(run, "wandb").get("evaluation") and not state_of(run, "wandb")["open"], 180)
    assert wandb_server.runs.keys() == {name}
    rows = wandb_server.rows(name)
    assert [row["_step"] for row in rows] == list(range(1, 19))
    assert {row["_step"]: row["train/loss"] for row in rows} == expected(run)
    summary = wandb_server.summary(name)
    assert summary["run/interruptions"] == 1
    assert {"eval/mIoU", "eval/IoU/background"} <= summary.keys()
    assert wandb_server.about[name]["displayName"] == "mine"


@needs("wandb")
def test_what_a_killed_process_had_written_is_written_anew(environment: dict[str, str]) -> None:
    run = begun(environment, 5)
    command = [sys.executable, "launch/track.py", "mine", "--to", "wandb", "--follow"]
    sender = subprocess.Popen(command, cwd=ROOT, env=environment)
    wait_until(lambda: state_of(run, "wandb").get("sent") == 5, 180)
    sender.send_signal(signal.SIGKILL)
    sender.wait()
    # Another was killed before it could note that it had begun, and has left a file that ends in its middle.
    (torn,) = (run.path / "track" / "wandb").glob("offline-run-*")
    shutil.copytree(torn, torn.with_name(torn.name.replace("offline-run-2", "offline-run-1")))
    rows(run, 1, 7, 12)
    saved(run, 30, 12)
    write(run, 31, "finished", step=12, epoch=1, **common(1))
    done = call(environment, "track", "mine", "--to", "wandb")
    assert done.returncode == 0, done.stdout + done.stderr
    told = Told(run.path / "track" / "wandb")
    assert [row["_step"] for row in told.rows] == list(range(1, 13))
    assert len(told.files) == 1


def begun(environment: dict[str, str], step: int) -> Run:
    """A run that has done six steps, and has a checkpoint of one."""
    run = made_run(Path(environment["BATON_RUNS"]) / "mine")
    submitted(run)
    started(run, 1, 1)
    rows(run, 1, 1, 6)
    saved(run, 20, step)
    return run


def settled(environment: dict[str, str]) -> Run:
    run = begun(environment, 6)
    write(run, 31, "finished", step=6, epoch=1, **common(1))
    return run


@needs("wandb")
def test_what_wandb_throws_away_does_not_count_as_sent(environment: dict[str, str]) -> None:
    run = settled(environment)
    done = call(environment | {"WANDB_MODE": "disabled"}, "track", "mine", "--to", "wandb")
    assert done.returncode == 1
    first, second = without_waiting(done.stdout)
    assert first.startswith("wandb did not accept the curves: W&B is switched off (mode disabled)")
    assert second == "wandb does not have all of mine yet"
    for mode in ("dryrun", "offline"):  # two words for the same
        done = call(environment | {"WANDB_MODE": mode}, "track", "mine", "--to", "wandb")
        assert done.returncode == 0, done.stdout + done.stderr
        told = Told(run.path / "track" / "wandb")
        assert [row["_step"] for row in told.rows] == list(range(1, 7))


@needs("clearml")
@pytest.mark.parametrize("words", ["true", "YES", "1"])
def test_clearml_is_offline_by_every_word_that_it_knows(words: str, environment: dict[str, str]) -> None:
    settled(environment)
    environment |= {"CLEARML_API_ACCESS_KEY": "0" * 20, "CLEARML_API_SECRET_KEY": "0" * 40}
    environment |= {"CLEARML_API_HOST": "http://127.0.0.1:1", "CLEARML_OFFLINE_MODE": words}
    done = call(environment, "track", "mine", "--to", "clearml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "up to step 6; offline, in " in done.stdout


@needs("mlflow")
def test_what_mlflow_says_is_shown_whole(environment: dict[str, str], tmp_path: Path) -> None:
    settled(environment)
    environment["MLFLOW_TRACKING_URI"] = str(tmp_path / "mlruns")
    done = call(environment, "track", "mine", "--to", "mlflow")
    assert done.returncode == 1
    first, second = without_waiting(done.stdout)
    assert "MLFLOW_ALLOW_FILE_STORE=true" in first  # at its end it says what helps
    assert second == "mlflow does not have all of mine yet"  # and nothing of an empty file


@pytest.fixture
def mlflow_server(tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination", str(tmp_path / "artifacts"),
    ]  # fmt: skip
    with (tmp_path / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
        )
    try:

        def healthy() -> bool:
            assert server.poll() is None, (tmp_path / "mlflow.log").read_text()
            try:
                return bool(urllib.request.urlopen(f"{address}/health", timeout=5).status == 200)
            except OSError:
                return False

        wait_until(healthy, 180)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@needs("mlflow")
def test_mlflow(environment: dict[str, str], voc_small: Path, mlflow_server: str) -> None:
    from mlflow.tracking import MlflowClient

    environment["MLFLOW_TRACKING_URI"] = mlflow_server
    run = trained(environment, voc_small, "--track", "mlflow")
    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("baton")

    def told() -> Any:
        (one,) = client.search_runs([experiment.experiment_id])
        return one

    wait_until(lambda: "eval/mIoU" in told().data.metrics and told().info.status == "FINISHED", 180)
    one = told()
    assert (one.info.run_name, one.data.tags["baton.id"]) == (
        "mine",
        trackers.id_of("mine", run.request().created),
    )
    history = client.get_metric_history(one.info.run_id, "train/loss")
    assert sorted(metric.step for metric in history) == list(range(1, 19))
    assert {metric.step: metric.value for metric in history} == expected(run)
    assert sorted(metric.step for metric in client.get_metric_history(one.info.run_id, "val/mIoU")) == [
        6,
        12,
        18,
    ]
    assert one.data.metrics["run/interruptions"] == 1
    assert {"run/ettr", "run/checkpoint/step", "eval/IoU/background"} <= one.data.metrics.keys()
    assert one.data.params["config.optim_wrapper.optimizer.lr"] == "0.01"
    # A start that ended as soon as it had made the run there: the next one sends all that is missing.
    client.delete_run(one.info.run_id)
    client.create_run(experiment.experiment_id, tags={"baton.id": one.data.tags["baton.id"]})
    assert call(environment, "track", "mine", "--to", "mlflow").returncode == 0
    assert told().data.params == one.data.params
    assert told().data.metrics.keys() == one.data.metrics.keys()


@needs("clearml")
def test_clearml(environment: dict[str, str]) -> None:
    """Offline, several processes one after the other: the last session has all, and is the only one."""
    run = with_everything(Path(environment["BATON_RUNS"]) / "mine")
    for _ in range(2):
        done = call(environment, "track", "mine", "--to", "clearml")
        assert done.returncode == 0, done.stdout + done.stderr + (run.path / "track/clearml.log").read_text()
    (session,) = (run.path / "track" / "clearml").rglob("*.zip")
    with zipfile.ZipFile(session) as archive:
        task = json.loads(archive.read("task.json"))
        told = [json.loads(line) for line in archive.read("metrics.jsonl").splitlines()]
    assert (task["name"], trackers.id_of("mine", run.request().created) in task["tags"]) == ("mine", True)
    flat = [one for batch in told for one in (batch if isinstance(batch, list) else [batch])]
    losses = [one["iter"] for one in flat if (one.get("metric"), one.get("variant")) == ("train", "loss")]
    assert sorted(losses) == sorted(set(losses))
    assert max(losses) >= 399
    single = {one["variant"] for one in flat if "ummary" in str(one.get("metric"))}
    assert {"run/interruptions", "run/ettr", "run/checkpoint/step", "eval/mIoU"} <= single
    (table,) = (one for one in flat if (one.get("metric"), one.get("variant")) == ("eval", "classes"))
    (plot,) = json.loads(table["plot_str"])["data"]
    assert (plot["header"]["values"][:2], plot["cells"]["values"][0]) == (
        ["class", "IoU"],
        ["background", "<b>cat</b>", "dog"],
    )
    assert plot["cells"]["values"][1] == [50.0, 51.0, 52.0]


@pytest.fixture
def stalled() -> Iterator[str]:
    """The address of a server that takes every connection and answers none."""
    listener, taken = socket.create_server(("127.0.0.1", 0)), []

    def take() -> None:
        while True:
            try:
                taken.append(listener.accept()[0])
            except OSError:
                return

    threading.Thread(target=take, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    assert taken, "nobody has called the server: the test shows nothing"
    for connection in taken:
        connection.close()


@needs("clearml")
def test_by_hand_a_service_that_never_answers_is_not_waited_for(
    environment: dict[str, str], stalled: str
) -> None:
    settled(environment)
    environment |= {f"CLEARML_{name}_HOST": stalled for name in ("API", "WEB", "FILES")}
    environment |= {"CLEARML_API_ACCESS_KEY": "0" * 20, "CLEARML_API_SECRET_KEY": "0" * 40}
    sooner = (
        "import sys; sys.path.insert(0, 'launch'); import track; from launch.observe.tracking import sending;"
        "sending.SAY, sending.ANSWERS = 2.0, 8.0; sys.argv[1:] = ['mine', '--to', 'clearml']; track.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", sooner], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 1, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "clearml has not answered yet: waiting 8 s at most"
    assert second.startswith("clearml does not answer: nothing is sent")


@needs("wandb")
@needs("mlflow")
@needs("clearml")
def test_services_that_stall(environment: dict[str, str], voc_small: Path, stalled: str) -> None:
    """The run goes its way, and says what is missing there."""
    environment |= {"MLFLOW_TRACKING_URI": stalled, "WANDB_BASE_URL": stalled, "WANDB_API_KEY": "0" * 40}
    environment |= {f"CLEARML_{name}_HOST": stalled for name in ("API", "WEB", "FILES")}
    environment |= {"CLEARML_API_ACCESS_KEY": "0" * 20, "CLEARML_API_SECRET_KEY": "0" * 40}
    run = trained(environment, voc_small, "--track", "wandb", "--track", "mlflow", "--track", "clearml")
    assert expected(run).keys() == set(range(1, 19))
    assert not [event for event in events.iterate(run.events) if event["event"] in ("hang", "stopped")]
    words = "".join(path.read_text() for path in run.job.glob("*train_0_log.out"))
    assert "a service has not accepted all curves; the evaluation sends what is missing" in words
    assert not any(state_of(run, name).get("evaluation") for name in ("wandb", "mlflow", "clearml"))


@needs("mlflow")
def test_a_service_that_is_down(environment: dict[str, str], voc_small: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{free.getsockname()[1]}"
        run = trained(environment, voc_small, "--track", "mlflow")
    words = "".join(path.read_text() for path in run.job.glob("*_log.out"))
    assert "mlflow did not accept the curves" in words


def rows(run: Run, start: int, begin: int, end: int) -> None:
    with run.metrics.open("a") as file:
        for step in range(begin, end + 1):
            row = {"step": step, "epoch": 0, "start": start, "kind": "train", "loss": 1 / step}
            file.write(json.dumps(row) + "\n")


def saved(run: Run, at: float, step: int) -> None:
    fields = {"epoch": 0, "path": f"iter_{step}.pth", "bytes": 1, "seconds": 0.5, "why": "time"}
    write(run, at, "checkpoint", step=step, **fields, **common(1))
