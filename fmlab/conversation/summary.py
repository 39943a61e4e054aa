"""A memory that keeps the newest turns word for word and a running summary, which the model writes, of all older ones."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..language import LanguageModel
from .facts import unsupported
from .memory import Memory, Spans
from .packing import greedy
from .reading import check_context, check_model, context_of, mended
from .sentences import sentence_ends
from .span import Span
from .template import SYSTEM, tokens_of

HEADING = "Summary of what was said before: "
REQUEST = (
    "Sum up the conversation above in at most {words} words. Keep every name, number and date exactly as it was said, and "
    "add nothing."
)
PIECE = 2_048  # tokens of conversation in a block at most, but for its last turn
SPARE = 32  # tokens for what is spelled with more of them when it is cut in pieces
WRITTEN = 4  # a summary is written with at most this part of the model's context
LEAST = 8  # tokens in which nothing can be summed up
TEMPERATURE = 0.7  # of every try but the first

Remembered = tuple[Span, ...]
Write = Callable[[LanguageModel, str, int, int], str]


@dataclass
class SummaryCounts:
    """What became of the summaries that a memory had written since it was made; what it had already is not counted again."""

    written: int = 0
    """Summaries that went into the memory."""
    redone: int = 0
    """Tries that were thrown away: they stated what their source does not have, said nothing, or were too long."""
    given_up: int = 0
    """Blocks of turns of which no try was good, so that the turns themselves are kept as far as they fit."""
    unsupported: Counter[str] = field(default_factory=Counter)
    """The numbers, dates and names for which tries were thrown away."""


def write_summary(lm: LanguageModel, text: str, tokens: int, seed: int) -> str:
    """What the model says when asked to sum up a text in at most so many tokens; seed 0 is greedy, others are sampled.

    A sentence that the tokens cut short is left out. The same arguments give the same words. Raises BudgetError where
    text and summary are longer than the model's context.
    """
    context, request = lm.prompt(text, _request(tokens))
    ids = torch.cat([context, request])[None]
    check_context(lm, ids.shape[1] + tokens, "text and summary")
    chance = {"do_sample": False} if seed == 0 else {"do_sample": True, "temperature": TEMPERATURE}
    with torch.random.fork_rng(devices=[lm.model.device] if lm.model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        said = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **chance)[
            0, ids.shape[1] :
        ]
    if int(said[-1]) not in lm.ends:
        said = whole_sentences(said, lm)
    return lm.tokenizer.decode(said, skip_special_tokens=True).strip()


def whole_sentences(ids: Int[Tensor, " tokens"], lm: LanguageModel) -> Int[Tensor, " whole"]:
    """The ids up to the end of the last sentence that has one (`sentence_ends`); all of them where none has."""
    ends = sentence_ends(ids, lm.tokenizer)
    return ids[: int(ends[-1]) + 1] if len(ends) else ids


@dataclass(frozen=True)
class RollingSummary(Memory):
    """Keeps the newest turns and, where not all fit, a summary of the older ones, which goes in front of them.

    Turns leave the window in blocks, whose borders depend on what comes before them alone: the summary of the first
    blocks and the next block make the next summary, so that a conversation of n turns costs O(n), and one that has grown
    is not read again. Of the budget `keep` is the share of the system prompt and of the turns kept word for word; the
    rest is for the summary, the marks around it included.

    The numbers, dates and names of a summary must stand in what it was made of (`facts.unsupported`). Where they do
    not, it is written anew with another seed, `tries` times in all, and then what was remembered before and the
    newest turns of the block are kept themselves as far as they fit, and summed up with the next block. `counts`
    tells how often. The query is not looked at. What a summary leaves out is not noticed, and a small model leaves
    out most. A summary is a span of the user, for the turns that the model read; `evidence_recall` does not count
    these as kept.
    """

    lm: LanguageModel
    keep: float = 0.75
    tries: int = 3
    write: Write = field(default=write_summary, repr=False)
    counts: SummaryCounts = field(default_factory=SummaryCounts, init=False, compare=False, repr=False)
    _made: dict[tuple, Remembered] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model(self.lm)
        if not 0 < self.keep < 1 or self.tries < 1:
            raise ValueError(f"keep={self.keep}, tries={self.tries}; give a share between 0 and 1, and 1 try or more")
        if self.exact:
            raise ValueError("exact=True; the newest turns are kept by their order, so there is nothing to optimise")

    def score(self, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
        """The newest are worth most."""
        return np.arange(1.0, len(spans) + 1)

    def select(self, spans: Spans, query: str | None = None) -> list[Span]:
        """The system prompt, the summary where one is needed, and the newest turns, in order.

        Raises BudgetError where the system prompt exceeds the budget, and where what was kept instead of a summary leaves
        no room in the model's context to write one.
        """
        room = self.budget - self._pinned(spans)
        newest = [span for span in spans if span.role != SYSTEM]
        if sum(span.tokens for span in newest) <= room:
            return list(spans)
        share = int(self.keep * self.budget)
        within = max(
            0, share - (self.budget - room)
        )  # what is pinned takes from the turns, so that summaries stay valid
        remembered: Remembered = ()
        for block in _blocks(newest, min(share // 2, PIECE)):
            if sum(span.tokens for span in newest) <= within:
                break
            newest = newest[len(block) :]
            key = room - within, remembered, block
            if key not in self._made:
                self._made[key] = self._remember(*key)
            remembered = self._made[key]
        place = {span: place for place, span in reversed(list(enumerate(spans)))}
        front = min(place[span] for span in spans if span.role != SYSTEM) - 0.5
        pinned = [span for span in spans if span.role == SYSTEM]
        return sorted([*remembered, *pinned, *newest], key=lambda span: place.get(span, front))

    def _remember(self, room: int, remembered: Remembered, block: Remembered) -> Remembered:
        """What is remembered after a block, in `room` tokens: a summary, or what fits of what is to be summed up."""
        left = self.lm.ids("\n".join(_line(span) for span in block))
        while len(left):
            before = "".join(f"{_line(span)}\n" for span in remembered)
            part, left = left.split([size := min(len(left), self._at_once(before, room)), len(left) - size])
            read = (*remembered, *block)
            sources = tuple(sorted({turn for span in read for turn in span.sources}))
            summary = self._sum_up(before + self.lm.tokenizer.decode(part), sources, room)
            remembered = (summary,) if summary else _fitting(remembered, block, room)
        return remembered

    def _at_once(self, before: str, room: int) -> int:
        """How many tokens of a block the model reads at once, behind what was remembered and with room for a summary:
        two pieces, or what its context leaves."""
        context = context_of(self.lm)
        if context is None:
            return 2 * PIECE
        words = self._words(room)
        read = sum(map(len, self.lm.prompt(before or "-", _request(words))))
        return max(LEAST, min(2 * PIECE, context - read - words - SPARE))

    def _words(self, room: int) -> int:
        """In how many tokens a summary is written for so much room."""
        words = room - tokens_of("user", HEADING, self.lm.tokenizer)
        context = context_of(self.lm)
        return words if context is None else min(words, context // WRITTEN)

    def _sum_up(self, text: str, sources: tuple[int, ...], room: int) -> Span | None:
        words = self._words(room)
        for seed in range(self.tries if words >= LEAST else 0):
            with mended("budget", self.budget, "give a smaller budget"):
                said = self.write(self.lm, text, words, seed)
            tokens = tokens_of("user", HEADING + said, self.lm.tokenizer)
            wrong = unsupported(said, text, self.lm.tokenizer)
            if said and not wrong and tokens <= room:
                self.counts.written += 1
                return Span(HEADING + said, tokens, "user", sources)
            self.counts.redone += 1
            self.counts.unsupported.update(wrong)
        self.counts.given_up += 1
        return None


def _blocks(spans: Spans, tokens: int) -> Iterator[Remembered]:
    """The spans in runs, each as short as has so many tokens; the last is what is left."""
    block: list[Span] = []
    for span in spans:
        block.append(span)
        if sum(span.tokens for span in block) >= tokens:
            yield tuple(block)
            block = []
    if block:
        yield tuple(block)


def _fitting(remembered: Remembered, block: Remembered, room: int) -> Remembered:
    """What was remembered and the newest spans of the block that fit beside it."""
    fresh = [span for span in block if span not in remembered]
    room -= sum(span.tokens for span in remembered)
    tokens = np.array([span.tokens for span in fresh], dtype=np.int64)
    return (*remembered, *(fresh[place] for place in greedy(np.arange(float(len(fresh))), tokens, room)))


def _request(tokens: int) -> str:
    return REQUEST.format(words=max(5, tokens * 2 // 3))


def _line(span: Span) -> str:
    return f"{span.role}: {span.text}"
