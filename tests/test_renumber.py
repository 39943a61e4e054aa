"""Positions counted within the cache: the architecture written out, the stock model at full budget, and no mixture."""

from typing import ClassVar

import pytest
import torch
from test_live import ARCHES, IDS, assert_same_logits, llama_by_hand

import fmlab as fm
from fmlab.core import mask
from fmlab.masked import masked_logits
from fmlab.policies import H2O, TOVA, Ada, KeyNorm, Pyramid, SinkWindow

CALLS = [17, 6, 1, 1, 5] + [1] * 10


@torch.no_grad()
def live(model, policy, budget, ids, positions="renumbered"):
    with fm.finite(model, policy, budget, positions=positions) as cache:
        parts = [model(input_ids=part, past_key_values=cache).logits for part in ids.split(CALLS, 1)]
    return torch.cat(parts, 1), cache


@pytest.mark.parametrize(("policy", "budget"), [(SinkWindow(2), 9), (H2O(), 12), (KeyNorm(), Ada(9))], ids=repr)
def test_it_is_the_architecture_written_out_in_float64(policy, budget):
    model = fm.tiny().model
    logits, cache = live(model, policy, budget, IDS[:1])
    expected = llama_by_hand(model, IDS[0], mask(cache.expiry), renumbered=True)
    assert_same_logits(logits[0].double(), expected)
    with pytest.raises(AssertionError):
        assert_same_logits(logits[0].double(), llama_by_hand(model, IDS[0], mask(cache.expiry)))


@pytest.mark.parametrize("arch", ARCHES)
def test_it_is_one_pass_with_ranks_for_positions(arch):
    model = fm.tiny(arch).model
    for policy, budget in ((H2O(), 9), (TOVA(), Pyramid(9, 3)), (SinkWindow(), 11), (KeyNorm(), Ada(9))):
        logits, cache = live(model, policy, budget, IDS)
        assert_same_logits(logits, masked_logits(model, IDS, cache.expiry, positions="renumbered"))
        assert bool((cache.expiry <= 40).any())


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("budget", [100, Ada(100)], ids=repr)
def test_a_full_budget_is_the_stock_model(arch, budget):
    model = fm.tiny(arch).model
    assert_same_logits(live(model, H2O(), budget, IDS)[0], model(input_ids=IDS).logits)
    with fm.finite(model, H2O(), budget, positions="renumbered") as cache:
        ours = model.generate(IDS, past_key_values=cache, max_new_tokens=8, do_sample=False)
    assert torch.equal(ours, model.generate(IDS, max_new_tokens=8, do_sample=False))


def test_a_policy_sees_keys_and_queries_where_they_stand():
    model, shown = fm.tiny().model, []

    class Watches(SinkWindow):
        def score(self, view, stats):
            order = view.positions.argsort(-1)[..., None].expand_as(view.keys)
            new = view.keys.gather(1, order)[:, -view.new :]
            shown.append((view.keys.clone(), view.positions.clone(), view.queries.clone()))
            torch.testing.assert_close(view.new_keys, new, rtol=1e-4, atol=1e-4)
            return super().score(view, stats)

    for positions in ("original", "renumbered"):
        live(model, Watches(), 9, IDS[:1], positions)
    half = len(shown) // 2
    first = [(a, b) for a, b in zip(shown[:half:3], shown[half::3], strict=True)]  # layer 0: the same hidden states
    for (keys, places, queries), (mine, same, asked) in first:
        assert torch.equal(places, same)
        torch.testing.assert_close(keys.norm(dim=-1), mine.norm(dim=-1))  # a rotation
        torch.testing.assert_close(queries.norm(dim=-1), asked.norm(dim=-1))
    assert torch.allclose(first[0][0][0], first[0][1][0], atol=1e-4)  # nothing evicted yet
    assert not torch.allclose(first[-1][0][0], first[-1][1][0], atol=1e-2)


def test_a_copy_runs_on_and_half_precision_stays_close():
    model = fm.tiny().model
    with torch.no_grad(), fm.finite(model, H2O(), 9, positions="renumbered") as cache:
        model(input_ids=IDS[:, :30], past_key_values=cache)
        twin = cache.copy()
        one, two = (model(input_ids=IDS[:, 30:31], past_key_values=each).logits for each in (cache, twin))
    assert torch.equal(one, two) and "positions='renumbered'" in repr(twin)
    half = fm.tiny().model.to(torch.bfloat16)
    logits, cache = live(half, SinkWindow(), 12, IDS)
    theirs = masked_logits(half, IDS, cache.expiry, positions="renumbered")
    assert cache.layers[0].slots.data["keys"].dtype == torch.bfloat16
    assert float((logits - theirs).float().abs().mean()) < 0.03 * float(theirs.float().std())


def test_what_is_refused(monkeypatch):
    model = fm.tiny().model
    with pytest.raises(ValueError, match=r"positions='relative'; give one of 'original', 'renumbered'"):
        live(model, H2O(), 9, IDS, "relative")
    with pytest.raises(ValueError, match=r"positions='both'"):
        masked_logits(model, IDS, torch.full((3, 2, 40), 41), positions="both")
    with pytest.raises(ValueError, match=r"layer 0 has a sliding window of its own \(16\); use original positions"):
        live(fm.tiny("mistral", sliding_window=16).model, H2O(), 9, IDS)

    class Bare(KeyNorm):
        needs: ClassVar[frozenset[str]] = frozenset({"pre_rope"})

    with pytest.raises(ValueError, match="needs pre_rope, which a live model with renumbered positions cannot prepare"):
        live(model, Bare(), 9, IDS)
    assert "positions='original'" in repr(live(model, Bare(), 9, IDS, "original")[1])
    monkeypatch.setattr("fmlab.renumber.rope_of", lambda model: None)
    with pytest.raises(ValueError, match="the rotary embedding of LlamaForCausalLM cannot be taken off"):
        live(model, H2O(), 9, IDS)
    assert model.config._attn_implementation != "fmlab"
