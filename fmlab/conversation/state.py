"""What a chat has said, kept and spent: one immutable value, replaced as a whole when a turn is over."""

from dataclasses import dataclass, replace

from .span import Span


@dataclass(frozen=True)
class Cost:
    """What one answer cost, in tokens. None is what a server did not tell; it is never guessed."""

    prompt: int
    prefilled: int | None
    """Of the prompt, those that the model computed for this answer."""
    reused: int | None
    """Of the prompt, those that it did not compute, because their keys and values were still there."""
    said: int | None


@dataclass(frozen=True)
class Stats:
    """Tokens of a chat: of the last turn under the plain names, of all turns under those that end in `_in_all`.

    `kept == prefilled + reused`, of the last turn as of all. Turns that failed or were abandoned are not in it. None is
    unknown: a hosted model whose server does not report it, and every sum with such a turn in it.
    """

    turns: int = 0
    seen: int = 0
    """Of the prompt that would hold all that was ever said, the last answer included: what `kept` is a part of."""
    kept: int = 0
    """Of the last prompt, from its first mark to the call for an answer."""
    prefilled: int | None = 0
    reused: int | None = 0
    said: int | None = 0
    """Of the last answer, as the model generated it."""
    kept_in_all: int = 0
    prefilled_in_all: int | None = 0
    reused_in_all: int | None = 0
    said_in_all: int | None = 0

    def after(self, cost: Cost, seen: int) -> "Stats":
        """With one more turn."""
        return Stats(
            turns=self.turns + 1,
            seen=seen,
            kept=cost.prompt,
            prefilled=cost.prefilled,
            reused=cost.reused,
            said=cost.said,
            kept_in_all=self.kept_in_all + cost.prompt,
            prefilled_in_all=_plus(self.prefilled_in_all, cost.prefilled),
            reused_in_all=_plus(self.reused_in_all, cost.reused),
            said_in_all=_plus(self.said_in_all, cost.said),
        )


@dataclass(frozen=True)
class Stretch:
    """Messages in a row that were said with one model and one memory."""

    messages: int
    model: str
    source: str
    memory: str
    """The repr of the memory."""


@dataclass(frozen=True)
class State:
    """A conversation between two turns."""

    spans: tuple[Span, ...] = ()
    """Everything said, a span a message; the system prompt is not among them."""
    kept: tuple[Span, ...] = ()
    """The last prompt: its opening, what the memory selected, the message that was answered."""
    stats: Stats = Stats()
    stretches: tuple[Stretch, ...] = ()

    def after(self, question: Span, answer: Span, kept: tuple[Span, ...], cost: Cost, said_with: Stretch) -> "State":
        """With one more turn. `kept` begins with the opening."""
        spans = (*self.spans, question, answer)
        seen = kept[0].tokens + sum(span.tokens for span in spans)
        before = self.stretches
        if before and replace(before[-1], messages=said_with.messages) == said_with:
            said_with = replace(said_with, messages=before[-1].messages + said_with.messages)
            before = before[:-1]
        return State(spans, kept, self.stats.after(cost, seen), (*before, said_with))


def _plus(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
