"""A grid from one prefill is the runs one by one, token for token."""

import pytest
import torch

import fmlab as fm
from fmlab.cast import Cast
from fmlab.core import Policy, living_policies
from fmlab.forks import _ended
from fmlab.needs import LIVE
from fmlab.policies import (
    H2O,
    TOVA,
    Ada,
    Clairvoyant,
    KeyNorm,
    PerLayer,
    Pyramid,
    Random,
    SinkWindow,
    SlidingWindow,
    SnapKV,
)

ORDER = torch.randperm(256, generator=torch.Generator().manual_seed(8))  # none twice: equal tokens would tie
CONTEXT, QUESTION = ORDER[:60], ORDER[60:67]
POLICIES = (SinkWindow(), KeyNorm(), H2O(), TOVA(), SnapKV(4, 3), SnapKV(6, 3), Random(), SlidingWindow())
GRID = [(policy, budget) for policy in POLICIES for budget in (8, 21, 100)]
CLOSE = 1e-3  # two best logits nearer than this may change places


class Keys(Policy):
    """Looks at keys and values at every step, and remembers two columns."""

    def observe(self, view, stats):
        norms = view.values.norm(dim=-1)
        return {"age": stats.get("age", 0 * norms) + 1, "norm": norms}

    def score(self, view, stats):
        return stats["norm"] + stats["age"] / 64 + view.keys.float().mean(-1)


def alone(lm, policy, budget, tokens):
    """The same by `finite`: the cache after the context, the logits after the question, what is said, and where two best
    logits were too close to tell."""
    with fm.finite(lm.model, policy, budget) as cache:
        lm.model(input_ids=CONTEXT[None], past_key_values=cache)
        kept = cache.copy()
        logits = lm.model(input_ids=QUESTION[None], past_key_values=cache).logits[0]
        said, close, last = [], tokens, logits[-1]
        for step in range(tokens):
            best = last.topk(2).values
            if float(best[0] - best[1]) < CLOSE:
                close = min(close, step)
            said.append(int(last.argmax()))
            last = lm.model(input_ids=torch.tensor([said[-1:]]), past_key_values=cache).logits[0, -1]
    return kept, logits, said, close


@torch.no_grad()
@pytest.mark.parametrize("arch", ["llama", "qwen3", "mistral", "gpt_neox"])
def test_a_grid_is_the_runs_one_by_one(arch):
    lm = fm.tiny(arch)
    cells = [
        *GRID,
        (Keys(), 13),
        (Keys(), 21),
        (H2O(), Ada(12)),
        (SnapKV(4, 3), Ada(12)),
        (SnapKV(4, 3), Pyramid(12, beta=3)),
    ]
    cells += [(TOVA(), PerLayer((9, 14, 30))), (SinkWindow(), PerLayer((9, 14, 30)))]
    forks = fm.prefill(lm, CONTEXT).fork(cells)
    before = [forks[i].expiry for i in range(len(cells))]
    logits, said = forks.logits(QUESTION), forks.generate(QUESTION, 16)
    assert len(forks) == len(cells) == len(said) and logits.shape[:2] == (len(cells), 7)
    compared = 0
    for i, (policy, budget) in enumerate(cells):
        kept, expected, words, close = alone(lm, policy, budget, 16)
        assert torch.equal(kept.expiry, before[i]) and torch.equal(forks[i].expiry, before[i])
        assert [kept.positions(2).sort().values.tolist()] == [forks[i].positions(2).sort().values.tolist()]
        assert (kept.nbytes, kept.overhead_nbytes) == (forks[i].nbytes, forks[i].overhead_nbytes)
        torch.testing.assert_close(logits[i], expected, rtol=1e-4, atol=1e-4)
        if not isinstance(policy, KeyNorm | Keys):  # a word said twice has one norm: rounding decides between the two
            assert said[i, :close].tolist() == words[:close]
            compared += close
    assert compared > 12 * len(GRID)


