"""env/setup.sh, from an index of stand-ins on this machine: what it asks pip and uv for, and where it looks.

With the real packages `make torch-oldest` and `make torch-matrix` run it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH = "def from_numpy(array): return array\n"
NUMPY = "def zeros(n): return [0] * n\n"
# The oldest torch that was built for this Python, its full number, its torchvision and its NumPy; what
# another site has was built for every Python.
OLD, OLDEST, VISION, OLD_NUMPY = (
    ("2.1", "2.1.2", "0.16.2", "1.26.4")
    if sys.version_info < (3, 12)
    else ("2.2", "2.2.2", "0.17.2", "1.26.4")
    if sys.version_info < (3, 13)
    else ("2.6", "2.6.0", "0.21.0", "2.2.6")
)
LOCKED = ("cv2==1.0", "mmcv==1.0", "mmengine==1.0")


def wheel(folder: Path, name: str, version: str, code: str = "", needs: str = "") -> Path:
    """A package of one module (https://packaging.python.org/en/latest/specifications/binary-distribution-format/)."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if needs:
        metadata += f"Requires-Dist: {needs}\n"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n{code}",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for file, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{file},sha256={digest},{len(text.encode())}\n"
    path = folder / name / f"{name}-{version}-py3-none-any.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name_, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(name_, text)
    return path


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A package index on loopback, with stand-ins for torch's releases and for all of the lock."""
    folder = tmp_path / "index"
    for version in {OLDEST, "2.6.0", "2.13.0"}:
        wheel(folder, "torch", version, TORCH, "numpy")
    for version, torch in {(VISION, OLDEST), ("0.21.0", "2.6.0"), ("0.28.0", "2.13.0")}:
        wheel(folder, "torchvision", version, needs=f"torch=={torch}")
    for version in ("1.26.4", "2.2.6"):
        wheel(folder, "numpy", version, NUMPY)
    for name in ("cv2", "mmcv", "mmengine", "mmdet", "mmpretrain"):
        wheel(folder, name, "1.0")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def checkout(tmp_path: Path, index: str) -> Path:
    """A checkout's env/, with short locks and what that index has at first."""
    del index
    env = tmp_path / "checkout" / "env"
    env.mkdir(parents=True)
    for name in ("setup.sh", "pip_settings.py"):
        shutil.copy(ROOT / "env" / name, env)
    for name, numpy in (("a", "2.2.6"), ("a-numpy1", "1.26.4")):
        (env / f"lock-{name}.txt").write_text("\n".join([*LOCKED, f"numpy=={numpy}"]) + "\n")
    hashes = []
    for path in (tmp_path / "index").rglob("*.whl"):
        name, number, _ = path.name.split("-", 2)
        hashes.append(f"{name}=={number} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    (env / "hashes.txt").write_text("".join(hashes))
    for extra in ("mmdet", "mmpretrain"):
        (env / f"lock-a-{extra}.txt").write_text(f"{extra}==1.0\n")
    (env / "requirements-torch.txt").write_text("torch==2.13.0\ntorchvision==0.28.0\n")
    (env / "lock-torch.txt").write_text("numpy==2.2.6\n")
    return env.parent


def set_up(checkout: Path, index: str, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Where to look stands in pip's configuration alone."""
    settings = checkout.parent / "pip.conf"
    settings.write_text(f"[global]\nindex-url = {index}\ntrusted-host = 127.0.0.1\n")
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_")) and "proxy" not in k.lower()
    }
    # Nobody's other settings: a site's own would add its packages to these.
    kept |= {"PIP_CONFIG_FILE": str(settings), "PYTHON": sys.executable, "HOME": str(checkout.parent)}
    kept |= {"XDG_CONFIG_DIRS": str(checkout.parent), "PIP_NO_CACHE_DIR": "1", "UV_NO_CONFIG": "1"}
    return subprocess.run(
        ["sh", str(checkout / "env" / "setup.sh"), *options],
        env=kept | more, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def version(checkout: Path, module: str) -> str:
    code = f"import {module}; print({module}.__version__)"
    command: list[str | Path] = [checkout / ".venv" / "bin" / "python", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_another_torch_comes_with_what_belongs_to_it_and_stays(checkout: Path, index: str) -> None:
    """There is no uv in that index: pip does it all."""
    done = set_up(checkout, index, "--torch", OLD)
    assert done.returncode == 0, done.stderr
    found = [version(checkout, name) for name in ("torch", "torchvision", "numpy", "mmengine")]
    assert found == [OLDEST, VISION, OLD_NUMPY, "1.0"]
    # Not named again, it stays; and nothing is done.
    done = set_up(checkout, index, "a")
    assert (done.returncode, done.stdout) == (0, "")
    assert version(checkout, "torch") == OLDEST


def test_a_build_from_a_place_of_its_own_wins(checkout: Path, index: str, tmp_path: Path) -> None:
    built = wheel(tmp_path / "site", "torch", "2.6.0+cu121", TORCH, "numpy").parent
    done = set_up(checkout, index, "--torch=2.6.0", "--torch-index", str(built))
    assert done.returncode == 0, done.stderr
    assert version(checkout, "torch") == "2.6.0+cu121"
    assert version(checkout, "torchvision") == "0.21.0"
    assert version(checkout, "numpy") == "2.2.6"


def test_one_torchvision_fits_many_releases_of_torch(checkout: Path, index: str, tmp_path: Path) -> None:
    """From torch 2.14 on they no longer come in pairs: there is no torchvision 0.30 for torch 2.15."""
    wheel(tmp_path / "index", "torch", "2.15.0", TORCH, "numpy")
    wheel(tmp_path / "index", "torchvision", "0.29.2", needs="torch>=2.14.0")
    done = set_up(checkout, index, "--torch", "2.15.0")
    assert done.returncode == 0, done.stderr
    assert [version(checkout, name) for name in ("torch", "torchvision")] == ["2.15.0", "0.29.2"]


def test_what_is_asked_for_beside_the_set_stays_until_it_is_not(checkout: Path, index: str) -> None:
    def there() -> list[str]:
        return [name for name in ("mmdet", "mmpretrain") if list(checkout.glob(f".venv/lib/*/*/{name}.py"))]

    def done(*options: str) -> str:
        ended = set_up(checkout, index, *options)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    done("--with", "mmdet")
    assert there() == ["mmdet"]
    assert done() == ""
    done("--with", "mmdet,mmpretrain")
    assert there() == ["mmdet", "mmpretrain"]
    assert version(checkout, "torch") == "2.13.0"
    done("--with", "none")
    assert there() == []
    assert done() == ""
    assert version(checkout, "mmengine") == "1.0"


def test_what_cannot_be_had_is_told_and_nothing_counts_as_done(checkout: Path, index: str) -> None:
    done = set_up(checkout, index, "--torch", "2.7.0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: pip could not install torch (2.7.0)")
    assert not (checkout / ".venv" / ".complete").exists()


def test_a_file_that_an_index_has_exchanged_is_not_installed(
    checkout: Path, index: str, tmp_path: Path
) -> None:
    wheel(tmp_path / "index", "mmengine", "1.0", "open('/tmp/owned', 'w')\n")
    done = set_up(checkout, index, "--torch", OLD)
    assert done.returncode == 2
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "pip could not install" in done.stderr.splitlines()[-1]
    assert not (checkout / ".venv" / ".complete").exists()
    assert not list((checkout / ".venv").rglob("mmengine*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("c",), "unknown dependency set 'c'"),
        (("a", "b"), "one dependency set at a time"),
        (("--torch",), "--torch needs a value"),
        (("--torch", "2.0.1"), "name a version from 2.1 on"),
        (("--torch", "2.4.1; touch x"), "name a version from 2.1 on"),
        (("b", "--torch", "2.2"), "set b needs NumPy 2"),
        (
            ("--with", "mmdet,mmrotate"),
            "--with mmrotate: there are mmdet, mmpretrain, track, onnx and geotiff",
        ),
        (("--with", "mmdet", "--python", "python3"), "--with is for an environment that this makes"),
        (("--tourch", "2.4"), "there is no option --tourch"),
        (("--python", "/nowhere/python"), "there is no such interpreter"),
    ],
)
def test_a_mistake_is_one_line(checkout: Path, options: tuple[str, ...], said: str) -> None:
    done = set_up(checkout, "http://127.0.0.1:9/", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


def test_a_folder_of_the_users_is_left_alone(checkout: Path) -> None:
    precious = checkout / "data" / "precious"
    precious.parent.mkdir()
    precious.touch()
    done = set_up(checkout, "http://127.0.0.1:9/", "--into", str(precious.parent))
    assert done.returncode == 2
    assert "is no virtual environment" in done.stderr
    assert precious.exists()


def test_help_is_there(checkout: Path) -> None:
    done = set_up(checkout, "http://127.0.0.1:9/", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: env/setup.sh [a|b] [--with PACKAGES]")


# ----------------------------------------------------------------------------------------- where uv looks


@pytest.mark.parametrize("script", ["lock.sh", "test-tools.sh"])
def test_a_script_without_options_does_nothing_for_one(script: str) -> None:
    for option, code in (("--help", 0), ("--no-such", 2)):
        done = subprocess.run(
            ["sh", f"env/{script}", option], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (code, "")
        assert "env/" in done.stdout


def test_uv_is_told_what_pip_is_told() -> None:
    spec = importlib.util.spec_from_file_location("pip_settings", ROOT / "env" / "pip_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    listed = (
        ":env:.find-links='/env wheels'\nglobal.cert='/site.pem'\nglobal.extra-index-url='\\nhttps://a/\\nhttps://b/'\n"
        "global.find-links='/x'\ninstall.index-url='https://i/'\nglobal.index-url='https://g/'\n"
        "global.trusted-host='h1 h2'\nglobal.proxy='http://p:1'\nglobal.no-index='true'\n"
    )
    assert module.variables(listed) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://i/",
        "UV_INDEX": "https://a/ https://b/",
        "UV_FIND_LINKS": "/env,wheels",
        "UV_INSECURE_HOST": "h1 h2",
        "SSL_CERT_FILE": "/site.pem",
        "HTTPS_PROXY": "http://p:1",
        "HTTP_PROXY": "http://p:1",
        "UV_NO_INDEX": "1",
    }


def test_uv_finds_a_mirror_that_only_pips_configuration_names(
    checkout: Path, index: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec("uv") is None:
        pytest.skip("there is no uv in this environment: env/setup.sh does without")
    import uv

    settings = tmp_path / "pip.conf"
    settings.write_text(f"[global]\nindex-url = {index}\n")
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_")) and "proxy" not in k.lower()
    }
    kept |= {"PIP_CONFIG_FILE": str(settings), "HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path)}
    script = (
        f'eval "$("{sys.executable}" env/pip_settings.py)"; '
        f'"{uv.find_uv_bin()}" pip install -q --no-cache --target "{tmp_path}/out" mmengine==1.0'
    )
    subprocess.run(["sh", "-ec", script], cwd=checkout, env=kept, check=True, timeout=60)
    assert (tmp_path / "out" / "mmengine.py").exists()
