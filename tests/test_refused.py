"""What live runs refuse: each error names the value and the mend."""

import inspect
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

import fmlab as fm
from fmlab import live
from fmlab.core import Policy
from fmlab.language import LanguageModel, ready
from fmlab.masked import masked_logits
from fmlab.policies import H2O, TOVA, KeyNorm, SinkWindow

IDS = torch.randperm(256, generator=torch.Generator().manual_seed(4))[:40].view(1, 40)


@pytest.fixture
def model():
    return fm.tiny().model


def test_finite_inside_finite_is_refused_and_two_models_are_not(model):
    other = fm.tiny("qwen3").model
    with fm.finite(model, SinkWindow(), 8) as cache:
        with pytest.raises(
            RuntimeError, match="already runs under `finite`; leave that `with` first, or load a second"
        ):
            with fm.finite(model, SinkWindow(), 8):
                pass
        with pytest.raises(RuntimeError, match="already runs under `finite`"):
            fm.record(ready(model, fm.tiny().tokenizer, "it", "x"), IDS[0])
        with fm.finite(other, TOVA(), 9) as second:
            for part in IDS.split(10, 1):
                model(input_ids=part, past_key_values=cache)
                other(input_ids=part, past_key_values=second)
        alone = live_expiry(fm.tiny("qwen3").model, TOVA(), 9)
    assert torch.equal(second.expiry, alone) and torch.equal(
        cache.expiry, live_expiry(fm.tiny().model, SinkWindow(), 8)
    )


def live_expiry(model, policy, budget):
    with fm.finite(model, policy, budget) as cache:
        for part in IDS.split(10, 1):
            model(input_ids=part, past_key_values=cache)
    return cache.expiry


def test_a_batch_of_unequal_lengths_is_refused(model):
    ids, padding = IDS.view(2, 20), torch.ones(2, 20, dtype=torch.long)
    padding[1, :3] = 0
    for run in (model, lambda **rest: model.generate(max_new_tokens=3, pad_token_id=0, **rest)):
        with (
            fm.finite(model, SinkWindow(), 8) as cache,
            pytest.raises(ValueError, match="hides 3 tokens: a batch of unequal"),
        ):
            run(input_ids=ids, attention_mask=padding, past_key_values=cache)
    with fm.finite(model, SinkWindow(), 8) as cache:
        assert model(input_ids=ids, attention_mask=torch.ones_like(padding), past_key_values=cache).logits.shape[0] == 2


def test_a_mask_of_your_own_is_refused(model):
    with (
        fm.finite(model, SinkWindow(), 8) as cache,
        pytest.raises(ValueError, match=r"ready-made attention mask of shape"),
    ):
        model(input_ids=IDS, attention_mask=torch.zeros(1, 1, 40, 40), past_key_values=cache)


@pytest.mark.parametrize("rest", [{}, {"use_cache": False}])
def test_calling_the_model_without_the_cache_is_refused(model, rest):
    with fm.finite(model, SinkWindow(), 8):
        with pytest.raises(RuntimeError, match="called inside `finite` without its cache; pass past_key_values=cache"):
            model(input_ids=IDS, **rest)


def test_using_the_cache_outside_is_refused(model):
    with fm.finite(model, SinkWindow(), 8) as cache:
        pass
    with pytest.raises(ValueError, match="attention of layer 0 never came back.*inside `with fm.finite"):
        model(input_ids=IDS, past_key_values=cache)


def test_the_batch_may_not_change(model):
    with fm.finite(model, SinkWindow(), 8) as cache:
        model(input_ids=IDS.view(2, 20), past_key_values=cache)
        with pytest.raises(ValueError, match="a batch of 1 after one of 2; start a new cache"):
            model(input_ids=IDS[:, :1], past_key_values=cache)


class Mixer(nn.Module):
    """An attention that asks nobody: with or without using the cache it is given."""

    def __init__(self, number, uses_cache):
        super().__init__()
        self.number, self.uses_cache, self.out = number, uses_cache, nn.Linear(12, 12)

    def forward(self, x, cache):
        states = x.view(len(x), -1, 2, 6).transpose(1, 2)
        keys, values = cache.update(states, states, self.number) if self.uses_cache else (states, states)
        return x + self.out(nn.functional.scaled_dot_product_attention(states, keys, values).transpose(1, 2).flatten(2))


class Closed(PreTrainedModel):
    config_class = LlamaConfig
    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config, uses_cache):
        super().__init__(config)
        self.embed = nn.Embedding(256, 12)
        self.layers = nn.ModuleList(Mixer(number, uses_cache) for number in range(config.num_hidden_layers))

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, past_key_values=None, use_cache=True):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, past_key_values)
        return x


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("uses_cache", [False, True])
def test_a_model_that_attends_by_itself_is_refused(uses_cache, layers):
    config = LlamaConfig(hidden_size=12, num_attention_heads=2, num_hidden_layers=layers, vocab_size=256)
    closed = Closed(config, uses_cache).eval()
    before = closed.config._attn_implementation
    with pytest.raises(
        ValueError, match=r"attention of .* (cannot be reached|never came back).*; use a model class that"
    ):
        with fm.finite(closed, SinkWindow(), 8) as cache:
            closed(input_ids=IDS, past_key_values=cache)
    with pytest.raises(
        ValueError, match="attention of .* (cannot be reached|never came back).*; use a model class that"
    ):
        fm.record(LanguageModel(closed, fm.tiny().tokenizer, "closed", "x"), IDS[0])
    assert closed.config._attn_implementation == before and not closed._forward_hooks


