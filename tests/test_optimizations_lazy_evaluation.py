"""A replay gives the same whether its views are computed whole or as asked for."""

from dataclasses import replace

import pytest
import torch

import fmlab as fm
from fmlab.optimizations.lazy_evaluation import LAYERS, PAIR, Everything
from fmlab.policies import H2O, TOVA, KeyDiff, KeyNorm, SinkWindow, SnapKV


@pytest.fixture(scope="module")
def trace():
    return fm.record(fm.tiny(), torch.arange(3, 43) * 5 % 256)


@pytest.mark.parametrize("policy", [SinkWindow(), KeyNorm(), KeyDiff(), TOVA(), SnapKV(window=4), H2O()], ids=repr)
@pytest.mark.parametrize("prefill", [1, 20, 40])
def test_the_same_expiry(trace, policy, prefill):
    given = trace, policy, 9, prefill
    expiry = PAIR.optimised(*given)
    assert torch.equal(expiry, PAIR.baseline(*given)) and (expiry <= len(trace)).any()


def test_everything_is_computed_and_nothing_that_is_not_asked_for(trace):
    asked = {}
    for policy in (KeyNorm(), Everything(KeyNorm())):
        fm.replay(trace, policy, 9, 20, watch=lambda view, _: asked.update({policy: view.asked}))  # noqa: B023
    assert asked[KeyNorm()] <= {"keys"} and asked[Everything(KeyNorm())] == {"keys", "values", "attention"}


def test_everything_is_not_offered_to_choose_from():
    assert Everything not in fm.core.living_policies() and Everything(KeyNorm()).needs == KeyNorm.needs


@pytest.mark.real
@pytest.mark.parametrize("size", [0, 1, 24])
def test_real_inputs(lm, size):
    trace, policy, budget, prefill = given = PAIR.inputs(size, 1)
    expiry = PAIR.optimised(*given)
    assert len(trace) == size and trace.layers == LAYERS and expiry.shape == (2, trace.kv_heads, size)
    assert torch.equal(expiry, PAIR.baseline(*given))
    kept = int((expiry == size + 1).sum())
    assert kept == expiry[..., 0].numel() * min(budget, size) if size else kept == 0
    assert PAIR.floor(size).amount == trace.keys.nbytes


def test_an_input_is_not_changed(trace):
    before = replace(trace, keys=trace.keys.clone(), queries=trace.queries.clone(), values=trace.values.clone())
    PAIR.baseline(trace, KeyNorm(), 9, 20)
    assert all(torch.equal(getattr(trace, name), getattr(before, name)) for name in ("keys", "queries", "values"))
