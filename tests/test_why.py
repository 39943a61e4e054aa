"""Why a token was evicted: the numbers are those by which select chose, for every policy of the library."""

from dataclasses import replace

import pytest
import torch

import fmlab as fm
from fmlab.core import select

BUDGET, PREFILL = 9, 14
SNAP = {"policy": fm.policies.SnapKV(window=4)}
SMALLER = {  # pins no more than the budget
    "ChunkKV": SNAP,
    "DuoAttention": SNAP | {"recent": 3},
    "Finch": {"window": 4},
    "LagKV": {"sinks": 1, "lag": 3},
    "Pinned": {"recent": 2},
    "Scissorhands": {"recent": 2},
    "SimLayerKV": SNAP | {"recent": 3},
    "SnapKV": {"window": 4},
}
POLICIES = [getattr(fm.policies, name)(**SMALLER.get(name, {})) for name in fm.policies.__all__]
REPLAYED = [policy for policy in POLICIES if policy.needs <= {"future"}]  # what a bare trace can prepare


@pytest.fixture(scope="module")
def trace():
    return fm.record(fm.tiny(), "A text to be forgotten, word by word by word.", layers=[0, 2])


@pytest.mark.parametrize("prefill", [1, PREFILL])
@pytest.mark.parametrize("policy", REPLAYED, ids=repr)
def test_its_numbers_are_those_of_select(trace, policy, prefill):
    expiry = fm.replay(trace, policy, BUDGET, prefill)
    evicting = []  # what select was given and chose, call by call

    def watch(view, stats):
        scores = policy.score(view, stats).clone()
        evicting.append((view.positions.clone(), scores, select(scores, BUDGET, view.positions)))

    fm.replay(trace, policy, BUDGET, prefill, None, watch)
    heads = trace.kv_heads
    told = 0
    for position in range(0, len(trace), 3):
        found = fm.why(trace, policy, BUDGET, position, prefill)
        assert torch.equal(found.step + 1, expiry[..., position].masked_fill(expiry[..., position] > len(trace), 0))
        for row in found.rows():
            told += 1
            at = trace.layers.index(row["layer"]) * heads + row["head"]
            positions, scores, keep = next(call for call in evicting if int(call[0][at].max()) == row["step"])
            mine = int((positions[at] == position).nonzero())
            assert not keep[at, mine] and row["score"] == pytest.approx(float(scores[at, mine]), abs=0)
            assert row["cut"] == float(scores[at][keep[at]].min())
            assert row["held"] == positions.shape[1] and row["kept"] == BUDGET < row["rank"] <= row["held"]
            smaller = positions[at][keep[at] & (scores[at] == row["cut"])].min() > position
            assert row["score"] < row["cut"] or (row["score"] == row["cut"] and smaller)
            above = (scores[at] > row["score"]) | ((scores[at] == row["score"]) & (positions[at] > position))
            assert row["rank"] == int(above.sum()) + 1
    assert told > 20


def test_a_tie_goes_to_the_larger_position(trace):
    class Even(fm.Policy):
        """Thinks the same of all."""

        def score(self, view, stats):
            return torch.zeros(view.positions.shape)

    row = fm.why(trace, Even(), 5, 3).rows()[0]
    assert row == {"layer": 0, "head": 0, "step": 8, "score": 0, "cut": 0, "rank": 6, "held": 6, "kept": 5}


def test_a_token_that_is_held_to_the_end(trace):
    last = fm.why(trace, fm.policies.TOVA(), 9, len(trace) - 1)
    assert (last.step == -1).all() and last.score.isnan().all() and last.rows() == []
    assert repr(last) == f"Why(position {len(trace) - 1} {trace.tokens[-1]!r}: evicted in 0 of 4 heads)"


def test_it_stops_where_nothing_more_can_be_told(trace):
    done = []
    found = fm.why(trace, fm.policies.SlidingWindow(), 4, 0, progress=done.append)
    assert found.step.tolist() == [[4, 4], [4, 4]] and done == []


def test_what_the_model_s_own_window_hides_goes_first(trace):
    windowed = replace(trace, windows=(6, None))
    rows = fm.why(windowed, fm.policies.SinkWindow(), 8, 0).rows()
    of_layer_0 = [(row["score"], row["step"]) for row in rows if row["layer"] == 0]
    assert of_layer_0 == [(-torch.inf, 8)] * 2  # it has seen nothing of token 0 since step 5, and is full at step 8


def test_a_position_outside_the_trace_is_refused(trace):
    for position in (-1, len(trace)):
        with pytest.raises(ValueError, match=f"position {position} of a trace of {len(trace)} tokens"):
            fm.why(trace, fm.policies.TOVA(), 5, position)
