"""Three ways to find the tokens that could end a sentence, and the lab's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fmlab as fm
from fmlab.conversation.sentences import marking_ids
from fmlab.optimizations import boundary_table, sentence_boundaries, sentence_boundaries_list

CLAIMED = sentence_boundaries.PAIR, sentence_boundaries_list.PAIR


@pytest.fixture(scope="module")
def tokenizer():
    return fm.tiny().tokenizer


@given(st.lists(st.integers(0, 20), max_size=60), st.sets(st.integers(0, 20)).map(sorted))
def test_all_find_the_places_of_the_enders(ids, enders):
    places = [place for place in range(len(ids)) if enders.count(ids[place])]
    given = [*ids], [*enders]
    assert [pair.baseline(*given) for pair in CLAIMED] == [places] * 2
    assert [pair.optimised(*given) for pair in CLAIMED] == [places] * 2
    assert given == (ids, enders)


@given(text=st.binary(max_size=60))
def test_the_table_finds_what_the_comprehension_finds(tokenizer, text):
    ids = torch.tensor(list(text), dtype=torch.int64)
    given = ids, frozenset(marking_ids(tokenizer)), tokenizer
    baseline, optimised = (way(*given) for way in (boundary_table.PAIR.baseline, boundary_table.PAIR.optimised))
    assert torch.equal(baseline, optimised) and optimised.dtype == torch.int64
    spelled = [tokenizer.decode([id]) for id in text]
    assert optimised.tolist() == [place for place, one in enumerate(spelled) if one in (".", "!", "?")]


@pytest.mark.real
@pytest.mark.parametrize("pair", [*CLAIMED, boundary_table.PAIR], ids=lambda pair: pair.name)
@pytest.mark.parametrize("size", [0, 1, 2_000])
def test_real_inputs(lm, pair, size):
    ids, enders, *_ = given = pair.inputs(size, 7)
    baseline, found = ([int(place) for place in way(*given)] for way in (pair.baseline, pair.optimised))
    assert len(ids) == size and baseline == found
    assert len(enders) == 134 and (size < 2_000 or 20 < len(found) < 400)
    texts = [lm.tokenizer.decode([int(ids[place])]) for place in found]
    assert all(set(text) & set(".!?") for text in texts)


def test_what_the_pairs_say_of_themselves():
    assert [pair.claim for pair in CLAIMED] == [(1.1, 1.3)] * 2 and boundary_table.PAIR.claim is None
    assert CLAIMED[0].floor(100).amount == 100 and boundary_table.PAIR.floor(100).amount == 900
