"""A pattern inside a model: every run is held against one forward pass under the mask of what was chosen."""

import importlib
import inspect
from contextlib import contextmanager

import pytest
import torch
from test_live import gemma
from test_refused import Closed
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    DynamicCache,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    StaticCache,
)
from transformers.masking_utils import AttentionMaskInterface

import fmlab as fm
from fmlab import core
from fmlab.policies import H2O, TOVA, SinkWindow, SnapKV
from fmlab.sparsity import (
    AntiDiagonal,
    BlockTopK,
    LocalGlobal,
    Oracle,
    QuestTopK,
    SlidingBlocks,
    Streaming,
    VerticalSlash,
)

HERE = importlib.import_module("fmlab.sparse")  # fm.sparse is the function
IDS = torch.randperm(256, generator=torch.Generator().manual_seed(2))[:74].view(2, 37)
ARCHES = ["llama", "qwen3", "mistral", "gpt_neox"]
CALLS = [17, 6, 1, 1, 5] + [1] * 7  # prefill in chunks, decode, another turn, decode
FULL = SlidingBlocks(10_000)
PATTERNS = [
    Streaming(2, 9),
    QuestTopK(2),
    QuestTopK(2, together=True),
    VerticalSlash(1, 3, 4),
    AntiDiagonal(0.4, 4),
    BlockTopK(2) & Streaming(0, 30),
]
BLOCK = 8


def tiny(arch="llama", **rest):
    """In float64: where numbers differ, it is not by rounding."""
    return fm.tiny(arch, **rest).model.double()


@torch.no_grad()
def under_mask(model, ids, visible):
    """Logits of one pass in which `visible(layer, q, k)`, (batch, query heads, tokens, tokens), says what is seen."""

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        seen = visible(module.layer_idx, query, key)
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
        output = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
        return output.transpose(1, 2), None

    AttentionInterface.register("under_mask", attention)
    AttentionMaskInterface.register("under_mask", lambda *args, **kwargs: None)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("under_mask")
        return model(input_ids=ids, use_cache=False).logits
    finally:
        model.set_attn_implementation(before)


def chosen(pattern, calls, block=BLOCK, factor=1.0):
    """What is seen where each call chooses for itself; `factor` is the model's scale of q·k times sqrt(d)."""

    def visible(layer, query, key):
        seen = torch.zeros(*query.shape[:3], query.shape[2], dtype=torch.bool)
        end = 0
        for new in calls:
            begin, end = end, end + new
            choice = pattern.blocks(query[:, :, begin:end] * factor, key[:, :, :end], block)
            seen[:, :, begin:end, :end] = choice.mask()
        assert end == query.shape[2]
        return seen

    return visible


@torch.no_grad()
def live(model, pattern, calls, cache=None, kernel="gather", ids=IDS):
    with fm.sparse(model, pattern, BLOCK, kernel) as paged:
        past = paged if cache is None else cache
        return torch.cat([model(input_ids=part, past_key_values=past).logits for part in ids.split(calls, 1)], 1)


def same(ours, theirs):
    return ours.dtype == torch.float64 and float((ours - theirs).abs().max()) < 1e-5


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("arch", ARCHES)
def test_a_sparse_run_is_one_masked_pass(arch, pattern):
    model = tiny(arch)
    whole = under_mask(model, IDS, chosen(pattern, [37]))
    assert not same(whole, model(IDS).logits)
    with torch.no_grad(), fm.sparse(model, pattern, BLOCK, "gather"):
        for rest in ({}, {"use_cache": False}, {"attention_mask": torch.ones_like(IDS)}):
            assert same(model(IDS, **rest).logits, whole)
    parts = under_mask(model, IDS, chosen(pattern, CALLS))
    for cache in (None, DynamicCache()):
        assert same(live(model, pattern, CALLS, cache), parts)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kernel", ["dense", "gather"])
def test_every_kernel_is_run(kernel, monkeypatch):
    called = []
    kernels = fm.sparsity.dispatch.KERNELS
    for name, run in list(kernels.items()):
        monkeypatch.setitem(kernels, name, lambda *args, name=name, run=run: called.append(name) or run(*args))
    model = tiny()
    assert same(
        live(model, Streaming(2, 9), [32, 5], kernel=kernel), under_mask(model, IDS, chosen(Streaming(2, 9), [32, 5]))
    )
    assert called == [kernel] * 6


