"""Sentence boundaries over token ids: one lookup table over the vocabulary against a comprehension with a frozenset.

Both begin with a tensor, as a model hands the ids out, and give one. The table is made once a tokenizer (half a second
for 49,152 tokens) and is not timed, no more than the frozenset is that the comprehension is given.
"""

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..conversation.sentences import marking_ids, sentence_marks
from . import real
from .pair import Floor, Pair


def comprehension(
    ids: Int[Tensor, " tokens"], enders: frozenset[int], tokenizer: PreTrainedTokenizerBase
) -> Int[Tensor, " marks"]:
    """The places of the tokens that are among the enders, the claimed way."""
    return torch.tensor([place for place, id in enumerate(ids.tolist()) if id in enders], dtype=torch.int64)


def table(
    ids: Int[Tensor, " tokens"], enders: frozenset[int], tokenizer: PreTrainedTokenizerBase
) -> Int[Tensor, " marks"]:
    """The same as the lab finds them, ids beyond the vocabulary refused."""
    return sentence_marks(ids, tokenizer)


def inputs(size: int, seed: int) -> tuple[Int[Tensor, " tokens"], frozenset[int], PreTrainedTokenizerBase]:
    """Ids of a stretch of prose, the ids of all tokens that could end a sentence, and the tokenizer."""
    tokenizer = real.lm().tokenizer
    return real.text_ids(size, seed), frozenset(marking_ids(tokenizer)), tokenizer


def floor(size: int) -> Floor:
    return Floor(9 * size, "bytes", "an id of 8 bytes read a token, and its byte in the table")


PAIR = Pair(
    name="sentence boundaries: lookup table over the vocabulary",
    claim=None,
    source="fmlab.conversation.sentences: a summary that its tokens cut short ends with its last whole sentence",
    baseline=comprehension,
    optimised=table,
    inputs=inputs,
    sizes=(10, 100, 1_000, 10_000),
    unit="tokens",
    floor=floor,
    used_in="fmlab.conversation.sentences.sentence_marks",
)
