import pytest
import torch
from transformers import AttentionInterface, LogitsProcessor, LogitsProcessorList

import fmlab as fm
from fmlab.core import Policy
from fmlab.policies import SinkWindow

IDS = torch.randperm(256, generator=torch.Generator().manual_seed(4))[:40].view(1, 40)


@pytest.fixture
def model():
    return fm.tiny().model


def state(model):
    """All that attaching could leave behind."""
    classes = [type(m) for m in model.modules()]
    forwards = [c.forward for c in classes], [vars(m).get("forward") for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return (
        forwards,
        hooks,
        model.config._attn_implementation,
        {k: AttentionInterface()[k] for k in ("sdpa", "flex_attention")},
    )


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_model_is_left_as_it_was(model, kernel, error):
    model.set_attn_implementation(kernel)
    before, stock = state(model), model(input_ids=IDS).logits
    try:
        with fm.finite(model, SinkWindow(), 8) as cache:
            model(input_ids=IDS, past_key_values=cache)
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit) as raised:
        assert type(raised) is error
    assert state(model) == before and torch.equal(model(input_ids=IDS).logits, stock)
    assert cache.seen == 40 and int((cache.expiry == 41).sum()) == 8 * 6  # readable after the `with`


class Interrupting(LogitsProcessor):
    def __init__(self, after):
        self.left = after

    def __call__(self, ids, scores):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return scores


class Dropping(Policy):
    """Presses the button itself, when the given layer has seen that many tokens."""

    def __init__(self, layer, tokens, method):
        self.layer, self.tokens, self.method = layer, tokens, method

    def observe(self, view, stats):
        return self.at("observe", view, stats)

    def score(self, view, stats):
        return self.at("score", view, -view.age.float())

    def at(self, method, view, result):
        if method == self.method and self.layer in view.layer and int(view.positions.max()) + 1 == self.tokens:
            raise KeyboardInterrupt
        return result


def hooked(model, layer, part, calls):
    """Interrupt in a layer, before or after its attention, in the last of `calls` calls."""
    left = iter(range(1, calls))

    def interrupt(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return getattr(model.model.layers[layer], part).register_forward_hook(interrupt)


@torch.no_grad()
@pytest.mark.parametrize(
    "where", ["between steps", "after attention", "before attention", "observe", "score", "prefill"]
)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_interrupt_in_the_middle_of_generate(model, layer, where):
    before = state(model)
    policy = Dropping(layer, 30 if where == "prefill" else 35, "score" if where == "prefill" else where)
    processors = LogitsProcessorList([Interrupting(6)] if where == "between steps" else [])
    with pytest.raises(KeyboardInterrupt), fm.finite(model, policy, 8) as cache:
        if "attention" in where:
            part = "self_attn" if where.startswith("after") else "input_layernorm"
            handle = hooked(model, layer, part, 6)
        model.generate(
            IDS[:, :30], past_key_values=cache, max_new_tokens=20, do_sample=False, logits_processor=processors
        )
    if "attention" in where:
        handle.remove()
    assert state(model) == before
    seen = 0 if where == "prefill" else 34
    seen += where == "between steps" or (where, layer) == (
        "after attention",
        2,
    )  # the layers of one token are settled together
    assert cache.seen == seen and cache.expiry.shape == (3, 2, seen) and (cache.nbytes > 0) == bool(seen or layer)
    if seen:
        assert ((cache.expiry == seen + 1).sum(-1) >= 8).all()
        for number in range(3):
            held = cache.positions(number)
            assert held.shape[0] == 2 and int((held >= 0).sum()) == 16
    with fm.finite(model, policy, 8):
        whole = len({layer.get_seq_length() for layer in cache.layers}) == 1
        if where == "between steps" or (whole and not any(layer.slots.interrupted for layer in cache.layers)):
            assert model(input_ids=IDS[:, :1], past_key_values=cache).logits.isfinite().all()
        else:
            with pytest.raises(
                RuntimeError, match=f"interrupted in the middle of a call after {seen} tokens.*start a new"
            ):
                model(input_ids=IDS[:, :1], past_key_values=cache)


@torch.no_grad()
def test_a_wrapper_of_every_attention_may_hand_dropout_on_by_place(model):
    """As importing kvpress does to all that are registered."""
    mine = AttentionInterface()["fmlab"]

    def wrapper(module, query, key, value, attention_mask, dropout, **kwargs):
        return mine(module, query, key, value, attention_mask, dropout, **kwargs)

    with fm.finite(model, SinkWindow(), 8) as cache:
        expected = model(input_ids=IDS, past_key_values=cache).logits
    AttentionInterface.register("fmlab", wrapper)
    try:
        with fm.finite(model, SinkWindow(), 8) as cache:
            assert torch.equal(model(input_ids=IDS, past_key_values=cache).logits, expected)
    finally:
        AttentionInterface.register("fmlab", mine)