def test_auto_measures_a_shape_once_and_reads_decode_by_pages(monkeypatch):
    measured = []

    def plan(q, k, v, choice, scale):
        measured.append((q.shape[2], k.shape[2]))
        return fm.sparsity.Plan("gather", {"gather": 1.0})

    monkeypatch.setattr(HERE, "plan", plan)
    monkeypatch.setattr(HERE, "attention", kernels := Counting(fm.sparsity.attention))
    model, calls = tiny(), [22, 5, 5, 1, 1, 1, 1, 1]
    for pattern in (AntiDiagonal(0.4, 4), Streaming(2, 9)):  # of which heads see unequally, and equally many blocks
        measured.clear()
        kernels.calls = 0
        with torch.no_grad(), fm.sparse(model, pattern, BLOCK) as cache:
            past = DynamicCache()
            ours = torch.cat([model(part, past_key_values=past).logits for part in IDS.split(calls, 1)], 1)
        assert same(ours, under_mask(model, IDS, chosen(pattern, calls)))
        assert measured == [(22, 22), (5, 27), (5, 32)] and kernels.calls == 9
        assert [(q[2], k[2]) for q, k in cache.plans] == measured
        assert {str(plan) for plan in cache.plans.values()} == {"gather: measured gather 1e+03 ms"}


class Counting:
    def __init__(self, run):
        self.run, self.calls = run, 0

    def __call__(self, *args):
        self.calls += 1
        return self.run(*args)


@pytest.mark.parametrize("pattern", [AntiDiagonal(0.4, 4), Streaming(2, 9), QuestTopK(2)], ids=repr)
@pytest.mark.parametrize("kernel", ["flex", "gather", "dense"])
def test_decode_reads_pages_and_runs_no_kernel(kernel, pattern, monkeypatch):
    model, calls = tiny(), [32] + [1] * 5
    for cache in (None, DynamicCache()):
        with torch.no_grad(), fm.sparse(model, pattern, BLOCK, "gather") as paged:
            past = paged if cache is None else cache
            parts = [model(IDS[:, :32], past_key_values=past).logits]
        with monkeypatch.context() as patch, torch.no_grad(), fm.sparse(model, pattern, BLOCK, kernel):
            patch.setattr(HERE, "attention", lambda *args: pytest.fail("a kernel was run for one query"))
            parts += [model(part, past_key_values=past).logits for part in IDS[:, 32:].split(1, 1)]
        assert same(torch.cat(parts, 1), under_mask(model, IDS, chosen(pattern, calls)))


@pytest.mark.parametrize("pattern", [AntiDiagonal(0.6, 4), Oracle(0.4), VerticalSlash(1, 3, 4)], ids=repr)
def test_a_pattern_is_given_the_models_own_scale(pattern):
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=256, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, attention_multiplier=2.0, initializer_range=0.3, pad_token_id=None,
    )  # fmt: skip
    model = GraniteForCausalLM(config).eval().requires_grad_(False).double()
    ours = live(model, pattern, CALLS)
    assert same(ours, under_mask(model, IDS, chosen(pattern, CALLS, factor=2.0 * 8**0.5)))
    assert not same(ours, under_mask(model, IDS, chosen(pattern, CALLS)))


class EveryOther(QuestTopK):
    """A reader's own, which chooses by something else."""

    def blocks(self, q, k, block=64):
        choice = super().blocks(q, k, block)
        even = torch.arange(choice.grid.columns) % 2 == 0
        return type(choice).over(choice.grid, q, (even | choice.grid.own)[None, None])


def test_a_subclass_of_quest_decodes_by_its_own_blocks():
    model, calls = tiny(), [30] + [1] * 7
    assert same(live(model, EveryOther(2), calls), under_mask(model, IDS, chosen(EveryOther(2), calls)))


def test_auto_decode_has_a_gradient_over_a_stock_cache():
    model = tiny().requires_grad_(True)
    grads = []
    for kernel in ("dense", "auto", "flex"):
        model.zero_grad()
        with fm.sparse(model, Streaming(2, 9), BLOCK, "gather") as _:
            with torch.no_grad():
                model(IDS[:, :30], past_key_values=(cache := DynamicCache()))
        with fm.sparse(model, Streaming(2, 9), BLOCK, kernel):
            model(IDS[:, 30:31], past_key_values=cache).logits.square().sum().backward()
        grads.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    assert all(torch.equal(grads[0], other) for other in grads[1:]) and float(grads[0].abs().max()) > 0


