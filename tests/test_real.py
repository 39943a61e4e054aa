"""The same truths on the real model: equivalence when evicting, identity at full budget, memory that is really freed."""

from pydoc_data import topics

import pytest
import torch

import fmlab as fm
from fmlab.masked import masked_logits

pytestmark = pytest.mark.real
POLICIES = [  # one of each kind: what it reads of keys, values, attention and the model, and what it remembers
    fm.policies.SinkWindow(), fm.policies.KeyNorm(), fm.policies.KeyDiff(), fm.policies.H2O(), fm.policies.TOVA(),
    fm.policies.SnapKV(), fm.policies.LagKV(), fm.policies.CUR(), fm.policies.ExpectedAttention(),
    fm.policies.CriticalKV(),
]  # fmt: skip


@pytest.fixture(scope="module")
def ids(lm):
    return lm.ids(topics.topics["typesseq"])[:260][None]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@torch.no_grad()
def test_an_evicting_run_is_one_masked_pass(lm, ids, policy):
    with fm.finite(lm.model, policy, 64) as cache:
        logits = [lm.model(input_ids=part, past_key_values=cache).logits for part in ids.split([150, 98, *[1] * 12], 1)]
    reference = masked_logits(lm.model, ids, cache.expiry)
    assert (cache.expiry <= ids.shape[1]).float().mean() > 0.7  # most was forgotten
    torch.testing.assert_close(torch.cat(logits, 1), reference, rtol=1e-4, atol=2e-3)
    assert cache.nbytes <= 65 * 30 * 3 * 64 * 2 * 4


@torch.no_grad()
def test_a_full_budget_is_the_stock_model(lm, ids):
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    stock = lm.model.generate(ids, **settings)
    for policy in (fm.policies.KeyNorm(), fm.policies.TOVA()):
        with fm.finite(lm.model, policy, 10_000) as cache:
            assert torch.equal(lm.model.generate(ids, past_key_values=cache, **settings), stock)


@torch.no_grad()
def test_what_was_forgotten_matters(lm, ids):
    """Without its first tokens a model loses its footing (the sink effect): the masks really act."""

    def loss(policy):
        run = fm.tasks.nll(lm, ids[0], policy, 64, prefill=200)
        return float(run.losses.mean())

    assert loss(fm.policies.SlidingWindow()) > loss(fm.policies.SinkWindow()) + 0.05


@torch.no_grad()
def test_bfloat16_runs(ids):
    lm = fm.load("smollm2-135m", dtype=torch.bfloat16)
    with fm.finite(lm.model, fm.policies.H2O(), 32) as cache:
        for part in ids.split([120, *[1] * 4, 136], 1):
            logits = lm.model(input_ids=part, past_key_values=cache).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    assert cache.nbytes == 33 * 30 * 3 * 64 * 2 * 2


@torch.no_grad()
def test_a_grid_from_one_prefill_says_what_the_runs_one_by_one_say(lm, ids):
    context, question = ids[0, :200], ids[0, 200:212]
    some = (
        fm.policies.SinkWindow(),
        fm.policies.H2O(),
        fm.policies.TOVA(),
        fm.policies.KeyDiff(),
        fm.policies.SnapKV(),
    )
    cells = [(policy, budget) for policy in some for budget in (48, 96)] + [(fm.policies.SnapKV(), fm.policies.Ada(64))]
    said, compared = fm.prefill(lm, context).fork(cells).generate(question, 8), 0
    for (policy, budget), row in zip(cells, said.tolist(), strict=True):
        with fm.finite(lm.model, policy, budget) as cache:
            for part in (context, question):
                logits = lm.model(input_ids=part[None], past_key_values=cache, logits_to_keep=1).logits[0, -1]
            for token in row:
                best = logits.topk(2)
                if float(best.values[0] - best.values[1]) < 1e-3:
                    break  # rounding decides from here on
                assert int(best.indices[0]) == token
                compared += 1
                logits = lm.model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
    assert compared > 6 * len(cells)
