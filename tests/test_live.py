import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

import fmlab as fm
from fmlab.core import mask
from fmlab.masked import masked_logits
from fmlab.policies import H2O, TOVA, KeyNorm, Random, SinkWindow, SlidingWindow, SnapKV

IDS = torch.randperm(256, generator=torch.Generator().manual_seed(2))[:80].view(2, 40)  # a batch of two
POLICIES = [SinkWindow(), SlidingWindow(), Random(), KeyNorm(), H2O(), TOVA(), SnapKV(4, 3)]
CALLS = [17, 6, 1, 1, 5] + [1] * 10  # prefill in chunks, decode, another turn, decode
ARCHES = ["llama", "qwen3", "mistral", "gpt_neox"]


def gemma(version, **rest):
    sizes = dict(
        vocab_size=256, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, sliding_window=16, initializer_range=0.3, query_pre_attn_scalar=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], pad_token_id=None,
        bos_token_id=None, eos_token_id=None, max_position_embeddings=512,
    )  # fmt: skip
    config, model = {2: (Gemma2Config, Gemma2ForCausalLM), 3: (Gemma3TextConfig, Gemma3ForCausalLM)}[version]
    torch.manual_seed(0)
    model = model(config(**sizes | rest)).eval().requires_grad_(False)
    model.set_attn_implementation("eager")  # transformers 5.2 leaves out the cap on logits under SDPA
    return model


@torch.no_grad()
def live(model, policy, budget, ids, calls=CALLS):
    with fm.finite(model, policy, budget) as cache:
        parts = [model(input_ids=part, past_key_values=cache).logits for part in ids.split(calls, 1)]
    return torch.cat(parts, 1), cache


def assert_same_logits(ours, theirs):
    scale = float(theirs.std())
    assert scale > 0.1 and float((ours - theirs).abs().max()) < 1e-4 * max(1.0, scale)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("arch", ARCHES)
def test_live_is_one_masked_pass(arch, kernel):
    model = fm.tiny(arch).model
    model.set_attn_implementation(kernel)
    for policy, ids in ((H2O(), IDS), (TOVA(), IDS[:1]), (SinkWindow(2), IDS)):
        logits, cache = live(model, policy, 9, ids)
        assert_same_logits(logits, masked_logits(model, ids, cache.expiry, kernel))
        assert int((cache.expiry <= 40).sum()) == cache.expiry.numel() // 40 * 31  # all but the budget are gone
    assert model.config._attn_implementation == kernel


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_every_policy_is_one_masked_pass(policy):
    model = fm.tiny(seed=3).model
    for calls in ([40], [1] * 40, CALLS):
        logits, cache = live(model, policy, 12, IDS, calls)
        assert cache.expiry.shape == (2, 3, 2, 40)
        assert_same_logits(logits, masked_logits(model, IDS, cache.expiry))