def test_prefill_has_a_gradient():
    model, grads = tiny().requires_grad_(True), []
    for kernel in ("dense", "gather"):
        model.zero_grad()
        with fm.sparse(model, VerticalSlash(1, 3, 4), BLOCK, kernel):
            model(IDS, labels=IDS).loss.backward()
        grads.append(model.model.embed_tokens.weight.grad.clone())
    assert torch.allclose(*grads, atol=1e-5) and float(grads[0].abs().max()) > 1e-3


@pytest.mark.parametrize("arch", ARCHES)
def test_a_full_pattern_is_the_stock_model(arch):
    model = tiny(arch)
    stock = model(IDS).logits
    for pattern in (FULL, QuestTopK(100)):
        assert same(live(model, pattern, [37]), stock)
        assert same(live(model, pattern, CALLS), stock)


WAYS = {
    "greedy": dict(do_sample=False),
    "sampled": dict(do_sample=True, temperature=0.8, top_k=20),
    "beams": dict(do_sample=False, num_beams=3, num_return_sequences=2),
    "in chunks": dict(do_sample=False, prefill_chunk_size=16),
    "looked up": dict(do_sample=False, prompt_lookup_num_tokens=3),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_full_pattern_generates_what_the_stock_model_generates(way):
    model = tiny()
    ids = IDS if way != "looked up" else IDS[:1, :20].repeat(1, 2)
    settings = dict(max_new_tokens=12, attention_mask=torch.ones_like(ids), **WAYS[way])
    torch.manual_seed(11)
    stock = model.generate(ids, **settings)
    for paged in (True, False):
        torch.manual_seed(11)
        with fm.sparse(model, QuestTopK(100), BLOCK, "gather") as cache:
            ours = model.generate(ids, **settings, **({"past_key_values": cache} if paged else {}))
        assert torch.equal(ours, stock)


@pytest.mark.parametrize("pattern", [Streaming(2, 9), QuestTopK(2)], ids=repr)
@pytest.mark.parametrize("arch", ARCHES)
def test_generate_is_step_by_step(arch, pattern):
    model = tiny(arch)
    settings = dict(max_new_tokens=10, do_sample=False, attention_mask=torch.ones_like(IDS))
    with fm.sparse(model, pattern, BLOCK, "gather") as cache:
        paged = model.generate(IDS, past_key_values=cache, **settings)
        stock = model.generate(IDS, **settings)
    calls = [37] + [1] * 9
    best = under_mask(model, paged[:, :-1], chosen(pattern, calls)).argmax(-1)[:, 36:]
    assert torch.equal(paged[:, 37:], best) and torch.equal(paged, stock) and cache.seen == 46


def test_beams_over_the_cache_are_those_over_a_stock_one():
    model = tiny()
    settings = dict(max_new_tokens=12, do_sample=False, num_beams=4, attention_mask=torch.ones_like(IDS))
    with fm.sparse(model, QuestTopK(2), BLOCK, "gather") as cache:
        ours = model.generate(IDS, past_key_values=cache, **settings)
        assert torch.equal(ours, model.generate(IDS, **settings))


def test_one_pattern_in_two_models_at_once():
    pattern, one, other = QuestTopK(2), tiny(), tiny("gpt_neox")
    apart = [live(model, pattern, CALLS) for model in (one, other)]
    with (
        torch.no_grad(),
        fm.sparse(one, pattern, BLOCK, "gather") as first,
        fm.sparse(other, pattern, 4, "gather") as second,
    ):
        both = [[], []]
        for part in IDS.split(CALLS, 1):
            both[0].append(one(part, past_key_values=first).logits)
            both[1].append(other(part, past_key_values=second).logits)
    assert same(torch.cat(both[0], 1), apart[0])
    assert same(torch.cat(both[1], 1), under_mask(other, IDS, chosen(pattern, CALLS, 4)))


# With a memory policy


@torch.no_grad()
def remembered(model, policy, budget, pattern, calls, **rest):
    with fm.finite(model, policy, budget, **rest) as cache, fm.sparse(model, pattern, BLOCK, "gather"):
        parts = [model(input_ids=part, past_key_values=cache).logits for part in IDS.split(calls, 1)]
    return torch.cat(parts, 1), cache


@pytest.mark.parametrize("pattern", [Streaming(2, 9), VerticalSlash(1, 3, 4)], ids=repr)
@pytest.mark.parametrize("policy", [H2O(), TOVA(), SnapKV(4, 3)], ids=repr)
@pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt_neox"])
def test_sparse_prefill_then_eviction_is_one_masked_pass(arch, policy, pattern):
    """The first call sees what is chosen, all later ones what is kept."""
    model = tiny(arch)
    logits, cache = remembered(model, policy, 12, pattern, [26, 4] + [1] * 7)
    kept = core.mask(cache.expiry)

    def visible(layer, query, key):
        seen = kept[:, layer].repeat_interleave(query.shape[1] // key.shape[1], 1).clone()
        seen[:, :, :26, :26] &= pattern.blocks(query[:, :, :26], key[:, :, :26], BLOCK).mask()
        return seen

    assert same(logits, under_mask(model, IDS, visible))
    assert int((cache.expiry <= 37).sum()) == cache.expiry.numel() // 37 * 25
    full, alone = remembered(model, policy, 12, FULL, [26, 4] + [1] * 7)
    assert not same(full, logits)
    assert torch.equal(alone.expiry[:, 0, :, :26] > 26, cache.expiry[:, 0, :, :26] > 26)  # the first is asked the same


@pytest.mark.parametrize("rest", [{}, {"positions": "renumbered"}, {"bits": 8}], ids=str)
@pytest.mark.parametrize("budget", [8, fm.policies.Pyramid(8), fm.policies.Ada(8)], ids=repr)
def test_with_a_full_pattern_it_is_what_finite_gives_alone(budget, rest):
    for arch in ("llama", "gpt_neox"):
        model, calls = tiny(arch), [20, 7] + [1] * 10
        ours, cache = remembered(model, H2O(), budget, FULL, calls, **rest)
        with torch.no_grad(), fm.finite(model, H2O(), budget, **rest) as alone:
            theirs = torch.cat([model(input_ids=part, past_key_values=alone).logits for part in IDS.split(calls, 1)], 1)
        assert torch.equal(cache.expiry, alone.expiry) and same(ours, theirs)


def test_generate_over_a_policy():
    model = tiny()
    settings = dict(max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(IDS))
    with fm.finite(model, TOVA(), 12) as cache, fm.sparse(model, Streaming(2, 9), BLOCK, "gather"):
        tokens = model.generate(IDS, past_key_values=cache, **settings)
    steps, again = [], IDS
    with torch.no_grad(), fm.finite(model, TOVA(), 12) as alone, fm.sparse(model, Streaming(2, 9), BLOCK, "gather"):
        for part in (IDS, *tokens[:, 37:-1].split(1, 1)):
            steps.append(model(part, past_key_values=alone).logits[:, -1:].argmax(-1))
            again = torch.cat([again, steps[-1]], 1)
    assert torch.equal(tokens, again) and cache.seen == 44 and torch.equal(cache.expiry, alone.expiry)


def test_finite_comes_first_and_needs_its_cache():
    model = tiny()
    with fm.sparse(model, FULL, BLOCK):
        for inside in (lambda: fm.finite(model, SinkWindow(), 8), lambda: fm.sparse(model, FULL)):
            with pytest.raises(RuntimeError, match=r"runs under `sparse`; leave that `with` first"):
                with inside():
                    pass
        with pytest.raises(RuntimeError, match=r"enter `finite` first: `with fm.finite\(...\) as cache, fm.sparse"):
            fm.record(fm.language.LanguageModel(model, fm.tiny().tokenizer, "it", "x"), IDS[0])
        assert model.config._attn_implementation == "fmlab_sparse"
    with fm.finite(model, SinkWindow(), 8) as cache, fm.sparse(model, FULL, BLOCK) as paged:
        for wrong in (None, paged):
            with pytest.raises(RuntimeError, match="inside `finite` without its cache; pass the cache that `finite`"):
                model(IDS, past_key_values=wrong)
    with fm.sparse(model, FULL, BLOCK), pytest.raises(RuntimeError, match="cache is of a `finite` that has ended"):
        model(IDS, past_key_values=cache)
    assert model.config._attn_implementation == "sdpa"


# What is left behind, and what is refused


def state(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return [type(m).forward for m in model.modules()], hooks, model.config._attn_implementation


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("finite", [False, True])
def test_the_model_is_left_as_it_was(kernel, error, finite):
    model = tiny()
    model.set_attn_implementation(kernel)
    before, stock = state(model), model(IDS).logits
    host = fm.finite(model, SinkWindow(), 8) if finite else fm.sparse(tiny("qwen3"), FULL)
    try:
        with host as cache, fm.sparse(model, Streaming(2, 9), BLOCK, "gather"):
            assert not same(model(IDS, past_key_values=cache if finite else None).logits, stock)
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt, GeneratorExit) as raised:
        assert type(raised) is error
    assert state(model) == before and torch.equal(model(IDS).logits, stock) and not HERE._runs


def test_an_interrupt_in_the_middle_of_a_call():
    model = tiny()

    def interrupt(*args):
        raise KeyboardInterrupt

    with torch.no_grad(), fm.sparse(model, QuestTopK(2), BLOCK, "gather") as cache:
        model(IDS[:, :20], past_key_values=cache)
        handle = model.model.layers[1].mlp.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(IDS[:, 20:21], past_key_values=cache)
        handle.remove()
        with pytest.raises(RuntimeError, match="interrupted in the middle of a call after 20 tokens; start a new one"):
            model(IDS[:, 20:21], past_key_values=cache)
        assert model(IDS).logits.isfinite().all()


@contextmanager
def refused(error, match, model=None, pattern=FULL, block=BLOCK, kernel="gather"):
    model = tiny() if model is None else model
    with fm.sparse(model, pattern, block, kernel), pytest.raises(error, match=match):
        yield model
    assert model.config._attn_implementation != "fmlab_sparse"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"block": 0}, ValueError, "block=0; give a whole number of tokens, 1 or more"),
        ({"block": -8}, ValueError, "block=-8"),
        ({"block": True}, ValueError, "block=True"),
        ({"block": 8.0}, ValueError, "block=8.0"),
        ({"kernel": "fast"}, ValueError, "kernel='fast'; give 'auto', 'dense', 'gather', 'flex'"),
        ({"pattern": H2O()}, TypeError, r"H2O\(recent=0.5\) is no sparsity pattern; give one of fm.sparsity"),
        ({"pattern": Streaming}, TypeError, "is no sparsity pattern"),
        ({"model": "a name"}, TypeError, "str is no transformers model; pass lm.model"),
    ],
)
def test_wrong_arguments(arguments, error, says, monkeypatch):
    monkeypatch.setattr(HERE, "attached", contextmanager(inspect.unwrap(HERE.attached)))
    sparse = contextmanager(inspect.unwrap(fm.sparse))  # as users call it, without our check of annotations
    model = tiny()
    with pytest.raises(error, match=says):
        with sparse(**{"model": model, "pattern": FULL} | arguments):
            pass
    assert model.config._attn_implementation == "sdpa"


