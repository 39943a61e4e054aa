"""Names for values and for code that are the same in every process, so that a finished experiment is found again."""

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")


def label(value: Any) -> Any:
    """How a value stands in a table: numbers, strings, bools and None as they are, everything else by its repr."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, type):
        return value.__qualname__
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def key(value: Any) -> str:
    """A name of this value that another process finds too, with the code of its class where the user wrote it.

    Raises ValueError where there is none: functions, lambdas and objects whose repr holds a memory address, sets,
    whose order changes from one process to the next, and arrays, whose repr is cut short.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, enum.Enum):
        return f"{_class_name(type(value))}.{value.name}"
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, type):
        return _class_name(value)
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(key, value))})"
    if isinstance(value, Mapping):
        return f"{type(value).__name__}({', '.join(f'{key(k)}: {key(v)}' for k, v in value.items())})"
    if isinstance(value, set | frozenset):
        raise ValueError(f"{value!r} has no order that another process repeats; give a sorted tuple")
    if hasattr(value, "__array__"):
        raise ValueError(
            f"the repr of {type(value).__name__} does not show all that it holds; "
            "give .tolist(), or a name that `run` looks up"
        )
    if is_dataclass(value):
        inside = ", ".join(f"{field.name}={key(getattr(value, field.name))}" for field in fields(value))
        return f"{_class_name(type(value))}({inside})"
    if _ADDRESS.search(repr(value)):
        raise ValueError(
            f"the repr of {value!r} holds a memory address; "
            "give a name that `run` looks up, or make its class a frozen dataclass"
        )
    return f"{_class_name(type(value))} {value!r}"


def code(callable_: Any) -> str:
    """A hash of what a callable does: its bytecode, and that of the functions and classes of its module that it uses.

    Constants, defaults and the arguments of a functools.partial count; comments, layout and the values of global
    variables do not. Raises ValueError where an argument of a partial, or the object of a method, has no `key`.
    """
    bound = []
    while isinstance(callable_, partial | MethodType):
        if isinstance(callable_, partial):
            bound.append(key([*callable_.args, callable_.keywords]))
            callable_ = callable_.func
        else:
            bound.append(key(callable_.__self__))
            callable_ = callable_.__func__
    if not isinstance(callable_, FunctionType | type) and not _inner(callable_):
        bound.append(key(callable_))
        callable_ = type(callable_)
    return sha256("\n".join([*bound, *_parts(callable_, callable_.__module__, set())]).encode()).hexdigest()


def _class_name(kind: type) -> str:
    """The name of a class, with the hash of its code unless it is fmlab's own, which a version and a commit name."""
    ours = kind.__module__.partition(".")[0] in ("builtins", "fmlab")
    return kind.__qualname__ if ours else f"{kind.__qualname__}#{code(kind)}"


def _parts(thing: Any, module: str, seen: set[int]) -> Iterator[str]:
    """What `thing` does, as texts, as far as it was written in `module`."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    for function in _inner(thing):
        yield from _parts(function, module, seen)
    if isinstance(thing, FunctionType | type) and thing.__module__ == module:
        yield thing.__qualname__
        yield from (_class_parts if isinstance(thing, type) else _function_parts)(thing, module, seen)


def _inner(thing: Any) -> list[Any]:
    """The functions in a property, a class or static method, or a wrapper such as functools.cache."""
    if isinstance(thing, property):
        return [function for function in (thing.fget, thing.fset, thing.fdel) if function]
    if isinstance(thing, cached_property):
        return [thing.func]
    if isinstance(thing, staticmethod | classmethod):
        return [thing.__func__]
    wrapped = getattr(thing, "__wrapped__", None) if callable(thing) and not isinstance(thing, type) else None
    return [wrapped] if wrapped else []


def _function_parts(function: FunctionType, module: str, seen: set[int]) -> Iterator[str]:
    yield _bytecode(function.__code__)
    for default in [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]:
        yield _constant(default)
    names = {name for part in _nested(function.__code__) for name in part.co_names}
    for name in sorted(names & function.__globals__.keys()):
        yield from _parts(function.__globals__[name], module, seen)
    for cell in function.__closure__ or ():
        if cell != CellType():  # a name that was never bound
            yield from _parts(cell.cell_contents, module, seen)


def _class_parts(kind: type, module: str, seen: set[int]) -> Iterator[str]:
    for base in kind.__mro__[1:]:
        yield from _parts(base, module, seen)
    for name, thing in sorted(vars(kind).items()):
        yield from _parts(thing, module, seen)
        if isinstance(thing, (*_PLAIN, tuple)) and not name.startswith("__"):
            yield f"{name}={_constant(thing)}"


def _nested(code_: CodeType) -> Iterator[CodeType]:
    yield code_
    for constant in code_.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _bytecode(code_: CodeType) -> str:
    constants = [_bytecode(each) if isinstance(each, CodeType) else _constant(each) for each in code_.co_consts]
    names = (code_.co_names, code_.co_varnames, code_.co_freevars, code_.co_cellvars)
    counts = (code_.co_argcount, code_.co_posonlyargcount, code_.co_kwonlyargcount, code_.co_flags)
    return repr((code_.co_code.hex(), code_.co_exceptiontable.hex(), names, counts, constants))


def _constant(value: Any) -> str:
    """The repr of a constant, the same in every process: the order of a frozenset is not, nor an object's address."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return repr(value) if isinstance(value, _PLAIN) else type(value).__qualname__