def llama_by_hand(model, ids, seen, renumbered=False):
    """Llama in float64, written out; `seen` (layers, kv_heads, T, T); renumbered: positions are ranks among the seen."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    config, tokens = model.config, len(ids)
    heads, kv_heads, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    norm = lambda x, w: x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * w  # noqa: E731
    turn = 10_000.0 ** (-torch.arange(0, d, 2).double() / d)

    def rotate(x, places):
        angle = (places.double()[..., None] * turn).repeat(*[1] * places.ndim, 2)
        return x * angle.cos() + torch.cat([-x[..., d // 2 :], x[..., : d // 2]], -1) * angle.sin()

    at = torch.arange(tokens)
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        w = {k.split(f"layers.{layer}.")[1]: t for k, t in weights.items() if f"layers.{layer}." in k}
        inner = norm(x, w["input_layernorm.weight"])
        q, k, v = ((inner @ w[f"self_attn.{n}_proj.weight"].T).view(tokens, -1, d).transpose(0, 1) for n in "qkv")
        k, v, allowed = (each.repeat_interleave(heads // kv_heads, 0) for each in (k, v, seen[layer]))
        place = allowed.long().cumsum(-1) - 1 if renumbered else at.expand_as(allowed)  # of each key for each query
        own = place.diagonal(dim1=1, dim2=2)
        keys = rotate(k[:, None].expand(-1, tokens, -1, -1), place)
        logits = torch.einsum("hid,hijd->hij", rotate(q, own), keys) / d**0.5
        mixed = logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ v
        x = x + mixed.transpose(0, 1).reshape(tokens, -1) @ w["self_attn.o_proj.weight"].T
        inner = norm(x, w["post_attention_layernorm.weight"])
        gated = torch.nn.functional.silu(inner @ w["mlp.gate_proj.weight"].T) * (inner @ w["mlp.up_proj.weight"].T)
        x = x + gated @ w["mlp.down_proj.weight"].T
    return norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


@pytest.mark.parametrize("policy", [H2O(), SinkWindow()], ids=repr)
def test_live_is_the_architecture_written_out_in_float64(policy):
    model = fm.tiny().model
    logits, cache = live(model, policy, 10, IDS[:1])
    assert_same_logits(logits[0].double(), llama_by_hand(model, IDS[0], mask(cache.expiry)))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("budget", [8, 15, 33])
def test_a_model_with_windows_of_its_own_keeps_them(policy, budget):
    model = fm.tiny("mistral", sliding_window=16).model
    for calls in (CALLS, [1] * 40)[: 1 + (budget == 8)]:
        logits, cache = live(model, policy, budget, IDS, calls)
        assert_same_logits(logits, masked_logits(model, IDS, cache.expiry))
        born = torch.arange(40)
        assert (cache.expiry <= born + 16).all() and all(layer.slots.held <= 15 for layer in cache.layers)
        if budget >= 15:  # the policy has nothing to say
            assert (cache.expiry == (born + 16).clamp(max=41)).all()
            assert_same_logits(logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("policy", "budget"), [(H2O(), 10), (TOVA(), 24), (SinkWindow(), 100), (KeyNorm(), 100)])
def test_gemma(version, policy, budget):
    model = gemma(version)
    logits, cache = live(model, policy, budget, IDS)
    assert_same_logits(logits, masked_logits(model, IDS, cache.expiry))
    held = [layer.slots.held for layer in cache.layers]
    assert held == [min(budget, 15), min(budget, 40), min(budget, 15)]
    if budget == 100:
        assert_same_logits(logits, model(input_ids=IDS).logits)


def test_the_cap_on_logits_matters():
    """Or the tests above would not see whether it is applied."""
    plain, capped = (gemma(2, attn_logit_softcapping=cap) for cap in (None, 0.3))
    capped.load_state_dict(plain.state_dict())
    gone = live(capped, H2O(), 10, IDS)
    assert_same_logits(gone[0], masked_logits(capped, IDS, gone[1].expiry))
    assert float((gone[0] - masked_logits(plain, IDS, gone[1].expiry)).abs().max()) > 0.01


WAYS = {
    "greedy": dict(do_sample=False),
    "sampled": dict(do_sample=True, temperature=0.8, top_k=20),
    "beams": dict(do_sample=False, num_beams=3, num_return_sequences=2),
    "in chunks": dict(do_sample=False, prefill_chunk_size=16),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma 3"])
def test_full_budget_generates_what_the_stock_model_generates(arch, way):
    model = gemma(3) if arch == "gemma 3" else fm.tiny(arch).model
    settings = dict(max_new_tokens=12, attention_mask=torch.ones_like(IDS), **WAYS[way])
    torch.manual_seed(11)
    stock = model.generate(IDS, **settings)
    torch.manual_seed(11)
    with fm.finite(model, H2O(), 200) as cache:
        ours = model.generate(IDS, past_key_values=cache, **settings)
    assert torch.equal(ours, stock) and cache.seen == 51


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_generation_under_a_policy_is_the_argmax_of_the_masked_pass(policy):
    """Over two turns, with the whole conversation handed in again, as chats do."""
    model = fm.tiny().model
    settings = dict(max_new_tokens=8, do_sample=False)
    with fm.finite(model, policy, 12) as cache:
        first = model.generate(IDS[:1, :30], past_key_values=cache, **settings)
        second = model.generate(torch.cat([first, IDS[1:, :5]], 1), past_key_values=cache, **settings)
    best = masked_logits(model, second[:, :-1], cache.expiry).argmax(-1)
    assert cache.seen == 50 and second.shape == (1, 51)
    assert torch.equal(best[:, 29:37], second[:, 30:38]) and torch.equal(best[:, 42:], second[:, 43:])


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("policy", [H2O(), TOVA()], ids=repr)
def test_beams_move_what_a_sequence_remembers(policy, inference):
    """The beams that win are those of a search over full passes under each beam's own mask."""
    model = fm.tiny().model
    settings = dict(max_new_tokens=10, do_sample=False, num_beams=4, return_dict_in_generate=True, output_scores=True)
    with torch.inference_mode(inference), fm.finite(model, policy, 16) as cache:
        found = model.generate(IDS[:1], past_key_values=cache, **settings)
    tokens = found.sequences[0]
    with torch.no_grad(), fm.finite(model, policy, 16) as alone:
        logits = [model(input_ids=p, past_key_values=alone).logits for p in tokens[None, :-1].split([40] + [1] * 9, 1)]
    chosen = torch.cat(logits, 1).log_softmax(-1)[0, 39:].gather(1, tokens[40:, None]).sum()
    assert float(found.sequences_scores[0]) == pytest.approx(float(chosen) / 10, abs=1e-4)


