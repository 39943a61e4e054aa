"""Policies from words, as a command line gives them: `Name(field=literal)`, one in another, read but never evaluated."""

import ast
import importlib.util
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path

from .core import Policy, living_policies


def policy(words: str, known: Sequence[type[Policy]] | None = None) -> Policy:
    """The policy that `Name` or `Name(field=literal, ...)` spells, among `known` (every living Policy class).

    A field may be a policy itself, spelled likewise: `Pinned(policy=TOVA, sinks=4)`. Raises ValueError for anything
    else, an unknown name or field, and a value of another type than its field: each says what there is.
    """
    known = living_policies() if known is None else known
    return _build(_tree(words), words, known)


def _build(tree: ast.expr, words: str, known: Sequence[type[Policy]]) -> Policy:
    name, given = _read(tree, words, known)
    found = [kind for kind in known if kind.__name__ == name]
    if not found:
        close = get_close_matches(name, [kind.__name__ for kind in known], 1, cutoff=0.5)
        hint = f" (do you mean {close[0]}?)" if close else ""
        raise ValueError(f"no policy is called {name!r}{hint}; there are {', '.join(map(_signature, known))}")
    if len(found) > 1:
        places = " and ".join(kind.__module__ for kind in found)
        raise ValueError(f"two policies are called {name!r}, in {places}; rename yours")
    kind = found[0]
    declared = {field.name: field for field in _fields(kind)}
    for field in given:
        if field not in declared:
            raise ValueError(f"{name} has no field {field!r}; the policy is {_signature(kind)}")
    hints = typing.get_type_hints(kind)
    for field, value in given.items():
        if not _fits(value, hints[field]):
            asked = f"{field} is {_spelled(hints[field])}"
            raise ValueError(f"{name}({field}={value!r}): {asked}; the policy is {_signature(kind)}")
        if hints[field] is float:
            given[field] = float(value)
    missing = [field for field, about in declared.items() if field not in given and not _has_default(about)]
    if missing:
        raise ValueError(f"{words!r} leaves out {', '.join(missing)}; the policy is {_signature(kind)}")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{words!r}: {error}") from error


def policies_of(path: str | Path) -> list[type[Policy]]:
    """Run a Python file and return the concrete Policy classes that it defines, in order of name.

    Raises FileNotFoundError, and ValueError for a file that is no Python or defines no policy; what the file itself
    raises goes through.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give a Python file that defines a policy")
    name = f"imported_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None:
        raise ValueError(f"{path} is no Python file; give one whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the module of their annotations
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}, is no Python: {error.msg}") from error
    defined = list(vars(module).values())  # another file of this name may have been run before
    found = [kind for kind in living_policies() if kind.__module__ == name and kind in defined]
    if not found:
        raise ValueError(f"{path} defines no policy; define a frozen dataclass with `score` that subclasses fm.Policy")
    return found


def _tree(words: str) -> ast.expr:
    try:
        return ast.parse(words.strip(), mode="eval").body
    except (SyntaxError, ValueError):  # the latter for a null byte
        raise _no_policy(words) from None


def _no_policy(words: str) -> ValueError:
    return ValueError(f"{words!r} spells no policy; write Name or Name(field=literal), such as SinkWindow(sinks=4)")


def _read(tree: ast.expr, words: str, known: Sequence[type[Policy]]) -> tuple[str, dict[str, object]]:
    """The name and the fields that a policy is spelled with."""
    if isinstance(tree, ast.Name):
        return tree.id, {}
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise _no_policy(words)
    if tree.args or any(keyword.arg is None for keyword in tree.keywords):
        raise ValueError(f"{words!r} gives a value without its field; write {tree.func.id}(field=literal)")
    given = {}
    for keyword in tree.keywords:
        if keyword.arg in given:
            raise ValueError(f"{words!r} gives {keyword.arg} twice; give it once")
        given[keyword.arg] = _value(keyword, words, known)
    return tree.func.id, given


def _value(keyword: ast.keyword, words: str, known: Sequence[type[Policy]]) -> object:
    """What a field is given: a policy where the name of one stands there, else a literal."""
    value, names = keyword.value, [kind.__name__ for kind in known]
    spelled = value.func if isinstance(value, ast.Call) else value
    if isinstance(spelled, ast.Name) and spelled.id in names:
        return _build(value, ast.unparse(value), known)
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError):
        said = f"{words!r}: {keyword.arg}={ast.unparse(value)}"
        close = get_close_matches(spelled.id, names, 1, cutoff=0.5) if isinstance(spelled, ast.Name) else []
        hint = f" (do you mean {close[0]}?)" if close else ""
        raise ValueError(
            f"{said} is no literal{hint}; give a number, a string, True, False, None or a policy"
        ) from None


def _fits(value: object, hint: object) -> bool:
    """Whether a literal may stand in a field of this type; an int may for a float, a bool for neither."""
    if hint is typing.Any:
        return True
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    kind = origin or hint
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _fields(kind: type[Policy]) -> list[Field]:
    return [field for field in fields(kind) if field.init] if is_dataclass(kind) else []


def _has_default(field: Field) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _signature(kind: type[Policy]) -> str:
    """How a policy is spelled, with its defaults."""
    hints = typing.get_type_hints(kind)
    parts = []
    for field in _fields(kind):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        needed = f"{field.name}: {_spelled(hints[field.name])}"
        parts.append(needed if default is MISSING else f"{field.name}={default!r}")
    return f"{kind.__name__}({', '.join(parts)})"


def _spelled(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) and typing.get_origin(hint) is None else str(hint)
