"""A press of another library as a policy: with a stand-in of that library, and with the real one where it is installed."""

import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

import fmlab as fm
from fmlab.core import living_policies
from fmlab.policies import TOVA, Ada, KeyNorm, SinkWindow

ORDER = torch.randperm(256, generator=torch.Generator().manual_seed(3))
KVPRESS = importlib.util.find_spec("kvpress") is not None


@dataclass
class ScorerPress:
    """As kvpress has it."""

    compression_ratio: float = 0.0


@dataclass
class Norm(ScorerPress):
    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return -keys.norm(dim=-1)


@dataclass
class Streaming(ScorerPress):
    """Knows neither positions nor budget: sinks and newest are told by the order and the ratio."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        n = keys.shape[2]
        kept = int(n * (1 - self.compression_ratio))
        scores = torch.ones_like(keys[..., 0])
        scores[:, :, 4 : 4 + n - kept] = 0
        return scores


@dataclass
class Last(ScorerPress):
    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        assert attentions.shape[1] == module.config.num_attention_heads == keys.shape[1] * module.num_key_value_groups
        assert attentions.shape[2:] == (hidden_states.shape[1], keys.shape[2])
        scores = attentions[:, :, -1].mean(1, keepdim=True).repeat(1, module.config.num_key_value_heads, 1)
        scores[..., -1] = scores.max() + 1
        return scores


@dataclass
class Reading(ScorerPress):
    what: str = ""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return {
            "module": lambda: module.q_proj(hidden_states),
            "hidden": lambda: hidden_states[:, 4:],
            "attentions": lambda: attentions.sum(2),
            "kwargs": lambda: kwargs["position_embeddings"],
        }[self.what]()


@pytest.fixture
def press(monkeypatch):
    """`fm.peers.Press`, beside a kvpress that knows our presses."""
    module = ModuleType("kvpress")
    module.ScorerPress = ScorerPress
    monkeypatch.setitem(sys.modules, "kvpress", module)
    return fm.peers.Press


@torch.no_grad()
@pytest.mark.parametrize("name", ["Norm", "Streaming", "Last"])
def test_a_press_is_the_policy_that_it_imitates(press, name):
    pairs = {
        "Norm": (press(Norm()), KeyNorm()),
        "Streaming": (press(Streaming()), SinkWindow()),
        "Last": (press(Last(), attentions=True), TOVA()),
    }
    lm, runs = fm.tiny(), []
    for policy in pairs[name]:  # chunks, then one-token decode, with two sequences
        with fm.finite(lm.model, policy, 21) as cache:
            for part in ORDER[:120].view(2, 60).split([40, 12, *[1] * 8], 1):
                lm.model(input_ids=part, past_key_values=cache)
        runs.append(cache.expiry)
    assert torch.equal(*runs) and 0 < int((runs[0] == 61).sum()) < runs[0].numel()


def test_a_press_keeps_the_contract(press):
    assert len(fm.contract.check(press(Norm(0.3)))) > 8
    assert press(Norm(0.3)).press.compression_ratio == 0.3  # the user's own is left alone
    assert press not in living_policies()
    assert repr(press(Norm())) == "Press(press=Norm(compression_ratio=0.0), attentions=False)"


def test_a_press_in_a_grid_and_in_a_replay(press):
    lm = fm.tiny()
    forks = fm.prefill(lm, ORDER[:60]).fork([(press(Norm()), 13), (KeyNorm(), 13), (press(Streaming()), 13)])
    trace = fm.record(lm, ORDER[:60], dtype=torch.float32)
    assert torch.equal(forks[0].expiry, forks[1].expiry)
    assert torch.equal(forks[0].expiry, fm.replay(trace, press(Norm()), 13, prefill=60))
    assert forks[2].expiry[0, 0].tolist() == [61] * 4 + [60] * 47 + [61] * 9


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("module", r"reads module\.q_proj, which a view does not have; run it in kvpress itself"),
        ("hidden", r"reads hidden_states\[…\]"),
        ("attentions", r"reads attentions\.sum, which a view does not have; pass attentions=True"),
        ("kwargs", r"reads kwargs\['position_embeddings'\]"),
    ],
)
def test_what_a_view_does_not_have_is_named(press, what, says):
    with pytest.raises(ValueError, match=r"Reading\(compression_ratio=0\.\d+, what='" + what + r"'\) " + says):
        fm.prefill(fm.tiny(), ORDER[:60]).fork([(press(Reading(what=what)), 13)])


def test_heads_that_stand_apart_are_no_layer(press):
    with pytest.raises(ValueError, match="only some heads of a layer"):
        with fm.finite((lm := fm.tiny()).model, press(Norm()), Ada(13)) as cache:
            for part in ORDER[None, :90].split([60, 30], 1):
                lm.model(input_ids=part, past_key_values=cache)


def test_what_is_no_press(press):
    with pytest.raises(TypeError, match=r"KeyNorm\(\) is no ScorerPress; give one that scores"):
        press(KeyNorm())


def test_without_kvpress_the_install_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(ImportError, match=r"pip install kvpress 'transformers>=5\.2,<5\.3'"):
        fm.peers.Press(Norm())


@pytest.mark.skipif(not KVPRESS, reason="kvpress is not installed; benchmarks/peers.py makes an environment with it")
@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["KnormPress", "KeyDiffPress", "CURPress", "StreamingLLMPress", "TOVAPress", "LagKVPress"]
)
def test_the_real_presses(name):
    import kvpress
    from transformers import DynamicCache

    lm, cache, n = fm.tiny(), DynamicCache(), 60
    lm.model.set_attn_implementation("eager")
    given = {"lag_size": 5} if name == "LagKVPress" else {}
    make = getattr(kvpress, name)
    ours = fm.prefill(lm, ORDER[:n]).fork([(fm.peers.Press(make(**given), name == "TOVAPress"), 30)])[0].expiry > n
    full = DynamicCache()
    lm.model(ORDER[None, :n], past_key_values=full)
    with make(compression_ratio=0.5, **given)(lm.model):
        lm.model(ORDER[None, :n], past_key_values=cache)
    for layer in range(len(ours)):
        there = (full.layers[layer].keys[0][:, :, None] == cache.layers[layer].keys[0][:, None]).all(-1).any(-1)
        apart = (there != ours[layer]).sum()
        assert there.sum() == 30 * len(there) and apart <= (8 if name == "LagKVPress" else 0)  # whose ranks tie