@torch.no_grad()
def test_bfloat16():
    model = fm.tiny().model.to(torch.bfloat16)
    for policy in (KeyNorm(), H2O(), SinkWindow()):
        logits, cache = live(model, policy, 12, IDS)
        assert logits.dtype == torch.bfloat16 and cache.layers[0].slots.data["keys"].dtype == torch.bfloat16
        theirs = masked_logits(model, IDS, cache.expiry)
        assert float((logits - theirs).float().abs().mean()) < 0.02 * float(theirs.float().std())


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_inference_mode(policy):
    model = fm.tiny().model
    with torch.inference_mode():
        logits, cache = live(model, policy, 12, IDS)
        twin = cache.copy()
    assert_same_logits(logits, live(model, policy, 12, IDS)[0])
    with fm.finite(model, policy, 12), torch.no_grad():  # made there, continued here
        one, two = (model(input_ids=IDS[:, :1], past_key_values=each).logits for each in (cache, twin))
    assert torch.equal(one, two) and torch.equal(cache.expiry, twin.expiry)


def test_the_mode_of_gradients_is_none_of_our_business():
    model = fm.tiny().model.requires_grad_(True)
    with fm.finite(model, SinkWindow(), 12) as cache:
        logits = model(input_ids=IDS, past_key_values=cache).logits
        logits = model(input_ids=IDS[:, :1], past_key_values=cache).logits
    logits.sum().backward()
    assert model.lm_head.weight.grad.abs().sum() > 0 and cache.seen == 41
    assert not any(tensor.requires_grad for layer in cache.layers for tensor in layer.slots.data.values())


# What the cache says of itself


def tensors(cache):
    return [t for layer in cache.layers for t in layer.slots.data.values()]


def records(cache):
    slots = [layer.slots for layer in cache.layers]
    return [t for each in slots for t in (each._positions, each._expiry, *each.stats.values())]


@torch.no_grad()
@pytest.mark.parametrize("calls", [CALLS, [1] * 40, [9, 3, 1, 8] + [1] * 19], ids=str)
@pytest.mark.parametrize("policy", [SinkWindow(), H2O(), TOVA(), SnapKV(4, 3)], ids=repr)
def test_bytes(policy, calls):
    model, budget = fm.tiny().model, 8
    slot = 3 * 2 * 8 * 2 * 4  # layers, KV heads, head size, keys and values, float32
    peak = 0
    with fm.finite(model, policy, budget) as cache:
        assert (cache.nbytes, cache.overhead_nbytes, cache.peak_nbytes) == (0, 0, 0)
        for part in IDS[:1].split(calls, 1):
            model(input_ids=part, past_key_values=cache)
            assert cache.nbytes == sum(t.untyped_storage().nbytes() for t in tensors(cache))
            assert cache.overhead_nbytes == sum(t.untyped_storage().nbytes() for t in records(cache))
            if part.shape[1] == 1:
                assert cache.nbytes <= (budget + 1) * slot
            peak = max(peak, cache.nbytes + cache.overhead_nbytes)
            assert cache.peak_nbytes >= peak
        assert cache.peak_nbytes >= (max(calls) - 1) * slot // 3  # at the last, one layer holds the chunk


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHES)
def test_a_chunk_below_the_budget_is_kept_without_what_it_was_cut_from(arch):
    """GPT-NeoX computes queries, keys and values as one tensor, and a piece of a tensor keeps all of it alive."""
    model = fm.tiny(arch).model
    with fm.finite(model, SinkWindow(), 8) as cache:
        model(input_ids=IDS[:1, :5], past_key_values=cache)
    heads = model.config.num_key_value_heads if arch != "gpt_neox" else model.config.num_attention_heads
    assert cache.nbytes == 3 * heads * 8 * 5 * 2 * 4