def test_a_block_that_a_pattern_cannot_have_is_the_patterns_error():
    with refused(ValueError, "stride=16 does not divide blocks of 8 tokens", pattern=AntiDiagonal(0.5, 16)) as model:
        model(IDS)


def test_masks_are_refused():
    padding = torch.ones_like(IDS)
    padding[1, :3] = 0
    with refused(ValueError, "hides 3 tokens: a batch of unequal lengths") as model:
        model(IDS, attention_mask=padding)
    with refused(ValueError, "hides 3 tokens: a batch of unequal lengths") as model:
        model.generate(IDS, attention_mask=padding, max_new_tokens=3)
    with refused(ValueError, r"ready-made attention mask of shape \(2, 1, 37, 37\) cannot be combined with a sparsity"):
        model = tiny()
        with fm.sparse(model, FULL):
            model(IDS, attention_mask=torch.zeros(2, 1, 37, 37))
    places = torch.cat([torch.arange(20), torch.arange(17)]).expand(2, -1)
    with refused(ValueError, "hides the first token from the last, number 36: .* several texts packed") as model:
        model(IDS, position_ids=places, use_cache=False)


def test_sliding_windows():
    model = tiny("mistral", sliding_window=30)
    assert same(live(model, FULL, [20, 5] + [1] * 5, ids=IDS[:, :30]), model(IDS[:, :30]).logits)
    with refused(ValueError, "hides the first token from the last, number 30: a sliding window", model):
        model(IDS[:, :31])
    with fm.sparse(model, FULL, BLOCK, "gather") as cache:
        model(IDS[:, :30], past_key_values=cache)
        with pytest.raises(ValueError, match="a sliding window of its own"):
            model(IDS[:, 30:31], past_key_values=cache)
        with pytest.raises(ValueError, match="sliding window of its own of 30 tokens, and these are 37"):
            query = torch.zeros(2, 6, 37, 8)
            AttentionInterface()["fmlab_sparse"](
                model.model.layers[0].self_attn, query, query, query, None, sliding_window=30
            )
    with fm.finite(model, H2O(), 12) as cache, fm.sparse(model, FULL, BLOCK, "gather"):
        for part in IDS.split([30] + [1] * 7, 1):  # beyond the window it is finite that attends, which knows it
            model(part, past_key_values=cache)
        assert cache.seen == 37
    with fm.finite(model, H2O(), 12) as cache, fm.sparse(model, FULL, BLOCK, "gather"):
        with pytest.raises(ValueError, match="sliding window of its own of 30 tokens, and these are 31"):
            model(IDS[:, :31], past_key_values=cache)


