"""What a config's syntax tree says without being run: plain values where they are written out, `UNKNOWN`
where they are computed in a way that is not followed here; and how configs are merged with their bases.

It follows what configs are made of: dicts, lists, arithmetic, names, `_base_.x`, item assignments, a dict's
`update`, a list's `append`, comprehensions over something known. Nothing of the config's is ever called.
"""

from __future__ import annotations

import ast
import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

from jobs.run.errors import UserError


class _Unknown:
    """A value that is known only once the config runs."""

    def __repr__(self) -> str:
        return "UNKNOWN"

    def __deepcopy__(self, _: Any) -> _Unknown:
        return self


UNKNOWN = _Unknown()


class Imported(str):
    """A module, or something in it, that the config imports: its dotted path, as mmengine dumps it."""


BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
PLAIN: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "len": len, "sum": sum}
MOST = 1000
"""The most items that a list made by arithmetic or a comprehension may have."""


def values(
    tree: ast.Module, bases: Sequence[dict[str, Any]] = (), imported: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """The top-level names that a config sets, each with its value: dicts, lists, constants, or UNKNOWN.

    `bases`: the values of the configs in `_base_`. `imported`: of those that `with read_base():` imports
    from, in order; the imported names are set in this config.
    """
    found: dict[str, Any] = {}
    if bases:
        found["_base_"] = {name: one for base in bases for name, one in base.items()}
    parents = iter(imported)
    for node in tree.body:
        if isinstance(node, ast.With) and is_read_base(node):
            for statement in node.body:
                _take(statement, next(parents, {}), found)
        else:
            _follow(node, found)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            _blur(node, found, names=False)
    found.pop("_base_", None)
    return {name: _settled(one) for name, one in found.items() if type(one) is not Imported}


def _settled(node: Any, key: Any = "") -> Any:
    """An import stands for its name only as a `type`; elsewhere its value counts, which is UNKNOWN."""
    if isinstance(node, dict):
        return {inner: _settled(one, inner) for inner, one in node.items()}
    if isinstance(node, list):
        return [_settled(one) for one in node]
    return UNKNOWN if type(node) is Imported and key != "type" else node


def is_read_base(node: ast.With) -> bool:
    return "read_base" in ast.dump(node.items[0].context_expr)


def _take(statement: ast.stmt, parent: dict[str, Any], found: dict[str, Any]) -> None:
    """`from .base import *` and `from .base import model as m`."""
    if isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            if alias.name == "*":
                found.update(copy.deepcopy(parent))
            else:
                found[alias.asname or alias.name] = copy.deepcopy(parent.get(alias.name, UNKNOWN))


def _follow(node: ast.stmt, found: dict[str, Any]) -> None:
    """Follows one top-level statement of a config."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            found[name] = Imported(alias.name if alias.asname else name)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            found[alias.asname or alias.name] = Imported(f"{node.module}.{alias.name}")
    elif isinstance(node, ast.Assign):
        result = value(node.value, found)
        for target in node.targets:
            _assign(target, result, found)
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        _assign(node.target, value(node.value, found), found)
    elif isinstance(node, ast.AugAssign):
        before = value(_loaded(node.target), found)
        _assign(node.target, _computed(node.op, before, value(node.value, found)), found)
    elif isinstance(node, ast.Expr):
        _called(node.value, found)
    elif isinstance(node, ast.Delete):
        for target in node.targets:
            _delete(target, found)
    elif not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Pass)):
        _blur(node, found)


def _loaded(target: ast.expr) -> ast.expr:
    """An assignment's target, as an expression to be read."""
    return ast.parse(ast.unparse(target), mode="eval").body


def _assign(target: ast.expr, result: Any, found: dict[str, Any]) -> None:
    if isinstance(target, ast.Name):
        # The bases have been read already, and `_base_.x` means their values.
        if target.id != "_base_":
            found[target.id] = result
    elif isinstance(target, (ast.Tuple, ast.List)):
        known = isinstance(result, list) and len(result) == len(target.elts)
        for index, one in enumerate(target.elts):
            _assign(one, result[index] if known else UNKNOWN, found)
    else:
        holder, key = _item(target, found)
        try:
            holder[key] = result
        except (TypeError, KeyError, IndexError):
            _forget(target, found)


def _delete(target: ast.expr, found: dict[str, Any]) -> None:
    if isinstance(target, ast.Name):
        found.pop(target.id, None)
        return
    holder, key = _item(target, found)
    try:
        del holder[key]
    except (TypeError, KeyError, IndexError):
        _forget(target, found)


def _item(target: ast.expr, found: dict[str, Any]) -> tuple[Any, Any]:
    """The dict or list that `target` is an item of, and its key; (UNKNOWN, UNKNOWN) if not known."""
    if isinstance(target, (ast.Attribute, ast.Subscript)):
        holder = value(target.value, found)
        key = target.attr if isinstance(target, ast.Attribute) else value(target.slice, found)
        if isinstance(holder, (dict, list)) and isinstance(key, (str, int)) and type(key) is not Imported:
            return holder, key
    return UNKNOWN, UNKNOWN


def _called(call: ast.expr, found: dict[str, Any]) -> None:
    """Follows a call as a statement: `model.update(…)`, `hooks.append(…)`; others may change their object."""
    if not isinstance(call, ast.Call):
        return
    if isinstance(call.func, ast.Attribute):
        holder = value(call.func.value, found)
        if type(holder) is Imported:
            return
        arguments = [value(one, found) for one in call.args]
        if call.func.attr == "update" and isinstance(holder, dict):
            given = [*arguments, _keywords(call, found)]
            if all(isinstance(one, dict) for one in given):
                for one in given:
                    holder.update(one)
                return
        if call.func.attr == "append" and isinstance(holder, list) and len(arguments) == 1:
            holder.append(arguments[0])
            return
        more = arguments[0] if len(arguments) == 1 else None
        if call.func.attr == "extend" and isinstance(holder, list) and isinstance(more, list):
            holder.extend(more)
            return
    _forget(call.func, found)


def _blur(node: ast.stmt, found: dict[str, Any], names: bool = True) -> None:
    """Makes UNKNOWN whatever a loop, condition or function may set (`names`: also plain names)."""
    for inner in ast.walk(node):
        if isinstance(inner, (ast.Assign, ast.AugAssign, ast.Delete, ast.For)):
            several = isinstance(inner, (ast.Assign, ast.Delete))
            for target in inner.targets if several else [inner.target]:  # type: ignore[union-attr]
                if isinstance(target, ast.Name) and names:
                    found[target.id] = UNKNOWN
                elif not isinstance(target, ast.Name):
                    _forget(target, found)
        if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Call):
            _forget(inner.value.func, found)


