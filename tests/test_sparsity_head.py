"""One head by blocks, the Oracle's line and the dials of patterns: against the functions that hold the whole matrix."""

import inspect
import math
import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fmlab as fm
from fmlab.sparsity import (
    BlockChoice,
    BlockedHead,
    BlockTopK,
    Grid,
    LocalGlobal,
    Oracle,
    Pattern,
    SlidingBlocks,
    Streaming,
    Strided,
    Union,
    block_mass,
    frontier,
    living_patterns,
    mass_recall,
    output_error,
)
from fmlab.sparsity.dial import OWN, at_density, density_over, dial, stops


def head(tokens, seed=0, d=4):
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(tokens, width, generator=draw, dtype=torch.float64) for width in (d, d, d + 1))


def whole(q, k):
    scores = (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(torch.ones(len(q), len(q)).triu(1) > 0, -torch.inf)
    return scores.softmax(-1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 23), st.sampled_from([1, 2, 4, 8]), st.integers(0, 99))
def test_a_head_by_blocks_is_the_head_as_a_whole(tokens, block, seed):
    q, k, v = head(tokens, seed)
    grid, one = Grid(tokens, tokens, block), BlockedHead(q, k, v, block)
    chosen = (torch.rand(grid.rows, grid.columns, generator=torch.Generator().manual_seed(seed)) < 0.4) | grid.own
    choice = BlockChoice(chosen[None, None], tokens, tokens, block)
    torch.testing.assert_close(one.mass, block_mass(q[None, None], k[None, None], block)[0, 0], rtol=0, atol=1e-12)
    wanted = output_error(q[None, None], k[None, None], v[None, None], choice)
    assert abs(one.error(choice.blocks[0, 0]) - float(wanted)) < 1e-10
    torch.testing.assert_close(one.weights(range(tokens), range(tokens)), whole(q, k), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("queries", "keys", "each"), [
    (range(0, 70), range(0, 70), 2), (range(0, 70), range(0, 70), 1), (range(13, 61), range(5, 47), 5),
    (range(0, 9), range(30, 60), 4), (range(60, 70), range(0, 3), 8),
])  # fmt: skip
def test_the_pooled_map_is_the_mean_over_causal_pairs(queries, keys, each):
    q, k, v = head(70)
    attention, found = whole(q, k), BlockedHead(q, k, v, 8).pooled(queries, keys, each)
    assert found.shape == (-(-len(queries) // each), -(-len(keys) // each))
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            pairs = [
                float(attention[i, j])
                for i in queries[row * each : (row + 1) * each]
                for j in keys[column * each : (column + 1) * each]
                if j <= i
            ]
            wanted = sum(pairs) / len(pairs) if pairs else math.nan
            assert float(found[row, column]) == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_a_head_stands_even_where_the_choice_holds_no_mass_to_speak_of():
    q, k, v = head(16)
    k[0], q[:] = 1e3, 1.0  # all attention lies on the first token; elsewhere it is exp(-2,000)
    one = BlockedHead(q.float(), k.float(), v.float(), 4)
    error = one.error(SlidingBlocks(1).blocks(q[None, None], k[None, None], 4).blocks[0, 0])
    assert math.isfinite(error) and error > 0.1


def test_a_head_that_does_not_fit_is_refused():
    q, k, v = head(9)
    with pytest.raises(ValueError, match=r"\(9, 4\), \(8, 4\), \(9, 5\); give those of one head"):
        BlockedHead.__init__.__wrapped__(object.__new__(BlockedHead), q, k[:8], v)
    with pytest.raises(ValueError, match="same tokens, one or more"):
        BlockedHead(q[:0], k[:0], v[:0])
    with pytest.raises(ValueError, match=r"blocks of \(2, 2\) for a head of \(3, 3\)"):
        BlockedHead(q, k, v, 4).error(torch.ones(2, 2, dtype=torch.bool))


def several(tokens=96, heads=3):
    draw = torch.Generator().manual_seed(1)
    return tuple(torch.randn(1, h, tokens, 4, generator=draw) for h in (heads, 1))


def test_the_frontier_is_the_oracle_at_every_density():
    q, k = several()
    mass, grid = block_mass(q, k, 8), Grid(96, 96, 8)
    density, recall = frontier(mass, grid)
    assert (density.diff() > 0).all() and (recall.diff() >= 0).all() and float(density[0, -1]) == 1
    assert float(recall[0, -1]) == pytest.approx(1, abs=1e-5)
    for wanted in (0.01, 0.2, 0.31, 0.8, 1.0):
        choice = Oracle(wanted).blocks(q, k, 8)
        assert torch.equal(choice.blocks, Oracle(wanted).of(mass, grid).blocks)
        at = int((density[0] - choice.density).abs().argmin())
        assert float(density[0, at]) == pytest.approx(choice.density, abs=1e-6)
        assert float(recall[0, at]) == pytest.approx(float(mass_recall(q, k, choice).mean()), abs=1e-5)
    with pytest.raises(ValueError, match="no query"):
        frontier(mass[:, :, :0], Grid(0, 96, 8))


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_a_dial_comes_near_any_density_within_its_reach(kind):
    q, k = several(256)
    pattern, density = kind(), density_over(q, k, 16)
    found = stops(pattern, density, 256)
    assert found == sorted(found) and len(found) < 60
    assert all(density(at_density(pattern, [stop], 0.5)) == stop.density for stop in found[::5])
    low, high = min(stop.density for stop in found), max(stop.density for stop in found)
    if kind not in (Strided,) and dial(kind) != "random":
        assert low < 0.7 and (high == 1 or kind.__name__ == "Dilated")
    near = at_density(pattern, found, (low + high) / 2)
    assert type(near) is kind and abs(density(near) - (low + high) / 2) < 0.12  # a step of one block at this size


def test_every_pattern_of_the_lab_names_its_paper():
    own = [kind for kind in living_patterns() if kind.__module__.startswith("fmlab.")]
    assert own == list(OWN)
    for kind in own:
        assert kind is Oracle or re.search(r"arXiv:\d{4}\.\d{5}", inspect.getdoc(kind)), kind


def test_every_dial_is_a_number_of_the_pattern():
    names = {kind.__name__: dial(kind) for kind in OWN}
    assert names == {
        "SlidingBlocks": "window", "Streaming": "window", "LocalGlobal": "window", "BigBird": "random",
        "Strided": "stride", "Dilated": "window", "VerticalSlash": "slash", "BlockTopK": "top", "QuestTopK": "top",
        "AntiDiagonal": "threshold", "Oracle": "density",
    }  # fmt: skip
    with pytest.raises(ValueError, match="has no number that turns its density"):
        at_density(Streaming() | LocalGlobal(), [], 0.1)
    assert stops(Streaming() | LocalGlobal(), density_over(*several(), 8), 96) == []


def test_a_readers_own_pattern_is_alive_once_and_joined_ones_are_none():
    def define():
        @dataclass(frozen=True)
        class Mine(Pattern):
            """A reader's own."""

            last: int = 2

            def blocks(self, q, k, block=64):
                return SlidingBlocks(self.last).blocks(q, k, block)

        return Mine

    first = define()
    second = define()
    alive = living_patterns()
    assert alive[: len(OWN)] == list(OWN) and second in alive and first not in alive and Union not in alive
    assert dial(second) == "last" and BlockTopK in alive and fm.sparsity.Intersection not in alive


def test_a_dial_stops_where_it_is_told_to():
    asked = []

    def check():
        asked.append(1)
        if len(asked) > 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        stops(SlidingBlocks(), density_over(*several(), 8), 96, check)
    assert len(asked) == 4