@torch.no_grad()
def test_a_chunk_counts_while_it_is_in_flight():
    model = fm.tiny().model
    with fm.finite(model, SinkWindow(), 8) as cache:
        model(input_ids=IDS[:1, :30], past_key_values=cache)
        small = cache.peak_nbytes
        model(input_ids=IDS[:1].repeat(1, 3), past_key_values=cache)
    row = 2 * 8 * 2 * 4  # what one layer keeps of a token
    assert cache.peak_nbytes - small >= row * (120 - 30) and cache.nbytes == 3 * 9 * row


@torch.no_grad()
@pytest.mark.parametrize("arch", ["llama", "mistral"])
def test_positions_and_expiry_agree(arch):
    model = fm.tiny(arch, **({"sliding_window": 12} if arch == "mistral" else {})).model
    for policy, budget in ((H2O(), 8), (Random(), 20), (SinkWindow(), 8)):
        with fm.finite(model, policy, budget) as cache:
            assert cache.expiry.shape == (3, 2, 0) and cache.positions(0).shape == (2, 0)
            for part in IDS.split(CALLS, 1):
                model(input_ids=part, past_key_values=cache)
                for layer in range(3):
                    places = cache.positions(layer)
                    assert places.dtype == torch.int64 and places.shape[:2] == (2, 2)
                    for sequence in range(2):
                        for head in range(2):
                            held = sorted(p for p in places[sequence, head].tolist() if p >= 0)
                            still = cache.expiry[sequence, layer, head] == cache.seen + 1
                            assert held == still.nonzero().flatten().tolist()
        assert f"seen={cache.seen}" in repr(cache) and repr(policy) in repr(cache)


@torch.no_grad()
@pytest.mark.parametrize("policy", [H2O(), Random()], ids=repr)
def test_a_copy_is_independent(policy):
    model = fm.tiny().model
    with fm.finite(model, policy, 8) as cache:
        model(input_ids=IDS[:1, :20], past_key_values=cache)
        model(input_ids=IDS[:1, 20:21], past_key_values=cache)
        twin, before = (
            cache.copy(),
            (cache.expiry.tolist(), cache.positions(1).tolist(), cache.nbytes, cache.peak_nbytes),
        )
        first = [model(input_ids=p, past_key_values=twin).logits for p in IDS[:1, 21:].split([4] + [1] * 15, 1)]
        assert (cache.expiry.tolist(), cache.positions(1).tolist(), cache.nbytes, cache.peak_nbytes) == before
        second = [model(input_ids=p, past_key_values=cache).logits for p in IDS[:1, 21:].split([4] + [1] * 15, 1)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(cache.expiry, twin.expiry) and cache.seen == 40


@torch.no_grad()
def test_a_budget_above_the_length_is_the_full_cache():
    model = fm.tiny().model
    logits, cache = live(model, TOVA(), 1_000, IDS)
    assert (cache.expiry == 41).all()
    assert_same_logits(logits, model(input_ids=IDS).logits)


@torch.no_grad()
@pytest.mark.parametrize("query_aware", [False, True])
def test_the_policy_is_told_whether_the_question_is_there(query_aware):
    told = []

    class Curious(SlidingWindow):
        def score(self, view, stats):
            told.append((view.query_aware, view.scaling, view.budget.tolist(), sorted(set(view.sequence.tolist()))))
            return -view.age.float()

    model = fm.tiny().model
    with fm.finite(model, Curious(), 8, query_aware=query_aware) as cache:
        model(input_ids=IDS, past_key_values=cache)
    assert told == [(query_aware, 8**-0.5, [8] * 4, [0, 1])] * 3


def test_the_cache_claims_no_length_limit():
    with fm.finite(fm.tiny().model, SinkWindow(), 8) as cache:
        layer = cache.layers[0]
    assert layer.get_max_cache_shape() == layer.get_max_length() == -1 and layer.get_mask_sizes(3) == (3, 0)
    assert layer.get_mask_sizes(torch.arange(3)) == (3, 0)  # as transformers 5.2 asks
