"""The texts of single tokens, with and without a cache."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fmlab as fm
from fmlab.optimizations.token_decoding import PAIR
from fmlab.optimizations.token_decoding_backend import PAIR as BENEATH


@pytest.fixture(scope="module")
def tokenizer():
    return fm.tiny().tokenizer


@given(ids=st.lists(st.integers(0, 255), max_size=80))
def test_both_decode_every_token_alone(tokenizer, ids):
    before = list(ids)
    texts = PAIR.optimised(ids, tokenizer)
    assert texts == PAIR.baseline(ids, tokenizer) == BENEATH.baseline(ids, tokenizer)
    assert len(texts) == len(ids) and ids == before
    assert all(text == (chr(id) if id < 128 else "\ufffd") for id, text in zip(ids, texts, strict=True))


def test_the_cache_begins_empty_at_every_call(monkeypatch):
    tokenizer, asked = fm.tiny().tokenizer, []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **how: asked.extend(ids) or decode(ids, **how))
    for _ in range(2):
        assert PAIR.optimised([97, 98, 97], tokenizer) == ["a", "b", "a"]
    assert asked == [97, 98, 97, 98]
    assert PAIR.baseline([97, 97], tokenizer) == ["a", "a"] and asked[4:] == [97, 97]


@pytest.mark.real
@pytest.mark.parametrize("size", [0, 1, 500])
def test_real_inputs(lm, size):
    ids, tokenizer = PAIR.inputs(size, 5)
    texts = PAIR.optimised(ids, tokenizer)
    assert len(ids) == len(texts) == size and texts == PAIR.baseline(ids, tokenizer)
    assert texts == BENEATH.optimised(ids, tokenizer) == BENEATH.baseline(ids, tokenizer)
    assert "".join(texts) == lm.tokenizer.decode(ids)
    assert PAIR.floor(size).amount == size


def test_a_tokenizer_that_decodes_otherwise_is_asked_itself(monkeypatch, tokenizer):
    monkeypatch.setattr(tokenizer, "_decode", lambda *_, **__: "other")
    assert fm.caches.TokenDecodeCache(tokenizer).decode([97]) == [tokenizer.decode([97])] == ["other"]
