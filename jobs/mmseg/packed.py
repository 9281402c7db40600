"""Lets any config read a packed dataset: a file backend for mmengine that reads from the container
(jobs/run/packed.py) is put into the config's `backend_args`.

A path means the same file as in the unpacked tree. What is in no container is read from the
disk. Custom transforms that open paths by themselves, past mmengine's `fileio`, need the unpacked tree.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.registry import Registry
from mmseg.registry import DATASETS, TRANSFORMS

from jobs.run import packed, staged
from jobs.supervise import heartbeat


class _Name(str):
    """The backend's name in a config. Unpickling it in a worker that is spawned, not forked, imports this
    module, which registers the backend."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _name, ()


def _name() -> str:
    return BACKEND


BACKEND = _Name("baton_packed")


class PackedBackend(LocalBackend):
    """Reads from containers, each opened once per process; otherwise behaves as its base class."""

    def __init__(self) -> None:
        super().__init__()
        self._containers: dict[Path, packed.Container] = {}
        self._folders: dict[str, tuple[packed.Container, str] | None] = {}
        self._roots: dict[str, packed.Container] = {}
        """Path of a container's folder, as it was requested -> container."""

    def find(self, path: str | Path) -> tuple[packed.Container, str] | None:
        """(container, name in it) of a path; None if its folder is not in a packed dataset."""
        text = os.fspath(path)
        # A data loader worker, forked anew for every epoch, inherits what its parent knows.
        for root, container in self._roots.items():
            if text.startswith(root) and text[len(root) :] in container.files:
                return container, text[len(root) :]
        folder, name = os.path.split(text)
        if folder not in self._folders:
            self._folders[folder] = self._look(Path(folder))
        place = self._folders[folder]
        return place and (place[0], f"{place[1]}/{name}" if place[1] and name else place[1] or name)

    def _look(self, folder: Path) -> tuple[packed.Container, str] | None:
        found = packed.locate(folder)
        if found is None:
            return None
        path, inner = found
        if path not in self._containers:
            self._containers[path] = packed.Container(path, staged.place())
            heartbeat.tell_reads(path)
        if f"{folder}/".endswith(f"/{inner}/") and inner:
            self._roots[f"{folder}/".removesuffix(f"{inner}/")] = self._containers[path]
        return self._containers[path], inner

    def get(self, filepath: str | Path) -> bytes:
        found = self.find(filepath)
        if found and found[1] in found[0].files:
            return found[0].read(found[1])
        content: bytes = super().get(filepath)
        return content

    def get_text(self, filepath: str | Path, encoding: str = "utf-8") -> str:
        return self.get(filepath).decode(encoding)

    def isfile(self, filepath: str | Path) -> bool:
        found = self.find(filepath)
        return bool(found and found[1] in found[0].files) or bool(super().isfile(filepath))

    def isdir(self, filepath: str | Path) -> bool:
        found = self.find(filepath)
        return bool(found and found[0].has_folder(found[1])) or bool(super().isdir(filepath))

    def exists(self, filepath: str | Path) -> bool:
        return self.isfile(filepath) or self.isdir(filepath)

    @contextlib.contextmanager
    def get_local_path(self, filepath: str | Path) -> Iterator[str | Path]:
        """A file for readers that need one: a temporary copy, for the duration of the context."""
        found = self.find(filepath)
        if not found or found[1] not in found[0].files:
            yield filepath
            return
        with tempfile.NamedTemporaryFile(suffix=Path(filepath).suffix) as file:
            file.write(found[0].read(found[1]))
            file.flush()
            yield file.name

    def list_dir_or_file(
        self,
        dir_path: str | Path,
        list_dir: bool = True,
        list_file: bool = True,
        suffix: str | tuple[str, ...] | None = None,
        recursive: bool = False,
    ) -> Iterator[str]:
        """As in its base class (paths relative to `dir_path`, no hidden files), sorted by name."""
        found = self.find(dir_path)
        if not found or found[1] not in found[0].folders:
            yield from super().list_dir_or_file(dir_path, list_dir, list_file, suffix, recursive)
            return
        if list_dir and suffix is not None:
            raise TypeError("`suffix` should be None when `list_dir` is True")
        yield from self._list(*found, "", list_dir, list_file, suffix, recursive)

    def _list(
        self,
        container: packed.Container,
        top: str,
        below: str,
        list_dir: bool,
        list_file: bool,
        suffix: str | tuple[str, ...] | None,
        recursive: bool,
    ) -> Iterator[str]:
        folders, files = container.folders["/".join(part for part in (top, below) if part)]
        for name in files:
            if list_file and not name.startswith(".") and (suffix is None or name.endswith(suffix)):
                yield os.path.join(below, name)
        for name in folders:
            inner = os.path.join(below, name)
            if list_dir:
                yield inner
            if recursive:
                yield from self._list(container, top, inner, list_dir, list_file, suffix, recursive)