def test_a_class_that_transformers_itself_cannot_reach_is_refused():
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    from transformers import BloomConfig

    closed = bloom.BloomForCausalLM(BloomConfig(vocab_size=256, hidden_size=16, n_layer=2, n_head=2)).eval()
    with pytest.raises(ValueError, match="the attention of BloomForCausalLM cannot be reached"):
        with fm.finite(closed, SinkWindow(), 8):
            pass


@pytest.mark.parametrize("other", ["chunked_attention", "linear_attention"])
def test_layers_of_another_type_are_refused(model, other):
    model.config.layer_types = ["full_attention", other, "sliding_attention"]
    with pytest.raises(ValueError, match=f"layers of type {other}; a memory policy needs full or sliding attention"):
        with fm.finite(model, SinkWindow(), 8):
            pass
    assert model.config._attn_implementation == "sdpa"


def test_what_changes_the_attention_in_a_way_not_computed_is_refused(model):
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with (
        fm.finite(model.train(), SinkWindow(), 8) as cache,
        pytest.raises(ValueError, match=r"dropout is 0.5; call model.eval"),
    ):
        model(input_ids=IDS, past_key_values=cache)
    with (
        fm.finite(model.eval(), SinkWindow(), 8) as cache,
        pytest.raises(ValueError, match="attends with s_aux, which"),
    ):
        model(input_ids=IDS, past_key_values=cache, s_aux=torch.zeros(6))


def test_neither_crop_nor_reset(model):
    with fm.finite(model, SinkWindow(), 8) as cache:
        model(input_ids=IDS, past_key_values=cache)
    with pytest.raises(NotImplementedError, match="does not come back; take a copy"):
        cache.crop(-3)
    with pytest.raises(NotImplementedError, match="start a new one"):
        cache.layers[0].reset()


@pytest.mark.parametrize("budget", [0, -1, True, 64.0, "64", None])
def test_a_wrong_budget(model, budget):
    with pytest.raises((TypeError, fm.BudgetError)):
        with fm.finite(model, SinkWindow(), budget):
            pass
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("wrong", ["a name", None])
def test_what_is_no_model(monkeypatch, wrong):
    monkeypatch.setattr(live, "attached", contextmanager(inspect.unwrap(live.attached)))
    finite = contextmanager(inspect.unwrap(live.finite))  # as users call it, without our check of annotations
    with pytest.raises(TypeError, match="(str|LanguageModel) is no transformers model; pass lm.model"):
        with finite(wrong or fm.tiny(), SinkWindow(), 8):
            pass


def test_a_budget_below_what_is_pinned_names_both(model):
    with fm.finite(model, SinkWindow(12), 8) as cache:
        with pytest.raises(
            fm.BudgetError, match=r"SinkWindow\(sinks=12\): budget 8 < 13 pinned entries; raise the budget"
        ):
            model(input_ids=IDS, past_key_values=cache)


@pytest.mark.parametrize("name", ["positions", "keys", "values", "queries", "age", "weights", "budget"])
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("new", [1, 5])
def test_a_policy_that_writes_to_its_view_is_caught_live(model, name, inference, new):
    class Writing(Policy):
        def score(self, view, stats):
            tensor = view.weights(1) if name == "weights" else getattr(view, name)
            if view.new == new:
                tensor[..., 0] += 1
            return -view.positions.float()

    with torch.inference_mode(inference), fm.finite(model, Writing(), 8) as cache:
        model(input_ids=IDS[:, :10], past_key_values=cache)
        with pytest.raises(ValueError, match=rf"changed .*{name}.* in place; a policy must be pure"):
            model(input_ids=IDS[:, 10 : 10 + new], past_key_values=cache)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("inference", [False, True])
def test_a_policy_that_writes_to_its_columns_is_caught_live(model, inference):
    class Writing(H2O):
        def observe(self, view, stats):
            return {"received": stats["received"].add_(1)} if view.new == 1 else {"received": view.received()}

    with torch.inference_mode(inference), fm.finite(model, Writing(), 8) as cache:
        model(input_ids=IDS[:, :10], past_key_values=cache)
        with pytest.raises(ValueError, match=r"changed stats\['received'\] in place"):
            model(input_ids=IDS[:, 10:11], past_key_values=cache)


def test_masked_logits_refuse_what_does_not_fit(model):
    expiry = torch.full((3, 2, 40), 41)
    with pytest.raises(ValueError, match="an expiry of 39 tokens for ids of 40"):
        inspect.unwrap(masked_logits)(model, IDS, expiry[..., 1:])
    with pytest.raises(ValueError, match='kernel=.flash.; give "sdpa" or "eager"'):
        masked_logits(model, IDS, expiry, kernel="flash")
    assert torch.allclose(masked_logits(model, IDS, expiry), model(input_ids=IDS).logits, atol=1e-4)
    assert model.config._attn_implementation == "sdpa"
    assert not torch.allclose(
        masked_logits(model, IDS, live_expiry(model, KeyNorm(), 4)), model(input_ids=IDS).logits, atol=0.1
    )
