"""Keys and addresses that only their owner may know: looked for wherever a run leaves something."""

from __future__ import annotations

import json
import os
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from jobs.run import notify, secrets
from jobs.run.directory import write_atomically
from jobs.run.settings import Notify, RunSettings
from launch.observe.report import comparison
from launch.observe.report import data as report_data
from launch.observe.report import page as report_page
from launch.submit import job_environment, profiles, runs, snapshot
from tests.commands.test_launch_errors import launch
from tests.unit.made_runs import made_run, with_everything

KEY, HOOK = "k3y-0f-w4ndb", "https://chat.example/hooks/s3cr3t"
PROFILE = f"""
gres: none
env: {{WANDB_API_KEY: {KEY}, NCCL_DEBUG: WARN}}
secrets: {{HF_TOKEN: FILE}}
notify: {{webhook: {HOOK}}}
"""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    token = tmp_path / "token"
    token.write_text("t0k3n-of-hf\n")
    token.chmod(0o600)
    (tmp_path / "mine.yaml").write_text(PROFILE.replace("FILE", str(token)))
    return tmp_path / "mine.yaml"


def train(profile: Path, data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    given = ["--cluster", str(profile), "--config", "tests/support/configs/tiny.py", "--data-root", str(data)]
    return launch("train", *given, "--run", "mine", *more, runs=profile.parent / "runs")


def test_no_secret_is_in_a_dry_run_nor_readable_by_others(profile: Path, voc_small: Path) -> None:
    for which in ("train", "evaluate"):
        shown = train(profile, voc_small, f"--dry-run={which}")
        assert shown.returncode == 0, shown.stderr
        for secret in (KEY, HOOK, "t0k3n"):
            assert secret not in shown.stdout + shown.stderr
        assert "#   env.WANDB_API_KEY: (" in shown.stdout
        assert f'. "$run/job/{which}.env" || exit 2' in shown.stdout
    assert "WANDB_API_KEY stands there in clear" in shown.stderr
    made = train(profile, voc_small, "--no-submit")
    assert made.returncode == 0, made.stderr
    run = profile.parent / "runs" / "mine"
    holding = {}
    for path in run.rglob("*"):
        if path.is_file() and any(secret in path.read_text("latin-1") for secret in (KEY, HOOK, "t0k3n")):
            holding[str(path.relative_to(run))] = path.stat().st_mode & 0o777
    private = {"run.yaml", "job/train.env", "job/evaluate.env", "job/infer.env"}
    assert holding == dict.fromkeys(private, 0o600)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (run / "job").glob("*.sbatch"))


def test_the_job_gets_what_the_files_hold(profile: Path, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    resolved = profiles.resolve(profiles.load(str(profile)), "train", {})
    job_environment.write(run, resolved)
    echo = f". {run.job}/train.env || exit 2; env"
    done = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=True)
    assert {f"WANDB_API_KEY={KEY}", "HF_TOKEN=t0k3n-of-hf", "NCCL_DEBUG=WARN"} <= set(done.stdout.split("\n"))
    assert job_environment.local(resolved.settings)["HF_TOKEN"] == "t0k3n-of-hf"
    (tmp_path / "token").unlink()
    done = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"error: secrets.HF_TOKEN: {tmp_path}/token cannot be read on this node" in done.stderr


def test_a_file_that_others_may_read_is_refused_at_submission(profile: Path, voc_small: Path) -> None:
    token = profile.parent / "token"

    def hold_two_lines() -> None:
        token.write_text("a\nb")
        token.chmod(0o600)

    for change, said in (
        (lambda: token.chmod(0o640), f"others can read {token}: chmod 600"),
        (hold_two_lines, "must hold one line"),
        (lambda: token.unlink(), "cannot be read: No such file"),
    ):
        change()
        done = train(profile, voc_small, "--no-submit")
        assert done.returncode == 2
        assert said in done.stderr
        assert not (profile.parent / "runs" / "mine").exists()