register_backend(BACKEND, PackedBackend, force=True)


def exists(path: Path) -> bool:
    """Whether a path exists, on disk or in a packed dataset. Raises UserError if that is damaged."""
    return path.exists() or _ours().exists(path)


def find(path: str | Path) -> tuple[packed.Container, str] | None:
    """(container, name in it) of a path; None if its folder is not in a packed dataset."""
    return _ours().find(path)


def local(path: Path) -> contextlib.AbstractContextManager[str | Path]:
    """A file with the content of `path`, for the duration of the context."""
    return _ours().get_local_path(path)


def _ours() -> PackedBackend:
    """The backend that this process's transforms use, too."""
    backend = get_file_backend(backend_args={"backend": BACKEND}, enable_singleton=True)
    assert isinstance(backend, PackedBackend)
    return backend


def read_packed(node: Any) -> int:
    """Makes the datasets in a (part of a) config, and their transforms, read through `PackedBackend`, if one
    of them is packed; in place. Returns how many got it; those that name their own backend keep it."""
    return _put_in(node, DATASETS) if any(_packed_paths(node)) else 0


def containers_of(node: Any) -> list[packed.Container]:
    """The open containers of the datasets in a (part of a) config."""
    found = [_ours().find(f"{path}/") for path in _packed_paths(node)]
    return list({one[0].path: one[0] for one in found if one}.values())


def _packed_paths(node: Any) -> Iterator[str]:
    """The paths named by datasets in `node` that are in packed ones."""
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from _packed_paths(value)
    if not isinstance(node, dict):
        return
    prefixes = node.get("data_prefix")
    paths = [node.get("data_root"), node.get("ann_file")]
    paths += list(prefixes.values()) if isinstance(prefixes, dict) else []
    yield from (path for path in paths if isinstance(path, str) and path and packed.locate(Path(path)))
    for key, value in node.items():
        if key not in ("pipeline", "transforms"):
            yield from _packed_paths(value)


def _put_in(node: Any, registry: Registry) -> int:
    if isinstance(node, (list, tuple)):
        return sum(_put_in(value, registry) for value in node)
    if not isinstance(node, dict):
        return 0
    count = 0
    for key, value in list(node.items()):
        count += _put_in(value, TRANSFORMS if key in ("pipeline", "transforms") else registry)
    kind = node.get("type")
    if isinstance(kind, str):
        kind = registry.get(kind)
    if inspect.isclass(kind) and not node.get("backend_args") and _takes_backend(kind):
        node["backend_args"] = {"backend": BACKEND}
        count += 1
    return count


def _takes_backend(kind: type) -> bool:
    """Whether a class accepts `backend_args`, itself or by passing unknown arguments to a base class."""
    for one in kind.__mro__:
        if "__init__" not in vars(one):
            continue
        parameters = inspect.signature(one.__init__).parameters  # type: ignore[misc]
        if "backend_args" in parameters:
            return True
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters.values()):
            return False
    return False
