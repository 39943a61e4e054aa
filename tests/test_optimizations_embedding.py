"""Embeddings in batches and one by one, in the order given and by length: the same vectors in the same order."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from at_hand import unavailable
from hypothesis import given
from hypothesis import strategies as st

from fmlab.conversation import dialogues
from fmlab.optimizations import embedding_by_length, embedding_misses, real
from fmlab.optimizations.embedding_misses import OneByOne, turns
from fmlab.wheels import ModelError

MISSES, BY_LENGTH = embedding_misses.PAIR, embedding_by_length.PAIR


@dataclass
class Counting:
    """Gives a text its length and the number of its blanks, and remembers what it was asked."""

    asked: list[list[str]] = field(default_factory=list)
    batch: int = 3

    def encode(self, texts: list[str]) -> np.ndarray:
        self.asked.append(list(texts))
        return np.array([(len(text), text.count(" ")) for text in texts], np.float32).reshape(-1, 2)


@pytest.fixture(scope="module")
def minilm():
    try:
        return real.encoder()
    except ModelError as error:
        unavailable(f"the encoder cannot be had: {error}")


@given(st.lists(st.text("a b", max_size=4), max_size=12))
def test_misses_are_encoded_once_each_together_or_one_by_one(texts):
    together, alone, before = Counting(), Counting(), list(texts)
    vectors = MISSES.optimised(texts, together)
    assert np.array_equal(vectors, MISSES.baseline(texts, alone)) and texts == before
    distinct = list(dict.fromkeys(texts))
    assert together.asked == [distinct] * bool(texts) and alone.asked == [[text] for text in distinct]
    assert [int(length) for length in vectors[:, :1].flatten()] == [len(text) for text in texts]


@given(st.lists(st.text("a b", max_size=4), min_size=1, max_size=12))
def test_the_order_given_is_kept_batch_by_batch(texts):
    encoder = Counting()
    vectors = BY_LENGTH.baseline.__wrapped__(texts, encoder)
    assert [text for batch in encoder.asked for text in batch] == texts
    assert {len(batch) for batch in encoder.asked[:-1]} <= {3}
    assert np.array_equal(vectors, Counting().encode(texts))


def test_turns_are_a_ring_over_all_dialogues():
    said = [message["content"] for dialogue in dialogues() for message in dialogue.messages]
    long = turns(len(said) + 2, seed=4)
    assert set(long) == set(said) and long[:2] == long[-2:] and turns(0, 1) == []
    assert turns(5, 1) == turns(5, 1) != turns(5, 2)


def test_one_by_one_of_one_text():
    assert OneByOne(Counting()).encode(["a b"]).tolist() == [[3.0, 1.0]]


@pytest.mark.real
@pytest.mark.parametrize("pair", [MISSES, BY_LENGTH], ids=lambda pair: pair.name)
@pytest.mark.parametrize("size", [0, 1, 5])
def test_real_inputs(minilm, pair, size):
    texts, encoder = pair.inputs(size, 2)
    vectors = pair.optimised(texts, encoder)
    assert len(texts) == len(vectors) == size
    assert np.allclose(pair.baseline(texts, encoder), vectors, rtol=0, atol=pair.tolerance)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert len(set(texts)) == (3 if pair is MISSES and size == 5 else size)


@pytest.mark.real
def test_sorting_by_length_moves_no_vector(minilm):
    texts = turns(7, 3)
    small = type(minilm)(batch=2)
    assert np.allclose(BY_LENGTH.baseline(texts, small), BY_LENGTH.optimised(texts, small), rtol=0, atol=1e-5)


@pytest.mark.real
def test_the_floor_is_below_what_the_encoder_reads(minilm):
    texts, _ = MISSES.inputs(4, 0)
    assert MISSES.floor(4).amount == embedding_misses.operations(texts[:2])
    assert BY_LENGTH.floor(2).amount == embedding_misses.operations(texts[:2])
    assert embedding_misses.operations(["one two"]) == 4 * embedding_misses.OPERATIONS
