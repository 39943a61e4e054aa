import cachetools
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmlab.caches import EmbeddingCache


class Letters:
    """How often each of four letters stands in a text."""

    def __init__(self, kind=np.array):
        self.calls, self.kind = [], kind

    def encode(self, texts):
        self.calls.append(list(texts))
        return self.kind([[text.count(letter) for letter in "abcd"] for text in texts])


class Gives:
    def __init__(self, *given):
        self.given = list(given)

    def encode(self, texts):
        return self.given.pop(0)


@given(st.lists(st.lists(st.text("abcd", max_size=2))), st.integers(1, 8))
def test_it_is_what_the_encoder_gives_and_new_texts_are_one_batch(batches, size):
    encoder = Letters()
    cache = EmbeddingCache(encoder, cachetools.LRUCache(size))
    for texts in batches:
        encoder.calls.clear()
        before, known = cache.misses, {text for text in texts if text in cache.memo._store}
        got = cache.encode(texts)
        new = [text for text in dict.fromkeys(texts) if text not in known]
        assert encoder.calls == ([new] if new else [])
        assert cache.misses - before == len(new)
        assert got.dtype == np.float32
        if texts:
            assert np.array_equal(got, Letters().encode(texts))
    assert cache.hits + cache.misses == sum(map(len, batches))


@pytest.mark.parametrize(
    "kind", [np.array, list, torch.tensor, lambda rows: torch.tensor(rows, dtype=torch.bfloat16, requires_grad=True)]
)
def test_rows_come_in_many_kinds(kind):
    got = EmbeddingCache(Letters(kind)).encode(["abba", "d"])
    assert got.dtype == np.float32 and got.tolist() == [[2, 2, 0, 0], [0, 0, 0, 1]]


def test_a_result_is_the_callers_own():
    encoder = Letters(lambda rows: np.array(rows, dtype=np.float32))
    cache = EmbeddingCache(encoder)
    first = cache.encode(["a", "b"])
    first[:] = 9
    assert cache.encode(["a", "b"]).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert (cache.hits, cache.misses, cache.hit_ratio) == (2, 2, 0.5)


def test_what_is_kept_does_not_share_the_encoders_memory():
    buffer = np.ones((1, 3), np.float32)
    cache = EmbeddingCache(Gives(buffer))
    cache.encode(["a"])
    buffer[:] = 5
    assert cache.encode(["a"]).tolist() == [[1, 1, 1]]
    assert all(row.base is None for row in cache.memo._store.values())


def test_no_texts_and_a_cache_as_an_encoder():
    cache = EmbeddingCache(Letters())
    assert cache.encode([]).shape == (0, 0)
    assert EmbeddingCache(cache).encode(["a"]).shape == (1, 4)
    assert cache.encode([]).shape == (0, 4)
    assert cache.encoder.calls == [["a"]]


def test_a_store_in_bytes_holds_as_many_rows_as_fit():
    cache = EmbeddingCache(Letters(), cachetools.LRUCache(3 * 16, getsizeof=lambda row: row.nbytes))
    assert cache.encode(list("abcd")).tolist() == np.eye(4).tolist()
    assert len(cache.memo) == 3


@pytest.mark.parametrize("wrong", [np.ones((1, 2)), np.ones((3, 2)), np.ones(2), torch.ones(2, 1, 1)])
def test_an_encoder_with_other_than_a_row_a_text_is_refused(wrong):
    cache = EmbeddingCache(Gives(wrong, np.ones((2, 2))))
    with pytest.raises(ValueError, match="Gives.encode gave shape .* for 2 texts"):
        cache.encode(["a", "b"])
    assert cache.encode(["a", "b"]).shape == (2, 2)


def test_an_encoder_that_changes_its_width_is_refused():
    cache = EmbeddingCache(Gives(np.ones((1, 2)), np.ones((1, 3))))
    cache.encode(["a"])
    with pytest.raises(ValueError, match="rows of 3, before of 2"):
        cache.encode(["b"])
    assert cache.encode(["a"]).shape == (1, 2)


def test_what_is_no_list_of_texts_is_named():
    cache = EmbeddingCache(Letters())
    with pytest.raises(TypeError, match="'abc' is one text"):
        cache.encode("abc")
    with pytest.raises(TypeError, match="3"):
        cache.encode(["abc", 3])
    assert cache.encoder.calls == []


def test_its_repr_stays_the_same_whatever_it_is_asked():
    encoder = Letters()
    cache = EmbeddingCache(encoder)
    label = repr(cache)
    cache.encode(["a", "b", "a"])
    assert repr(cache) == label == f"EmbeddingCache({encoder!r})" and cache.hits == 1
