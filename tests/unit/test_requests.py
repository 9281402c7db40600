"""What a run directory is made of: versions, and the snapshot of the code."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path

import pytest

from launch.submit import creation as requests
from launch.submit import snapshot


def test_versions_are_those_of_the_packages_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = requests.versions()
    for package in requests.PACKAGES:
        try:
            installed = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        assert found.get(package) == installed
    assert "submitit" in found

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(requests, "CHECKOUT", tmp_path)
    assert "git" not in requests.versions()
    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-qm", "a")
    git("tag", "v1")  # which is not what is told
    commit = git("rev-parse", "HEAD")
    assert requests.versions()["git"] == commit
    (tmp_path / "file").write_text("b")
    assert requests.versions()["git"] == f"{commit} with changes"


def test_the_snapshot_of_a_read_only_checkout_can_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    for folder in ("jobs/part", "jobs/__pycache__", "launch", "configs"):
        (checkout / folder).mkdir(parents=True)
    (checkout / "jobs/part/a.py").write_bytes(b"a = 1\r\n")
    (checkout / "jobs/part/a.py").chmod(0o400)
    for skipped in ("jobs/__pycache__/a.pyc", "jobs/.hidden", "jobs/part/b.pyc"):
        (checkout / skipped).touch()
    (checkout / "configs/linked.py").symlink_to(checkout / "jobs/part/a.py")
    monkeypatch.setattr(snapshot, "CHECKOUT", checkout)
    snapshot.take(tmp_path / "code", tmp_path)
    files = {str(path.relative_to(tmp_path / "code")) for path in (tmp_path / "code").rglob("*.*")}
    assert files == {"jobs/part/a.py", "configs/linked.py"}
    assert (tmp_path / "code/configs/linked.py").read_bytes() == b"a = 1\r\n"
    assert not (tmp_path / "code/configs/linked.py").is_symlink()
    assert (tmp_path / "code/jobs/part/a.py").stat().st_mode & 0o200