def test_what_changes_the_attention_in_a_way_not_computed_is_refused():
    with refused(
        ValueError, "caps its logits at 0.3, which `sparse` does not compute", gemma(2, attn_logit_softcapping=0.3)
    ) as m:
        m(IDS[:, :10])
    with refused(ValueError, "attends with s_aux, which `sparse` does not compute") as model:
        model(IDS, s_aux=torch.zeros(6))
    with refused(ValueError, "attends in both directions; a pattern is causal") as model:
        model(IDS, is_causal=False)
    model = tiny().train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with refused(ValueError, "dropout is 0.5; call model.eval", model):
        model(IDS)
    model = tiny()
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="layers of type linear_attention; a sparsity pattern needs full or sliding"):
        with fm.sparse(model, FULL):
            pass


def test_a_cache_of_fixed_length_is_refused():
    with refused(
        ValueError, "shows keys 0 to 63 to queries that end at 36; use a cache that holds what it was"
    ) as model:
        model(IDS, past_key_values=StaticCache(config=model.config, max_cache_len=64))


def test_a_cache_of_other_pages_is_refused():
    model = tiny()
    with fm.sparse(model, QuestTopK(2), 4, "gather") as other:
        model(IDS, past_key_values=other)
    with refused(ValueError, "pages of 4 tokens in a run with blocks of 8", model, QuestTopK(2)):
        model(IDS[:, :1], past_key_values=other)


