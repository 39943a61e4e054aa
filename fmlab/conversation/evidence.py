"""How much of the evidence of an answer a selection still says, word for word."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ..texts import third_of
from .span import Span


class EvidenceRecall(NamedTuple):
    """The share of the turns of the evidence that are kept, and whether all and whether any of them are."""

    mean: float
    all: bool
    any: bool


def evidence_recall(selected: Sequence[Span], spans: Sequence[Span], evidence: Collection[int]) -> EvidenceRecall:
    """|E ∩ K| / |E| of the turns E of the evidence and the turns K that the selection says in their own words.

    A turn is kept where every one of its `spans` is in the selection; one for which only a summary stands is not. Raises
    ValueError for no evidence, and for a turn that no span has.
    """
    if not evidence:
        raise ValueError("no evidence; leave out questions that have none")
    said = kept_turns(selected, spans)
    if missing := set(evidence) - {turn for span in spans for turn in span.sources}:
        raise ValueError(f"the evidence names turn {min(missing)}, which no span has")
    found = len(said & set(evidence))
    return EvidenceRecall(found / len(set(evidence)), found == len(set(evidence)), found > 0)


def kept_turns(selected: Sequence[Span], spans: Sequence[Span]) -> set[int]:
    """The turns that a selection of these spans says in their own words, whole."""
    there = set(selected)
    lost = {turn for span in spans if span not in there for turn in span.sources}
    return {turn for span in there.intersection(spans) for turn in span.sources} - lost


def third(spans: Sequence[Span], evidence: Collection[int]) -> str:
    """`early`, `middle` or `late`: where in the tokens of the conversation the middle of the evidence stands."""
    total, before, places = sum(span.tokens for span in spans), 0, []
    for span in spans:
        if set(span.sources) & set(evidence):
            places.append((before + span.tokens / 2) / total)
        before += span.tokens
    return third_of(sum(places) / len(places))
