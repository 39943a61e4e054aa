"""A whole chat as a workload: a model that answers under a semantic memory, and the picture of what each prompt kept."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..caches import EmbeddingCache, TokenDecodeCache
from ..conversation import BM25, ChatSession, Memory, Semantic, Sliding, Span, dialogues, prompt
from ..conversation.carry import Carried
from ..conversation.encoders import Encoder
from ..conversation.sentences import marking_ids
from ..conversation.state import Cost
from ..language import LanguageModel
from ..sparsity import Streaming
from . import (
    embedding_misses,
    kv_carry_over,
    lazy_evaluation,
    mask_construction,
    real,
    sentence_boundaries,
    sliding_eviction,
    token_decoding,
)
from .portions import piece
from .whole import Setting, Workload

BUDGET = 384  # tokens of a prompt
ANSWER = 8  # tokens of an answer
SWITCHES = (
    sentence_boundaries.PAIR,
    sliding_eviction.PAIR,
    mask_construction.PAIR,
    token_decoding.PAIR,
    embedding_misses.PAIR,
    lazy_evaluation.PAIR,
    kv_carry_over.PAIR,
)


class ClockedReading(Carried):
    """Answers whose reading of the prompt is the piece of the KV carry-over."""

    def logits(self, ids: list[int]) -> Float[Tensor, " vocabulary"]:
        return piece(kv_carry_over.PAIR.name, super().logits)(ids)


class ReadingAgain:
    """The voice of a local model that carries nothing over: it reads every prompt from its beginning."""

    def __init__(self, lm: LanguageModel):
        self.lm, self.name, self.source, self.tokenizer = lm, lm.name, lm.source, lm.tokenizer

    def answer(self, selected: Sequence[Span], ids: list[int], max_new_tokens: int) -> Generator[str, None, Cost]:
        return ClockedReading(self.lm).answer(selected, ids, max_new_tokens)


@dataclass(frozen=True)
class Clocked:
    """An encoder whose work is the piece of the embedding misses."""

    encoder: Encoder

    def encode(self, texts: list[str]) -> Float[np.ndarray, "texts d"]:
        return piece(embedding_misses.PAIR.name, self.encoder.encode)(texts)


@dataclass(frozen=True)
class ScoringAll:
    """A memory beside which the spans' scores are computed under others, too, whether anybody looks at them or not."""

    memory: Memory
    others: tuple[Memory, ...]

    @property
    def budget(self) -> int:
        return self.memory.budget

    def select(self, spans: Sequence[Span], query: str | None = None) -> list[Span]:
        if said := spans[1:]:  # the first is pinned
            piece(lazy_evaluation.PAIR.name, self._unasked)(said, query)
        return self.memory.select(spans, query)

    def _unasked(self, said: Sequence[Span], query: str | None) -> None:
        for other in self.others:
            other.score(said, query)
        self.memory.score(said, None)  # as if nothing were asked


@cache
def messages(turns: int) -> tuple[str, ...]:
    """What a user says in so many turns: the messages of the lab's dialogues, one dialogue after the other."""
    said = [m["content"] for talk in dialogues() for m in talk.messages if m["role"] == "user"]
    if not 0 <= turns <= len(said):
        raise ValueError(f"turns={turns}; the dialogues have {len(said)} messages of a user")
    return tuple(said[:turns])


def chat(turns: int = 40) -> Workload:
    """A chat of so many turns under `Semantic`, one step a turn.

    A turn: the memory selects, the model reads and answers in 8 tokens, and what was kept is prepared for the screen: the
    text of each token, where sentences end, which of all tokens so far a sliding window of the same budget would hold, and
    the block mask of such a window with its sinks.
    """
    return Workload("chat", tuple(pair.name for pair in SWITCHES), partial(_turns, messages(turns)), tolerance=0.0)


def _turns(said: Sequence[str], on: Setting) -> Iterator[object]:
    lm, encoder = real.lm(), real.encoder()
    tokenizer, enders = lm.tokenizer, marking_ids(lm.tokenizer)
    if embedding_misses.PAIR.name not in on:
        encoder = embedding_misses.OneByOne(encoder)
    embedded = EmbeddingCache(Clocked(encoder))
    memory: Memory | ScoringAll = Semantic(BUDGET, embedded)
    if lazy_evaluation.PAIR.name not in on:
        memory = ScoringAll(memory, (Sliding(BUDGET), BM25(BUDGET)))
    session = ChatSession(lm if kv_carry_over.PAIR.name in on else ReadingAgain(lm), memory, max_new_tokens=ANSWER)
    texts = partial(token_decoding.decode_each, tokenizer=tokenizer)
    if token_decoding.PAIR.name in on:
        texts = TokenDecodeCache(tokenizer).decode  # one for the whole chat, empty at first
    texts = piece(token_decoding.PAIR.name, texts)
    ends, window, mask = (
        piece(pair.name, pair.optimised if pair.name in on else pair.baseline)
        for pair in (sentence_boundaries.PAIR, sliding_eviction.PAIR, mask_construction.PAIR)
    )
    stream: list[int] = []
    for text in said:
        answer = session.send(text)
        ids = prompt(session.kept, tokenizer)
        stream += lm.ids(f"{text}\n{answer}\n").tolist()
        yield {
            "answer": answer,
            "kept": [span.sources for span in session.kept],
            "texts": texts(ids),
            "ends": ends(ids, enders),
            "window": window(stream, BUDGET),
            "mask": mask(len(stream), Streaming(sinks=4, window=BUDGET)),
        }