@pytest.mark.parametrize("uses_cache", [False, True])
def test_a_model_that_attends_by_itself_is_refused(uses_cache):
    config = LlamaConfig(hidden_size=12, num_attention_heads=2, num_hidden_layers=3, vocab_size=256)
    closed = Closed(config, uses_cache).eval()
    with pytest.raises(ValueError, match=r"attention of Closed cannot be reached.*; use a model class that"):
        with fm.sparse(closed, FULL) as cache:
            closed(input_ids=IDS, past_key_values=cache)
    assert closed.config._attn_implementation != "fmlab_sparse" and not closed._forward_hooks


def test_a_second_model_of_the_same_config_is_not_taken_for_the_first():
    one = tiny()
    other = type(one)(one.config).eval()
    assert other.config is one.config and isinstance(one, type(AutoModelForCausalLM.from_config(one.config)))
    with fm.sparse(one, FULL, BLOCK, "gather"):
        with pytest.raises(RuntimeError, match="shares its config with one; give the second model a config of its own"):
            other(IDS)
        assert model_runs(one)


@torch.no_grad()
def model_runs(model):
    return bool(model(IDS).logits.isfinite().all())


@torch.no_grad()
def test_the_oracle_runs_in_a_model_too():
    model = tiny()
    for pattern in (Oracle(0.6), LocalGlobal(8, (3,))):
        with fm.sparse(model, pattern, BLOCK, "gather"):
            ours = model(IDS).logits
        assert same(ours, under_mask(model, IDS, chosen(pattern, [37])))


@pytest.mark.real
@torch.no_grad()
def test_the_real_model(lm):
    ids = lm.ids(" ".join(fm.texts.paragraphs()[:6]))[None, :300]
    stock = lm.model(ids).logits
    with fm.sparse(lm.model, QuestTopK(3), 32, "gather") as cache:
        parts = ids.split([290] + [1] * 10, 1)
        ours, theirs = (
            torch.cat([lm.model(part, past_key_values=past).logits for part in parts], 1)
            for past in (cache, DynamicCache())
        )
    assert float((ours - theirs).abs().max()) < 1e-3 < float((ours - stock).abs().max())
    with fm.sparse(lm.model, FULL, 64, "gather"):
        assert float((lm.model(ids).logits - stock).abs().max()) < 1e-3
