import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import fmlab as fm
from fmlab.metrics import mass_recall, regret
from fmlab.oracle import _solve, certificate, eviction_times, losses, prices
from fmlab.policies import H2O, TOVA, Random, SinkWindow
from fmlab.rerun import replay
from fmlab.slots import split

IDS = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trace():
    return fm.record(fm.tiny(), IDS, dtype=torch.float32)


def drawn(tokens, seed):
    """Causal attention of one head, sharp and uneven."""
    rng = np.random.default_rng(seed)
    paid = np.tril(rng.exponential(size=(tokens, tokens)) ** 3 * rng.exponential(size=tokens))
    return paid / paid.sum(1, keepdims=True)


def linear_programme(paid, budget, prefill):
    """The most mass that queries may see, with fractions of entries, straight from the words: what is gone stays gone,
    a call's queries see its own entries and at most `budget` earlier ones, the same for all of them."""
    tokens = len(paid)
    ends = np.cumsum(split(tokens, prefill))
    start = {t: int(ends[ends <= t].max(initial=0)) for t in range(tokens)}  # of the call of query t
    number = {pair: n for n, pair in enumerate((t, i) for i in range(tokens) for t in range(i, tokens))}
    below, bounds_below, same = [], [], []
    for t, i in number:
        row = np.zeros(len(number))
        row[number[t, i]] = -1
        if (t + 1, i) in number:
            row[number[t + 1, i]] = 1
            below.append(row)
            bounds_below.append(0)
            if start[t] == start[t + 1]:
                same.append(row)
    for t in range(tokens):
        row = np.zeros(len(number))
        row[[number[t, i] for i in range(start[t])]] = 1
        below.append(row)
        bounds_below.append(budget)
    free = [(1, 1) if start[t] <= i else (0, 1) for t, i in number]
    worth = -np.array([paid[t, i] for t, i in number])
    equal = {"A_eq": np.array(same), "b_eq": np.zeros(len(same))} if same else {}
    return -linprog(worth, A_ub=np.array(below), b_ub=bounds_below, bounds=free, **equal).fun


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6))
def test_it_is_the_optimum_of_the_linear_programme(tokens, budget, prefill, seed):
    paid, times = drawn(tokens, seed), eviction_times(tokens, budget, prefill)
    assert len(times) == max(0, tokens - budget)
    lost = 0.0
    if len(times):
        loss = losses(paid, times)
        lost = loss[np.arange(len(times)), _solve(paid, times)].sum()
    assert tokens - lost == pytest.approx(linear_programme(paid, budget, prefill), abs=1e-8)


def test_the_certificate_refuses_what_is_not_best():
    paid, times = drawn(30, 0), eviction_times(30, 8, 1)
    loss = losses(paid, times)
    gone = _solve(paid, times)
    assert abs(certificate(loss, gone)) < 1e-12
    cost = loss[np.arange(len(gone)), gone].sum()
    for a, b in ((3, 4), (0, 20), (10, 11)):
        worse = gone.copy()
        worse[[a, b]] = worse[[b, a]]
        dearer = loss[np.arange(len(gone)), worse].sum() - cost
        assert certificate(loss, worse) >= dearer - 1e-12 and dearer > 1e-6


@pytest.mark.parametrize("prefill", [1, 12, 40, (6, 20)])
def test_no_run_is_better(trace, prefill):
    best = fm.oracle(trace, 8, prefill)
    assert best.shape == (3, 2, 40) and (best > torch.arange(40)).all()
    for call in np.cumsum(split(40, prefill)):  # within budget after every call
        assert (best[..., :call] > int(call)).sum(-1).eq(min(8, int(call))).all()
    for policy in (SinkWindow(), H2O(), TOVA(), Random()):
        run = replay(trace, policy, 8, prefill)
        behind = regret(trace, run, 8, prefill)
        assert behind.shape == (3, 2) and (behind > -1e-6).all()
        torch.testing.assert_close(behind, mass_recall(trace, best) - mass_recall(trace, run))
    assert (regret(trace, best, 8, prefill).abs() < 1e-12).all()


def test_more_memory_is_never_worse(trace):
    recalls = [mass_recall(trace, fm.oracle(trace, budget)).mean() for budget in (1, 2, 4, 8, 16, 32, 39, 40)]
    assert all(a < b for a, b in zip(recalls[:-2], recalls[1:-1], strict=True))
    assert recalls[-1] == pytest.approx(1)


def test_a_budget_above_the_length_evicts_nothing(trace):
    assert (fm.oracle(trace, 40) == 41).all() and (fm.oracle(trace, 1000) == 41).all()


def test_what_a_sliding_window_hides_costs_nothing(trace):
    sliding = replace(trace, windows=(6, None, 6))
    recall = mass_recall(sliding, fm.oracle(sliding, 6))
    assert (recall[[0, 2]] > 1 - 1e-6).all() and (recall[1] < 0.99).all()


def test_a_run_of_another_budget_is_refused(trace):
    with pytest.raises(ValueError, match="holds 9 entries after 9 tokens; give the budget"):
        regret(trace, replay(trace, H2O(), 12), 8)


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_below_one_is_refused(trace, budget):
    with pytest.raises(fm.BudgetError, match=f"budget {budget} < 1"):
        fm.oracle(trace, budget)


def test_attention_that_is_no_number_is_refused(trace):
    broken = replace(trace, keys=trace.keys.clone().fill_(torch.nan))
    with pytest.raises((ArithmeticError, ValueError), match="NaN|invalid"):
        fm.oracle(broken, 8)


def test_progress_counts_heads_and_may_cancel(trace):
    seen = []
    fm.oracle(trace, 8, progress=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fm.oracle(trace, 8, progress=stop)


def test_prices_are_a_proof_and_of_a_worse_run_none():
    paid = drawn(8, seed=3)
    times = eviction_times(8, 3)
    loss = losses(paid, times)
    gone = _solve(paid, times)
    cost = loss[np.arange(len(gone)), gone].sum()
    orders = (order for order in itertools.permutations(range(8), len(times)) if (np.array(order) < times).all())
    assert cost == pytest.approx(min(loss[np.arange(len(times)), list(order)].sum() for order in orders))
    for run in (gone, np.arange(len(times))):  # the best, and first in, first out
        u, v = prices(loss, run)
        assert (v <= 0).all() and (u[:, None] + v <= loss + 1e-12).all()
        assert u.sum() + v.sum() <= cost + 1e-12
    u, v = prices(loss, gone)
    assert u.sum() + v.sum() == pytest.approx(cost, abs=1e-12)