def test_no_secret_is_in_a_report(tmp_path: Path) -> None:
    run = with_everything(tmp_path / "run")
    other = made_run(tmp_path / "other")
    request = run.request()
    cluster = {
        "profile": "mine", "env": {"WANDB_API_KEY": KEY}, "notify": {"webhook": HOOK},
        "evaluate": {"env": {"WANDB_API_KEY": KEY}, "setup": [f"export A_TOKEN={KEY}"]},
    }  # fmt: skip
    request.cluster = msgspec.convert(cluster, RunSettings)
    request.set = {"visualizer.init_kwargs.api_key": KEY, "seed": 3}
    request.command = ["launch/train.py", "--set", f"a.api_key={KEY}", f"--set=b.token={KEY}", "--seed", "3"]
    run.write_request(request)
    both = report_data.gather((run, other))
    for page in (report_page.page(both[0]), comparison.comparison(both)):
        assert KEY not in page
        assert "s3cr3t" not in page
        assert "mine" in page


@pytest.mark.parametrize("way", ["webhook", "webhook_file", "variable"])
def test_a_notification_finds_its_address_and_tells_it_nobody(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if len(got) == 1 else 403)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    address = f"http://127.0.0.1:{server.server_port}/hooks/s3cr3t"
    (tmp_path / "hook").write_text(address + "\n")
    (tmp_path / "hook").chmod(0o600)
    monkeypatch.setenv("MY_HOOK", address)
    spec = {
        "webhook": {"webhook": address},
        "webhook_file": {"webhook_file": str(tmp_path / "hook")},
        "variable": {"webhook": "$MY_HOOK"},
    }[way]
    run = made_run(tmp_path / "run", cluster={"notify": spec})
    for _ in range(2):
        notify.about(run, "finished", "done")
    server.shutdown()
    server.server_close()
    notify.about(run, "finished", "done")  # nobody listens
    for bad in ("s3cr3t", "http://127.0.0.1/s3cr3t with spaces", "$NOT_SET"):
        made = run.request()
        made.cluster.notify = Notify(webhook=bad)
        run.write_request(made)
        notify.about(run, "finished", "done")
    assert [one["event"] for one in got] == ["finished", "finished"]
    said = capfd.readouterr().err
    assert said.count("notification failed") == 5
    assert "HTTP 403" in said
    assert "s3cr3t" not in said


def test_real_profiles_are_in_no_snapshot_and_in_no_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    for folder in ("jobs", "launch", "configs/clusters"):
        (checkout / folder).mkdir(parents=True)
    for name in ("example.yaml", "mine.yaml", "mine.yaml~", "backup.yml"):
        (checkout / "configs" / "clusters" / name).write_text(PROFILE)
    monkeypatch.setattr(snapshot, "CHECKOUT", checkout)
    snapshot.take(tmp_path / "code", tmp_path)
    assert [path.name for path in (tmp_path / "code/configs/clusters").iterdir()] == ["example.yaml"]
    ignored = subprocess.run(
        ["git", "-C", str(runs.CHECKOUT), "check-ignore", "--no-index", "configs/clusters/mine.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    shown = subprocess.run(
        ["git", "-C", str(runs.CHECKOUT), "check-ignore", "--no-index", "configs/clusters/example.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ignored.returncode, shown.returncode) == (0, 1)


def test_what_looks_like_a_secret() -> None:
    for name in ("WANDB_API_KEY", "hf_token", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY", "api-key", "apikey"):
        assert secrets.looks_secret(name), name
    for name in (
        "NCCL_DEBUG",
        "TOKENIZERS_PARALLELISM",
        "KEYBOARD",
        "OMP_NUM_THREADS",
        "monkey",
        "PASS_BAND",
    ):
        assert not secrets.looks_secret(name), name
    assert secrets.in_text("export WANDB_API_KEY=abc") == "WANDB_API_KEY"
    assert secrets.in_text("x --env HF_TOKEN='abc' y") == "HF_TOKEN"
    assert secrets.in_text("--env=HF_TOKEN=abc") == "HF_TOKEN"
    for line in ("export A_TOKEN=$(cat ~/.t)", 'export A_TOKEN="$OTHER"', "module load a", "A_TOKEN="):
        assert secrets.in_text(line) == ""


def test_a_private_file_is_private_from_its_first_byte(tmp_path: Path) -> None:
    """Also where a killed writer has left a temporary file that others can read."""
    left = tmp_path / f".x.{os.getpid()}.tmp"
    left.write_text("left")
    left.chmod(0o666)
    write_atomically(tmp_path / "x", b"secret", private=True)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
