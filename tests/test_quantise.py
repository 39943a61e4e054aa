"""Quantised storage under any policy: the error is bounded, the bytes are freed, what has just come is exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

import fmlab as fm
from fmlab.policies import H2O, Ada, KeyNorm, SinkWindow, SnapKV
from fmlab.quantise import GROUP, Quantised

IDS = torch.randperm(256, generator=torch.Generator().manual_seed(2))[:70]
CALLS = [40, 9, *[1] * 21]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([8, 4]),
    st.sampled_from([2, 8, 32, 64, 96, 80]),
    st.integers(1, 5),
    st.floats(1e-6, 1e4),
    st.integers(0, 99),
)
def test_no_number_is_off_by_more_than_half_a_step(bits, d, n, size, seed):
    x = torch.randn(3, n, d, generator=torch.Generator().manual_seed(seed)) * size + size / 3
    back = Quantised(bits).through(x)
    grouped = x.view(3, n, -1, GROUP if d % GROUP == 0 else d)
    step = (grouped.amax(-1) - grouped.amin(-1)) / (2**bits - 1)
    off = (back - x).abs().view(grouped.shape).amax(-1)
    assert (off <= 0.51 * step + 1e-6 * size).all()
    assert (Quantised(bits).through(back) - back).abs().max() <= 1e-4 * size  # what was rounded once stays


def test_vectors_of_one_number_are_kept():
    assert torch.equal(Quantised(4).through(torch.full((1, 2, 64), 3.25)), torch.full((1, 2, 64), 3.25))
    assert torch.equal(Quantised(8).through(torch.zeros(1, 1, 8)), torch.zeros(1, 1, 8))


@pytest.mark.parametrize("bits", [16, 0, -8])
def test_bits_that_mean_nothing(bits):
    with pytest.raises(ValueError, match=f"bits={bits}; give 8 or 4"):
        Quantised(bits)
    lm = fm.tiny()
    with pytest.raises(ValueError, match=f"bits={bits}"):
        with fm.finite(lm.model, SinkWindow(), 8, bits=bits):
            pass
    with pytest.raises(ValueError, match="dimension 7 in 4 bits"):
        Quantised(4).pack({"x": torch.zeros(1, 1, 7)})


class Rounding(DynamicCache):
    """The stock cache, with all it holds rounded after every call."""

    def __init__(self, bits):
        super().__init__()
        self.code, self.done = Quantised(bits), 0

    def round(self):
        for layer in self.layers:
            for name in ("keys", "values"):
                column = getattr(layer, name)
                new = column[:, :, self.done :]
                setattr(layer, name, torch.cat([column[:, :, : self.done], self.code.through(new)], 2))
        self.done = self.layers[0].keys.shape[2]


@torch.no_grad()
@pytest.mark.parametrize("arch", ["llama", "gpt_neox"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_full_budget_is_the_stock_model_with_a_rounded_cache(arch, bits):
    lm, stock = fm.tiny(arch), Rounding(bits)
    lm.model.double()  # in float32 a number halfway between two steps rounds one way or the other by the processor
    exact = lm.model(IDS[None]).logits
    with fm.finite(lm.model, H2O(), 100, bits=bits) as cache:
        ours = [lm.model(input_ids=part, past_key_values=cache).logits for part in IDS[None].split(CALLS, 1)]
    theirs = []
    for part in IDS[None].split(CALLS, 1):
        theirs.append(lm.model(input_ids=part, past_key_values=stock).logits)
        stock.round()
    torch.testing.assert_close(torch.cat(ours, 1), torch.cat(theirs, 1), rtol=1e-4, atol=1e-4)
    assert 1e-4 < (torch.cat(ours, 1) - exact).abs().max() < (0.2 if bits == 8 else 4)


@torch.no_grad()
@pytest.mark.parametrize("policy", [SinkWindow(), KeyNorm(), H2O(), SnapKV(4, 3)], ids=repr)
@pytest.mark.parametrize("budget", [12, Ada(12)], ids=repr)
def test_any_policy_evicts_and_the_bytes_are_freed(policy, budget):
    lm, held = fm.tiny(), {}
    for bits in (None, 8, 4):
        with fm.finite(lm.model, policy, budget, bits=bits) as cache:
            for part in IDS[None].split(CALLS, 1):
                logits = lm.model(input_ids=part, past_key_values=cache).logits
        held[bits] = cache.nominal_nbytes
        assert (cache.expiry > 70).sum() == 3 * 2 * 12 and cache.peak_nbytes >= cache.nbytes
        assert logits.isfinite().all()
    d, vectors = 8, 3 * 2 * 12 * 2  # of the tiny model
    assert held == {None: vectors * d * 4, 8: vectors * (d + 8), 4: vectors * (d // 2 + 8)}
    assert "bits=4" in repr(cache)


@torch.no_grad()
def test_what_comes_in_one_call_is_attended_to_as_it_came():
    lm = fm.tiny()
    with fm.finite(lm.model, SinkWindow(), 12, bits=4) as cache:
        ours = lm.model(input_ids=IDS[None], past_key_values=cache).logits
    torch.testing.assert_close(ours, lm.model(IDS[None]).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_forks_quantise_as_a_live_run_does():
    lm, cells = fm.tiny(), [(H2O(), 12), (SinkWindow(), 12), (SnapKV(4, 3), 20), (H2O(), Ada(12))]
    forks = fm.prefill(lm, IDS[:40]).fork(cells, bits=8)
    logits = forks.logits(IDS[40:], chunk=7)
    for i, (policy, budget) in enumerate(cells):
        with fm.finite(lm.model, policy, budget, bits=8) as cache:
            parts = [IDS[:40], *IDS[40:].split(7)]
            alone = [lm.model(input_ids=part[None], past_key_values=cache).logits[0] for part in parts][1:]
            assert forks[i].nominal_nbytes == 3 * 2 * (20 if budget == 20 else 12) * 2 * (8 + 8)
        torch.testing.assert_close(logits[i], torch.cat(alone), rtol=1e-4, atol=1e-4)
