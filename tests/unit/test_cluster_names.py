"""A machine that the test cluster cannot be started on, for its own name does not resolve."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.submit import machine
from tests.support.cluster import config
from tests.unit.fake_slurm import ROOT, one_line


def test_the_start_ends_in_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    command = ["unshare", "--uts", "sh", "-c", 'hostname baton.invalid && exec "$@"', "sh"]
    if os.getuid() != 0 or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("giving this process a host name of its own needs root")
    command += [sys.executable, "-m", "tests.support.cluster.up", str(tmp_path / "c")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    one_line(done, "'baton.invalid' does not resolve", "echo 127.0.0.1 baton.invalid >> /etc/hosts")
    assert not (tmp_path / "c").exists()


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    assert machine.user() == "4242"
    with pytest.raises(config.UserError, match="no user name for uid 4242"):
        config.check_names()


def test_a_name_that_does_not_resolve_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    config.check_names()
    monkeypatch.setattr(socket, "gethostname", lambda: "baton.invalid")
    with pytest.raises(config.UserError, match=r"baton\.invalid"):
        config.check_names()
