"""What a config's syntax tree says without running it: plain values where they are written out, `UNKNOWN`
where they are computed, and how a config's values go over those of its base."""

from __future__ import annotations

import ast
from typing import Any


class _Unknown:
    """A value that only running the config would tell."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()


def values(tree: ast.Module) -> dict[str, Any]:
    """The top-level names that a config sets, each with its value: dicts, lists, constants, or UNKNOWN."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = value(node.value, found)
    for name in _touched(tree):
        if name in found:
            found[name] = UNKNOWN
    return found


def value(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of an expression; `names` are those that the file has set before."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id, UNKNOWN)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [value(one, names) for one in node.elts]
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict" and not node.args:
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
        return UNKNOWN if any(key is None for key, _ in pairs) else {k: value(v, names) for k, v in pairs}
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        return {key.value: value(one, names) for key, one in zip(node.keys, node.values, strict=True)}  # type: ignore[union-attr]
    return UNKNOWN


def _touched(tree: ast.Module) -> set[str]:
    """Names that something else than an assignment at the top changes: `model['x'] = …`, `model.update(…)`,
    an assignment in a loop or a condition."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            for target in targets:
                if not isinstance(target, ast.Name) or node not in tree.body:
                    found.add(_root(target))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found.add(_root(node.value.func))
    return found


def _root(node: ast.AST) -> str:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return getattr(node, "id", "")


def merged(over: Any, base: Any) -> Any:
    """`over` inheriting from `base`, as mmengine merges configs: dicts key by key, but for `_delete_`."""
    if not isinstance(over, dict) or not isinstance(base, dict) or over.get("_delete_"):
        return over
    return base | {key: merged(one, base[key]) if key in base else one for key, one in over.items()}


def overridden(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`values` with `--set` overrides (dotted keys), as far as they meet written-out dicts."""
    result = values
    for dotted, last in overrides.items():
        for key in reversed(dotted.split(".")):
            last = {key: last}
        result = merged(last, result)
    return result
