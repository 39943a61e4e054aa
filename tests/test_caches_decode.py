import cachetools
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fmlab as fm
from fmlab.caches import TokenDecodeCache

TOKENIZER = fm.tiny().tokenizer


def uncached(tokenizer, ids):
    plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return [tokenizer.decode([id], **plain) for id in ids]


@given(st.lists(st.lists(st.integers(0, 255))), st.integers(1, 300))
def test_it_is_what_the_tokenizer_decodes(rows, size):
    cache, kept = TokenDecodeCache(TOKENIZER, cachetools.LRUCache(size)), 0
    for ids in rows:
        assert cache.decode(ids) == uncached(TOKENIZER, ids)
        kept += len(ids)
    assert cache.hits + cache.misses == kept
    if size >= 256:
        assert cache.misses == len({id for ids in rows for id in ids})


def test_bytes_that_are_no_character_show_as_such():
    cache, ids = TokenDecodeCache(TOKENIZER), list("né".encode())
    assert cache.decode(ids) == ["n", "\ufffd", "\ufffd"]
    assert cache.decode(ids + ids) == 2 * ["n", "\ufffd", "\ufffd"]
    assert (cache.hits, cache.misses, cache.hit_ratio) == (6, 3, 6 / 9)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, iter, lambda ids: torch.tensor(ids).int()])
def test_ids_come_in_many_kinds(kind):
    assert TokenDecodeCache(TOKENIZER).decode(kind([104, 105, 104])) == ["h", "i", "h"]
    assert TokenDecodeCache(TOKENIZER).decode(kind([])[:0] if kind is torch.tensor else []) == []


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[1, 2]], r"shape \(1, 2\).*ids\[0\]"),
        ([1.0], "float64, not integers"),
        (torch.tensor([True]), "bool, not integers"),
        ([-1], "-1 is negative"),
        ([7, 256], "id 256 is no token"),
        ([7, 2**40], "id 1099511627776 is no token"),
    ],
)
def test_what_are_no_ids_is_named(ids, said):
    cache = TokenDecodeCache(TOKENIZER)
    with pytest.raises(ValueError, match=said):
        cache.decode(ids)
    assert cache.hits == 0 and cache.decode([7]) == ["\x07"]


def test_the_label_shows_the_counts():
    cache = TokenDecodeCache(TOKENIZER)
    cache.decode([1, 1])
    assert repr(cache) == "TokenDecodeCache(Memo(LRUCache, 1 values, 1 of 10,000, 1 hits, 1 misses))"


@pytest.mark.real
def test_the_real_tokenizer(lm):
    text = "naïve 𓀀<|im_start|> the  end .\n"
    cache, ids = TokenDecodeCache(lm.tokenizer), lm.ids(text)
    pieces = cache.decode(ids)
    assert pieces == uncached(lm.tokenizer, ids.tolist())
    assert "<|im_start|>" in pieces and " the" in pieces and "\ufffd" in pieces
    assert cache.decode(ids) == pieces and cache.hits >= len(ids)
