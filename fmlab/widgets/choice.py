"""What is on the screen: policies, budget, heads, prefill; and the cell of code that brings it back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

import fmlab as fm

from ..trace import Trace
from .controls import PolicyChoice

MODES = ("pair", "difference")
SETTINGS = ("budget", "layer", "head", "prefill", "mode", "oracle")


@dataclass(frozen=True)
class Choice:
    """One state of the Explorer. `layer` is the number of a recorded layer and `head` a KV head; None is the mean.
    `oracle`: whether the exact optimum is shown under the policies."""

    policy: fm.Policy
    budget: int
    against: fm.Policy | None = None
    layer: int | None = None
    head: int | None = None
    prefill: int = 1
    mode: str = "pair"
    oracle: bool = False

    @classmethod
    def read(cls, sent: Mapping[str, Any]) -> "Choice":
        """From what the browser sent. Raises what building the policies raises."""
        policies = [PolicyChoice(**sent[side]).build() if sent[side] else None for side in ("a", "b")]
        rest = {name: sent[name] for name in SETTINGS}
        return cls(policy=policies[0], against=policies[1], **rest)

    def sendable(self) -> dict:
        """As the browser takes it."""
        sides = {"a": self.policy, "b": self.against}
        sent = {side: None if policy is None else asdict(PolicyChoice.of(policy)) for side, policy in sides.items()}
        return sent | {name: getattr(self, name) for name in SETTINGS}

    def check(self, trace: Trace) -> "Choice":
        """Return the choice if this trace can show it; raise ValueError, naming what it can show, otherwise."""
        fm.core.check_budget(self.budget)
        if self.layer not in (None, *trace.layers):
            layers = ", ".join(map(str, trace.layers))
            raise ValueError(f"layer {self.layer} is not recorded; give one of {layers}, or None for the mean")
        if self.head not in (None, *range(trace.kv_heads)):
            raise ValueError(
                f"head {self.head} is none of {trace.kv_heads} KV heads; give a smaller one, or None for the mean"
            )
        if not 1 <= self.prefill <= len(trace):
            raise ValueError(f"a prefill of {self.prefill} tokens in a text of {len(trace)}; give 1 to {len(trace)}")
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is unknown; give one of {', '.join(MODES)}")
        return self

    @property
    def policies(self) -> tuple[fm.Policy, ...]:
        """The one or two policies shown."""
        return (self.policy,) if self.against is None else (self.policy, self.against)

    def heads_of(
        self, trace: Trace, values: Shaped[Tensor, "layers kv_heads *rest"]
    ) -> Shaped[Tensor, "chosen_layers chosen_heads *rest"]:
        """The chosen layer and head of something that has a value or a row for each; the axes stay."""
        layers = slice(None) if self.layer is None else slice(at := trace.layers.index(self.layer), at + 1)
        return values[layers, slice(None) if self.head is None else slice(self.head, self.head + 1)]

    def where(self, trace: Trace) -> str:
        """The chosen heads in words."""
        layers = f"layer {self.layer}" if self.layer is not None else f"{len(trace.layers)} layers"
        heads = f"KV head {self.head}" if self.head is not None else f"{trace.kv_heads} KV heads"
        return f"{layers}, {heads}"

    def change(self, **changes: Any) -> "Choice":
        """The same with other values."""
        return replace(self, **changes)


def as_code(choice: Choice, step: int, trace_code: str) -> str:
    """A cell that computes and shows this choice again; `trace_code` is the code of the trace."""
    sources = [_source(policy) for policy in choice.policies]
    imports = ["import fmlab as fm", *sorted({line for lines, _ in sources for line in lines})]
    names = [name for _, name in sources]
    shown = f"policy, budget={choice.budget}, layer={choice.layer}, head={choice.head}"
    shown += f", prefill={choice.prefill}, step={step}"
    run = f"{choice.budget}, prefill={choice.prefill}"
    lines = [*imports, "", trace_code, f"policy = {names[0]}"]
    lines += [f"expiry = fm.replay(trace, policy, {run})  # (layers, KV heads, tokens)"]
    if choice.against is not None:
        lines += [f"against = {names[1]}"]
        lines += [f"expiry_against = fm.replay(trace, against, {run})"]
        shown += f", against=against, mode={choice.mode!r}"
    if choice.oracle:
        lines += [f"best = fm.oracle(trace, {run})  # the exact optimum"]
        shown += ", oracle=True"
    return "\n".join([*lines, f"fm.explore(trace).show({shown})"]) + "\n"


def _source(policy: fm.Policy) -> tuple[list[str], str]:
    """The imports that a policy's names need, its own and those of what it wraps, and the expression that makes it."""
    imports = []
    for module, name in {(type(part).__module__, type(part).__qualname__) for part in fm.core.within(policy)}:
        if module != "__main__" and not module.startswith("fmlab.policies"):  # a notebook has the names of its cells
            imports.append(f"from {module} import {name}")
    return imports, _expression(policy)


def _expression(policy: fm.Policy) -> str:
    prefix = "fm.policies." if type(policy).__module__.startswith("fmlab.policies") else ""
    if not is_dataclass(policy):
        return prefix + repr(policy)
    given = {field.name: getattr(policy, field.name) for field in fields(policy) if field.init}
    spelled = {k: _expression(v) if isinstance(v, fm.Policy) else repr(v) for k, v in given.items()}
    return f"{prefix}{type(policy).__name__}({', '.join(f'{k}={v}' for k, v in spelled.items())})"
