"""The settings that a bare root gets of its machine, and that nothing of it is left. The roots themselves are
played by `make bare`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from env import bare_root, container_test
from jobs.run.errors import UserError
from tests.unit.fake_slurm import ROOT

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
# another
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://tools.example/debian
Suites: nodistro bookworm-pgdg
Components: main

Enabled: no
Types: deb
URIs: http://old.example/debian
Suites: bookworm
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    etc = tmp_path / "etc"
    (etc / "apt/sources.list.d").mkdir(parents=True)
    (etc / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    (etc / "apt/sources.list.d/debian.sources").write_text(DEB822)
    (etc / "apt/sources.list").write_text(
        "deb [arch=amd64] http://line.example/debian bookworm main\n# deb http://no.example/ bookworm main\n"
    )
    return etc


def test_the_mirror_is_this_machines_with_the_release_put_in(machine: Path) -> None:
    assert bare_root.sources("trixie", None, machine).splitlines() == [
        "deb http://line.example/debian trixie main",
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/debian-security trixie-security main",
    ]
    assert bare_root.sources("sid", None, machine).splitlines() == [
        "deb http://line.example/debian sid main",
        "deb http://mirror.example/debian sid main",
    ]
    assert bare_root.sources("sid", "http://mine.example", machine) == "deb http://mine.example sid main\n"
    (machine / "os-release").write_text("ID=other\nVERSION_CODENAME=bookworm\n")
    with pytest.raises(UserError, match="--mirror"):
        bare_root.sources("trixie", None, machine)


def test_package_settings_are_taken_along_and_nothing_else(tmp_path: Path) -> None:
    given = {
        "https_proxy": "http://proxy:3128", "SSL_CERT_FILE": "/c.pem", "PIP_INDEX_URL": "x", "UV_INDEX": "y",
        "PIP_CACHE_DIR": "/root/.cache", "HOME": "/root", "SLURM_CONF": "x", "PYTHONPATH": "x", "LANG": "C",
    }  # fmt: skip
    assert sorted(bare_root.settings(given)) == ["PIP_INDEX_URL", "SSL_CERT_FILE", "UV_INDEX", "https_proxy"]
    wheels, index, file = tmp_path / "wheels", tmp_path / "pypi/simple", tmp_path / "constraints.txt"
    wheels.mkdir()
    index.mkdir(parents=True)
    file.touch()
    text = f"find-links = {wheels} /nowhere\nextra-index-url = file://{index}\n    https://x.example/simple"
    assert bare_root.on_disk([text, f"constraint={file}"]) == {wheels, index.parent, file}
    # What is left of an earlier run's sharing hides nothing; what the root has of its own stays.
    assert not bare_root.holds_something(wheels)
    assert bare_root.holds_something(tmp_path)


def run(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "env/bare_root.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | options)


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    for arguments, said in (
        (("trixie", "--root", str(tmp_path), "--", "true"), "is not a root that this program made"),
        (("trixie", "--share", "/nowhere", "--", "true"), "no such file"),
    ):
        done = run(*arguments)
        if os.getuid() != 0:
            assert (done.returncode, "is made as root" in done.stderr) == (3, True)
        else:
            assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert (
        run("buzz", "--", "true").returncode == run("trixie", "--include", "a b", "--", "x").returncode == 2
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_it_ends_all_that_it_started(number: signal.Signals, tmp_path: Path) -> None:
    if os.getuid() != 0 or subprocess.run(["unshare", "--pid", "--mount", "--fork", "true"]).returncode:
        pytest.skip("namespaces of its own need root")
    # The daemon leaves its parents' session; it writes its pid as this machine sees it.
    daemon = "read pid rest < /proc/self/stat; echo $pid > daemon.new; mv daemon.new daemon; sleep 600"
    script = (
        "import os, signal, sys; from env import bare_root\n"
        "for n in bare_root.SIGNALS: signal.signal(n, bare_root.stop)\n"
        "bare_root.contained(['--', 'sh', '-c', sys.argv[1]], os.environ)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, f"cd {tmp_path} && setsid sh -c {shlex.quote(daemon)} & sleep 600"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "daemon").exists():
        assert time.monotonic() < deadline, "it starts"
        time.sleep(0.05)
    (tmp_path / "alive").symlink_to(f"/proc/{(tmp_path / 'daemon').read_text().strip()}")
    assert (tmp_path / "alive").exists()
    process.send_signal(number)
    assert process.wait(60) != 0
    while (tmp_path / "alive").exists():
        # At once where it could clean up; a kill leaves it to the kernel.
        assert number == signal.SIGKILL
        assert time.monotonic() < deadline, "the daemon ends"
        time.sleep(0.05)


def test_the_image_of_the_tests_is_made_by_what_the_definition_says() -> None:
    text = container_test.DEFINITION.read_text()
    recipe = container_test.recipe(text)
    assert f"cp -rT {ROOT}/env /opt/baton/env" in recipe
    assert "sh /opt/baton/env/setup.sh a" in recipe
    assert "import torch" in recipe
    assert "python3-venv" in container_test.header("Include", text).split()
    assert container_test.header("OSVersion", text) in bare_root.RELEASES
    with pytest.raises(UserError, match="no section %post"):
        container_test.recipe("Bootstrap: x\n%files\n")
