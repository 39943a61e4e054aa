"""A policy as controls: which settings a dataclass has, how each is shown, and the policy that their values make."""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import fmlab as fm

from .. import parse, policies  # noqa: F401  (the library's own policies are alive once they are imported)


@dataclass(frozen=True)
class PolicyChoice:
    """A policy class by its key, and the values of its settings as the controls hold them."""

    key: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, policy: fm.Policy) -> "PolicyChoice":
        """The choice that makes this policy again."""
        settings = {setting["name"]: setting["kind"] for setting in settings_of(type(policy))}
        values = {name: shown(getattr(policy, name), kind) for name, kind in settings.items()}
        return cls(key_of(type(policy)), values)

    def build(self) -> fm.Policy:
        """The policy itself. Raises ValueError or TypeError naming the setting, or whatever the class raises."""
        kind = policy_class(self.key)
        settings = {setting["name"]: setting["kind"] for setting in settings_of(kind)}
        if unknown := sorted(set(self.values) - set(settings)):
            known = ", ".join(settings) or "none"
            raise ValueError(f"{kind.__name__} has no setting {', '.join(unknown)}; its settings: {known}")
        return kind(**{name: read(kind, name, settings[name], value) for name, value in self.values.items()})


def key_of(kind: type[fm.Policy]) -> str:
    """What names a policy class for as long as the kernel lives; a class run again keeps it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def policy_class(key: str) -> type[fm.Policy]:
    """The newest class of that key. Raises LookupError where none is alive."""
    if key not in (known := alive()):
        raise LookupError(f"no policy {key} is alive in this kernel; run the cell that defines it, or choose another")
    return known[key]


def alive() -> dict[str, type[fm.Policy]]:
    """Every policy class alive, by key."""
    return {key_of(kind): kind for kind in fm.core.living_policies()}


def catalogue() -> list[dict]:
    """Every policy alive, as the picker shows it: key, name, first line of its docstring, settings."""
    kinds = fm.core.living_policies()
    names = [kind.__name__ for kind in kinds]
    return [
        {
            "key": key_of(kind),
            "name": kind.__name__ if names.count(kind.__name__) == 1 else f"{kind.__name__} ({kind.__module__})",
            "summary": (inspect.getdoc(kind) or "").split("\n")[0],
            "fields": settings_of(kind),
        }
        for kind in kinds
    ]


def settings_of(kind: type) -> list[dict]:
    """The settings of a dataclass, as the page shows them."""
    return [_setting(kind, field) for field in fields(kind) if field.init] if is_dataclass(kind) else []


def _setting(kind: type, field: Field) -> dict:
    missing = field.default is MISSING and field.default_factory is MISSING
    default = None if missing else field.default if field.default is not MISSING else field.default_factory()
    control, choices = ("literal", ()) if missing else _control(_annotation(kind, field), default)
    low, high, step = _limits(control, default)
    return {
        "name": field.name,
        "kind": control,
        "value": "" if missing else shown(default, control),
        "options": list(choices),
        "min": field.metadata.get("min", low),
        "max": field.metadata.get("max", high),
        "step": field.metadata.get("step", step),
    }


def _annotation(kind: type, field: Field) -> Any:
    if not isinstance(field.type, str):
        return field.type
    try:
        return get_type_hints(kind).get(field.name)
    except NameError:  # a name of the user's that is gone: the default's own type decides
        return None


def _control(annotation: Any, default: Any) -> tuple[str, tuple]:
    if isinstance(default, fm.Policy):
        return "policy", ()
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if all(isinstance(choice, str | int | float | bool) for choice in choices):
            return "options", choices
    names = {bool: "bool", int: "int", float: "float", str: "str"}
    if annotation is float and type(default) in (int, float):
        return "float", ()
    if annotation in (type(default), None) and type(default) in names:
        return names[type(default)], ()
    return "literal", ()


def _limits(control: str, default: Any) -> tuple[int | float | None, int | float | None, int | float | None]:
    """Low, high and step: a share of one (0 < default < 1) becomes a slider, a count starts at 0."""
    if control == "int":
        return (0 if default >= 0 else None), None, 1
    if control == "float" and 0 < default < 1:
        return 0, 1, 0.05 if abs(default / 0.05 - round(default / 0.05)) < 1e-9 else 0.01
    return None, None, None


def shown(value: Any, control: str) -> Any:
    return repr(value) if control in ("literal", "policy") else value


def read(kind: type, name: str, control: str, value: Any) -> Any:
    if control == "policy":
        try:
            return parse.policy(value)
        except ValueError as error:
            raise ValueError(f"{kind.__name__}.{name}: {error}") from error
    if control == "literal":
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise ValueError(
                f"{kind.__name__}.{name}: {value!r} is no Python literal; write one such as 3, 'text', (1, 2) or None"
            ) from error
    if control == "int" and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{kind.__name__}.{name}: {value!r} is no int; give a whole number")
    return float(value) if control == "float" else value
