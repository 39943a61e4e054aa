"""Where sentences end, over token ids: a lookup in tables over the vocabulary, made once a tokenizer."""

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

CLOSERS = "\"'”’»)\\]}"  # quotes and brackets that may close behind the stop, as a class of a regular expression
MARK = re.compile(rf"[.!?][{CLOSERS}]*\s*\Z")
CLOSING = re.compile(rf"[{CLOSERS}]+\s*")
BEFORE = "a"  # a token is decoded behind this, as some tokenizers drop the blank of one that comes first


def sentence_ends(ids: Int[Tensor, " tokens"], tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " ends"]:
    """The places of the last tokens of sentences, in order, int64: a sentence is `ids[: end + 1]` from the one before.

    A sentence ends with `.`, `!` or `?` and the quotes and brackets that close behind it, where white space, a special
    token or nothing comes next: so not inside `3.5`, `fmlab.org` or `...`. What no table over tokens can know: that the
    stop of `Dr. Hale` is an abbreviation's, that a text cut short at `3.` was to go on, and a sentence without a stop; a
    closing mark or a blank that the tokenizer spells with several tokens (bytes) is not seen as one.
    Raises ValueError for ids that the tokenizer does not have.
    """
    tables, row = _tables(tokenizer, len(tokenizer)), ids.cpu().numpy()
    ends = sentence_marks(ids, tokenizer).numpy()
    following = np.append(row, len(tokenizer))  # behind the last token stands what opens the next sentence
    while (closed := tables.closing[following[ends + 1]] & ~tables.spaced[row[ends]]).any():
        ends = ends + closed
    return torch.from_numpy(ends[tables.opening[following[ends + 1]] | tables.spaced[row[ends]]])


def sentence_marks(ids: Int[Tensor, " tokens"], tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " marks"]:
    """The places of the tokens whose own text could end a sentence, whatever comes next, in order, int64.

    One lookup a token, by NumPy in one thread: torch shares a few thousand out over several, and where other programs
    keep the cores busy it waits for them (15 ms was seen, for work of 0.04 ms). Raises ValueError for ids that the tokenizer does not have.
    """
    marks, row = _tables(tokenizer, len(tokenizer)).marks, ids.cpu().numpy()
    if len(row) and (row.min() < 0 or row.max() >= len(tokenizer)):
        raise ValueError(
            f"ids run from {row.min()} to {row.max()}, the tokens of {type(tokenizer).__name__} from 0 to "
            f"{len(tokenizer) - 1}; give the tokenizer that made them"
        )
    return torch.from_numpy(marks[row].nonzero()[0])


def marking_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of all tokens whose own text could end a sentence: `.`, `?"`, `...`, `!)`; in order."""
    return _tables(tokenizer, len(tokenizer)).marks.nonzero()[0].tolist()


class _Tables(NamedTuple):
    """What each token of the vocabulary is; the last row stands for what comes after the last token."""

    marks: Bool[np.ndarray, " rows"]
    """Ends with a stop and what closes behind it."""
    closing: Bool[np.ndarray, " rows"]
    """Is nothing but quotes and brackets that close."""
    opening: Bool[np.ndarray, " rows"]
    """Begins with white space, or is special, or is the end."""
    spaced: Bool[np.ndarray, " rows"]
    """Ends with white space."""


@lru_cache(maxsize=16)
def _tables(tokenizer: PreTrainedTokenizerBase, size: int) -> _Tables:
    """`size` is the tokenizer's length: tokens that are added to it make it another key."""
    before = tokenizer.encode(BEFORE, add_special_tokens=False)
    as_it_is = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    alone = tokenizer.decode(before, **as_it_is)
    texts = [
        text.removeprefix(alone) for text in tokenizer.batch_decode([[*before, id] for id in range(size)], **as_it_is)
    ]
    special = set(tokenizer.all_special_ids)
    kinds = [
        (
            id not in special and bool(MARK.search(text)),
            id not in special and bool(CLOSING.fullmatch(text)),
            id in special or text[:1].isspace(),
            text[-1:].isspace(),
        )
        for id, text in enumerate(texts)
    ]
    return _Tables(*np.array([*kinds, (False, False, True, False)]).T.copy())