def _forget(node: ast.expr, found: dict[str, Any]) -> None:
    """Makes UNKNOWN the name that `node` is a part of."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    name = getattr(node, "id", "")
    if name in found and type(found[name]) is not Imported:
        found[name] = UNKNOWN


def value(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of an expression; `names`: what the file has set before it."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id, UNKNOWN)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [value(one, names) for one in node.elts]
    if isinstance(node, ast.Dict):
        return _dict(node, names)
    if isinstance(node, ast.Call):
        return _copied(node, names)
    if isinstance(node, ast.Attribute):
        holder = value(node.value, names)
        if type(holder) is Imported:
            return Imported(f"{holder}.{node.attr}")
        return holder.get(node.attr, UNKNOWN) if isinstance(holder, dict) else UNKNOWN
    if isinstance(node, ast.Subscript):
        holder, key = _item(node, names)
        try:
            return holder[key]
        except (TypeError, KeyError, IndexError):
            return UNKNOWN
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _computed(ast.Sub(), 0, value(node.operand, names))
    if isinstance(node, ast.BinOp):
        return _computed(node.op, value(node.left, names), value(node.right, names))
    if isinstance(node, ast.ListComp):
        inner = _comprehension(node, names)
        return UNKNOWN if inner is UNKNOWN else [value(node.elt, one) for one in inner]
    if isinstance(node, ast.DictComp):
        return _dict_comprehension(node, names)
    if isinstance(node, ast.JoinedStr):
        return _text(node, names)
    return UNKNOWN


def _dict(node: ast.Dict, names: dict[str, Any]) -> Any:
    found: dict[Any, Any] = {}
    for key, one in zip(node.keys, node.values, strict=True):
        if key is None:
            inner = value(one, names)
            if not isinstance(inner, dict):
                return UNKNOWN
            found.update(inner)
        elif isinstance(known := value(key, names), (str, int, float)):
            found[known] = value(one, names)
        else:
            return UNKNOWN
    return found


def _keywords(call: ast.Call, names: dict[str, Any]) -> Any:
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        one = value(keyword.value, names)
        if keyword.arg is not None:
            found[keyword.arg] = one
        elif isinstance(one, dict):
            found.update(one)
        else:
            return UNKNOWN
    return found


def _copied(call: ast.Call, names: dict[str, Any]) -> Any:
    """The value of a known call, such as `dict(…)`, `list(…)`, `deepcopy(x)`, `x.copy()`; else UNKNOWN."""
    name = getattr(call.func, "id", "") or getattr(call.func, "attr", "")
    given = [value(one, names) for one in call.args]
    if name == "dict" and isinstance(call.func, ast.Name):
        parts = [*given, _keywords(call, names)]
        if all(isinstance(part, dict) for part in parts):
            return {key: one for part in parts for key, one in part.items()}
    elif name in ("list", "tuple") and len(given) == 1 and isinstance(given[0], list):
        return list(given[0])
    elif name == "range" and all(type(one) is int for one in given) and 0 < len(given) < 3:
        return list(range(*given)[: MOST + 1])
    elif name in PLAIN and len(given) == 1:
        plain = given[0] if isinstance(given[0], list) else given
        numbers = all(type(one) in (int, float) for one in plain)
        if isinstance(given[0], list) == (name in ("len", "sum")) and (numbers or name == "len"):
            return PLAIN[name](given[0])
    elif name == "deepcopy" and len(given) == 1:
        return copy.deepcopy(given[0])
    elif name == "copy" and isinstance(call.func, ast.Attribute) and not given:
        return copy.copy(value(call.func.value, names))
    return UNKNOWN


def _computed(operation: ast.operator, left: Any, right: Any) -> Any:
    """Arithmetic of numbers, and `[…] * 3`, `[…] + […]`, `'a' + 'b'`."""
    numbers = all(type(one) in (int, float) for one in (left, right))
    lists = isinstance(left, list) and (
        (isinstance(operation, ast.Add) and isinstance(right, list))
        or (isinstance(operation, ast.Mult) and type(right) is int and len(left) * right <= MOST)
    )
    texts = isinstance(operation, ast.Add) and type(left) is str and type(right) is str
    if not (numbers or lists or texts) or type(operation) not in BINARY:
        return UNKNOWN
    try:
        return BINARY[type(operation)](left, right)
    except ArithmeticError:
        return UNKNOWN


def _comprehension(node: ast.ListComp | ast.DictComp, names: dict[str, Any]) -> Any:
    """The names in scope for each item of a comprehension; UNKNOWN if they cannot be determined."""
    found = [names]
    for generator in node.generators:
        if generator.ifs:
            return UNKNOWN
        deeper: list[dict[str, Any]] = []
        for seen in found:
            over = value(generator.iter, seen)
            if not isinstance(over, list) or len(over) > MOST or len(deeper) > MOST:
                return UNKNOWN
            for one in over:
                inner = dict(seen)
                _assign(generator.target, one, inner)
                deeper.append(inner)
        found = deeper
    return found


def _dict_comprehension(node: ast.DictComp, names: dict[str, Any]) -> Any:
    inner = _comprehension(node, names)
    if inner is UNKNOWN:
        return UNKNOWN
    pairs = [(value(node.key, one), value(node.value, one)) for one in inner]
    return dict(pairs) if all(isinstance(key, (str, int, float)) for key, _ in pairs) else UNKNOWN


def _text(node: ast.JoinedStr, names: dict[str, Any]) -> Any:
    """The value of an f-string with plain parts; else UNKNOWN."""
    parts = []
    for part in node.values:
        if isinstance(part, ast.FormattedValue) and (part.format_spec or part.conversion != -1):
            return UNKNOWN
        one = value(part.value if isinstance(part, ast.FormattedValue) else part, names)
        if type(one) not in (str, int, float):
            return UNKNOWN
        parts.append(str(one))
    return "".join(parts)


class Clash(ValueError):
    """mmengine cannot merge a dict with what the base has in its place. The message is its dotted key."""


def merged(over: Any, base: Any, lists: bool = False, key: str = "") -> Any:
    """`over` merged into `base`, as mmengine merges configs: dicts key by key, except with `_delete_`; with
    `lists`, as it merges `--set`, also the dicts in lists. Raises Clash."""
    if not isinstance(over, dict) or base is UNKNOWN or over.get("_delete_"):
        return over
    listed = lists and isinstance(base, list)
    if not listed and not isinstance(base, dict):
        raise Clash(key)
    result: Any = base.copy()
    for name, one in over.items():
        at = int(name) if listed and str(name).isdecimal() else name
        if listed and not (at in range(len(base)) and isinstance(one, dict)):
            raise Clash(key)
        held = base[at] if listed else base.get(at, UNKNOWN)
        result[at] = merged(one, held, lists, f"{key}.{name}".lstrip("."))
    return result


def overridden(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`values` with the `--set` overrides (dotted keys). Raises UserError for one that does not fit."""
    result = values
    for dotted, last in overrides.items():
        for key in reversed(dotted.split(".")):
            last = {key: last}
        try:
            result = merged(last, result, lists=True)
        except Clash as clash:
            raise UserError(
                f"--set {dotted}: the config's {clash} is not a dict, nor a list of dicts with such an "
                "item: set it as a whole"
            ) from None
    return result