@torch.no_grad()
def test_a_fork_goes_on_alone():
    lm = fm.tiny()
    forks = fm.prefill(lm, CONTEXT).fork(GRID)
    for i in (0, 5, -1):
        policy, budget = GRID[i]
        cache = forks[i]
        assert (cache.policy, cache.budget, cache.seen) == (policy, budget, 60)
        with fm.finite(lm.model, policy, budget):
            ours = lm.model(input_ids=QUESTION[None], past_key_values=cache).logits[0]
        torch.testing.assert_close(ours, alone(lm, policy, budget, 1)[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(IndexError):
        forks[len(GRID)]


@torch.no_grad()
def test_reading_in_chunks_evicts_between_them():
    lm, cells = fm.tiny(), [(H2O(), 12), (SinkWindow(), 12), (TOVA(), 30)]
    logits = fm.prefill(lm, CONTEXT).fork(cells).logits(ORDER[60:90], chunk=1)
    for i, (policy, budget) in enumerate(cells):
        with fm.finite(lm.model, policy, budget) as cache:
            parts = [CONTEXT[None], *ORDER[60:90, None, None]]
            alone = [lm.model(input_ids=part, past_key_values=cache).logits[0] for part in parts][1:]
        torch.testing.assert_close(logits[i], torch.cat(alone), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_ended_leave_the_batch_and_the_others_do_not_notice():
    lm = fm.tiny()
    forks = fm.prefill(lm, CONTEXT).fork(GRID)
    free = forks.generate(QUESTION, 16)
    end = int(free[:, 2:12].flatten().mode().values)
    lm.model.generation_config.eos_token_id = [end]
    said = forks.generate(QUESTION, 16)
    ended = (free == end).any(1)
    assert 0 < ended.sum() < len(free)
    for row, whole in zip(said.tolist(), free.tolist(), strict=True):
        stop = whole.index(end) if end in whole else 16
        assert row == whole[:stop] + [end] * (16 - stop)


def test_what_was_said_after_the_end_is_not_told():
    said = torch.tensor([[5, 2, 7, 2], [2, 3, 4, 5], [5, 6, 7, 8]])
    assert _ended(said, (2, 9)).tolist() == [[5, 2, 2, 2], [2, 2, 2, 2], [5, 6, 7, 8]]
    assert _ended(torch.tensor([[5, 9, 7]]), (2, 9)).tolist() == [[5, 9, 2]]
    assert _ended(said, ()).tolist() == said.tolist()


class Repeating(Policy):
    needs = frozenset({"second_pass"})

    def observe(self, view, stats):
        column = stats.get("repeated", torch.zeros(view.positions.shape))
        return {"repeated": view.fill_new(column, view.new_repeated)}

    def score(self, view, stats):
        return stats["repeated"]


def test_a_second_pass_is_made_where_it_is_needed():
    lm = fm.tiny()
    pre = fm.prefill(lm, CONTEXT)
    assert pre._repeated is None
    forks = pre.fork([(Repeating(), 20), (SinkWindow(), 20), (Repeating(), Ada(20))])
    trace = fm.record(lm, CONTEXT, dtype=torch.float32, second_pass=True)
    assert torch.equal(forks[0].expiry, fm.replay(trace, Repeating(), 20, prefill=60))
    held = forks[0].expiry[0, 0] == 61
    assert trace.repeated[0, 0][held].min() >= trace.repeated[0, 0][~held].max()
    with torch.no_grad():
        said = forks.generate(QUESTION, 4)
    assert said.shape == (3, 4)
    best = trace.repeated[1].flatten().topk(40 - 8).indices  # what is safe by itself aside
    kept = forks[2].expiry[1].flatten() == 61
    assert kept.sum() == 40 and kept[best].float().mean() > 0.95


def test_bad_cells():
    lm = fm.tiny()
    pre = fm.prefill(lm, CONTEXT)
    with pytest.raises(ValueError, match="no cells; give at least one"):
        pre.fork([])
    with pytest.raises(fm.BudgetError, match=r"SinkWindow\(sinks=4\): budget 3 < 5 pinned entries"):
        pre.fork([(H2O(), 8), (SinkWindow(), 3)])
    with pytest.raises(ValueError, match="needs future, which a prefill cannot prepare"):
        pre.fork([(Clairvoyant(), 8)])
    with pytest.raises(TypeError, match="budget True is no int"):
        pre.fork([(H2O(), True)])
    with pytest.raises(ValueError, match="the text is empty"):
        fm.prefill(lm, "")
    forks = pre.fork([(H2O(), 8)])
    for wrong in (lambda: forks.logits(""), lambda: forks.generate(QUESTION, 0), lambda: forks.logits(QUESTION, 0)):
        with pytest.raises(ValueError, match="empty|give at least 1"):
            wrong()
    assert "1 cells of Prefill(tiny llama, 60 tokens" in repr(forks)


class Writing(Policy):
    def score(self, view, stats):
        return view.age.neg_().float()


class Short(Policy):
    def score(self, view, stats):
        return -view.age.float()[:, 1:]


@torch.no_grad()
@pytest.mark.parametrize(("bad", "says"), [(Writing(), "changed age in place"), (Short(), "'score' the shape")])
def test_a_bad_policy_among_good_ones_is_named(bad, says):
    cast = Cast((SinkWindow(), bad))
    lm = fm.tiny()
    with pytest.raises(ValueError, match=rf"{type(bad).__name__}.*{says}"):
        with fm.finite(lm.model, cast, 8) as cache:
            lm.model(input_ids=torch.stack([CONTEXT, CONTEXT]), past_key_values=cache)


def test_a_cast_is_nobodys_choice():
    living = living_policies(LIVE)  # raises TypeError where it takes a Cast, which cannot be made of nothing
    assert SinkWindow in living and Cast not in living


def test_a_cast_keeps_the_columns_of_each():
    cast = Cast((H2O(), SinkWindow(), Keys(), H2O()))
    columns = [{"received": torch.full((2, 3), 1.0)}, {}, {"norm": torch.ones(2, 3) * 5, "age": torch.ones(2, 3) * 7}]
    shared = cast.joined([*columns, {"received": torch.full((2, 3), 2.0)}], heads=2)
    assert len(shared) == 2 and all(column.shape == (8, 3) for column in shared.values())
    rows = {name: column[4:6] for name, column in shared.items()}
    assert {name: float(column[0, 0]) for name, column in cast.own(2, rows).items()} == {"norm": 5, "age": 7}
    assert cast.own(1, {name: column[2:4] for name, column in shared.items()}) == {}
    assert float(cast.own(3, {name: column[6:] for name, column in shared.items()})["received"][0, 0]) == 2
    assert Cast((SinkWindow(),)).joined([{}], heads=2) == {}
