"""What policies may need beyond attention: rotary embedding, output projections, a second pass, the future."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from transformers import DynamicCache

import fmlab as fm
from fmlab.needs import Equipment, output_norms, output_projections
from fmlab.policies import Clairvoyant
from fmlab.repeat import REQUEST, repeated_attention
from fmlab.rope import Rope, rope_of
from fmlab.slots import split
from fmlab.watch import watch

ARCHITECTURES = ["llama", "qwen3", "mistral", "gpt_neox"]
IDS = torch.randperm(256, generator=torch.Generator().manual_seed(3))[:40]


@dataclass(frozen=True)
class Curious(fm.Policy):
    """Asks for everything that a live model can prepare, and remembers it."""

    needs: ClassVar[frozenset[str]] = frozenset({"pre_rope", "output_projection"})

    def observe(self, view, stats):
        norms = stats["norms"] if "norms" in stats else torch.zeros(view.positions.shape)
        return {"norms": view.fill_new(norms, view.new_output_norms)}

    def score(self, view, stats):
        return stats["norms"] + view.pre_rope_keys.float()[..., 0] + view.pre_rope_queries.float().mean()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_unrotated_keys_are_those_before_the_embedding(arch):
    lm = fm.tiny(arch)
    rope, once = rope_of(lm.model), fm.record(lm, IDS, dtype=torch.float32)
    twice = torch.cat([IDS, IDS])  # at layer 0 the same token has the same key, but for its place
    keys = fm.record(lm, twice, layers=[0], dtype=torch.float32).keys
    assert not torch.allclose(keys[..., :40, :], keys[..., 40:, :], atol=1e-2)
    bare = rope.unrotate(keys, torch.arange(80).expand(keys.shape[:-1]))
    torch.testing.assert_close(bare[..., :40, :], bare[..., 40:, :], rtol=1e-4, atol=1e-4)
    places = torch.arange(40).expand(once.keys.shape[:-1])
    torch.testing.assert_close(rope.rotate(rope.unrotate(once.keys, places), places), once.keys)
    assert rope == once.rope and rope != Rope(rope.inv_freq, 2.0) and rope != Rope(2 * rope.inv_freq)


@pytest.mark.parametrize(("scaling", "d"), [(1.0, 8), (0.7, 12)])
def test_the_mean_rotation_is_the_mean_of_rotations(scaling, d):
    rope, x = Rope(torch.tensor([1.0, 0.3, 1e-7, 0.0]), scaling), torch.randn(3, 1, d, dtype=torch.float64)
    start = torch.tensor([0, 5, 900])
    each = rope.rotate(x.expand(3, 20, d).contiguous(), start[:, None] + torch.arange(20))
    ours = torch.einsum("hij,hj->hi", rope.mean(start, 20, d).double(), x[:, 0])
    torch.testing.assert_close(ours, each.mean(1), rtol=1e-5, atol=1e-5)


def test_an_embedding_of_another_layout_is_not_taken_for_ours(monkeypatch):
    lm = fm.tiny()
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.apply_rotary_pos_emb", lambda q, k, cos, sin: (q.flip(-1), k)
    )
    assert rope_of(lm.model) is None
    with pytest.raises(ValueError, match=r"Curious\(\) needs pre_rope, which a live LlamaForCausalLM cannot prepare"):
        with fm.finite(lm.model, Curious(), 8):
            pass
    assert lm.model.config._attn_implementation != "fmlab"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_output_norms_are_those_of_what_each_value_adds(arch, monkeypatch):
    lm = fm.tiny(arch)
    trace, projections = fm.record(lm, IDS, dtype=torch.float32), output_projections(lm.model)
    for row, layer in enumerate(trace.layers):
        weight, values = projections[layer].double(), trace.values[row].double()
        d = values.shape[-1]
        for head in range(trace.kv_heads):
            queries = range(head * trace.groups, (head + 1) * trace.groups)
            added = [sum(abs(weight[:, q * d : (q + 1) * d] @ values[head, 7])) for q in queries]
            assert float(trace.output_norms[row, head, 7]) == pytest.approx(float(sum(added)) / trace.groups, rel=1e-5)
    both = torch.stack([trace.values[0], trace.values[0].flip(1)]).flatten(0, 1)
    torch.testing.assert_close(output_norms(both, projections[0], 2)[: trace.kv_heads], trace.output_norms[0].clone())
    monkeypatch.setattr("fmlab.needs.WORKSPACE", 7 * projections[0].numel())  # a few rows at a time
    torch.testing.assert_close(output_norms(both, projections[0], 2)[: trace.kv_heads], trace.output_norms[0].clone())


@torch.no_grad()
def test_the_second_pass_is_the_attention_of_an_eager_model():
    lm = fm.tiny()
    ids = torch.cat([IDS, lm.ids(REQUEST), IDS])
    lm.model.set_attn_implementation("eager")
    weights = torch.stack(lm.model(ids[None], output_attentions=True).attentions)[:, 0]
    lm.model.set_attn_implementation("sdpa")
    layers, query_heads = weights.shape[:2]
    rows = weights[:, :, -40:, :40].view(layers, 2, query_heads // 2, 40, 40)
    torch.testing.assert_close(repeated_attention(lm, IDS), rows.amax((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fm.record(lm, IDS, [2, 0], second_pass=True).repeated[1], rows.amax((2, 3))[0])
    pieces = repeated_attention(lm, IDS, chunk=25)
    assert pieces.shape == (layers, 2, 40) and (pieces > 0).all() and (pieces <= 1).all()


def test_watching_reads_the_text_as_the_model_does():
    lm, seen = fm.tiny(), []
    last = watch(lm.model, IDS, lambda layer, view: seen.append((layer, view.new)))
    assert seen == [(0, 40), (1, 40), (2, 40)]
    with torch.no_grad():
        torch.testing.assert_close(lm.model.lm_head(last), lm.model(IDS[None]).logits[0, -1])


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "fields"), [*((arch, {}) for arch in ARCHITECTURES), ("mistral", {"sliding_window": 9})]
)
def test_watching_goes_on_from_what_was_read(arch, fields):
    lm = fm.tiny(arch, **fields)
    whole, parts = [], []
    watch(lm.model, IDS, lambda layer, view: whole.append(view.attention(last=13)))
    past = DynamicCache()
    lm.model(input_ids=IDS[None, :27], past_key_values=past)
    for _ in range(2):  # what was read stays as it was
        last = watch(lm.model, IDS[27:], lambda layer, view: parts.append(view.attention(last=13)), past=past)
        torch.testing.assert_close(parts, whole)
        torch.testing.assert_close(last, watch(lm.model, IDS, lambda layer, view: None))
        parts.clear()


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_needed_is_the_same_live_and_replayed(arch):
    lm = fm.tiny(arch)
    trace = fm.record(lm, IDS, dtype=torch.float32)
    with fm.finite(lm.model, Curious(), 9) as cache:
        for part in IDS[None].split([15, 4, *[1] * 21], 1):
            lm.model(input_ids=part, past_key_values=cache)
        assert copy.deepcopy(cache).equipment is cache.equipment  # no copy of the model's weights
    assert torch.equal(fm.replay(trace, Curious(), 9, prefill=(15, 4))[0], cache.expiry[0])
    assert (cache.expiry <= 40).any()


def test_what_a_host_does_not_have_is_refused():
    lm = fm.tiny()
    trace = fm.record(lm, IDS)

    class Repeating(Curious):
        needs = frozenset({"second_pass"})

    with pytest.raises(ValueError, match="needs second_pass, which a replay of Trace.* cannot prepare"):
        fm.replay(trace, Repeating(), 8)
    with pytest.raises(ValueError, match="needs future, which a live model cannot prepare"):
        with fm.finite(lm.model, Clairvoyant(), 8):
            pass

    class Sly(Curious):
        needs = frozenset()

    with pytest.raises(ValueError, match="'output_projection' is not prepared for this policy; name it in"):
        fm.replay(trace, Sly(), 8)


def test_equipment_says_what_it_has():
    lm = fm.tiny()
    assert Equipment(lm.model).offers == {"pre_rope", "output_projection"}
    del lm.model.model.layers[1].self_attn.o_proj
    assert Equipment(lm.model).offers == {"pre_rope"}


@pytest.mark.parametrize("prefill", [1, 20, (9, 8, 7)])
def test_clairvoyant_drops_what_is_paid_least_from_then_on(prefill):
    trace = fm.record(fm.tiny(), IDS, dtype=torch.float32)
    paid = trace.view().rows(0, 40).mean(1).double()  # (heads, queries, entries)
    expiry = fm.replay(trace, Clairvoyant(), 8, prefill=prefill).flatten(0, 1)
    for row in range(len(expiry)):
        held, seen = [], 0
        for new in split(40, prefill):
            held, seen = held + list(range(seen, seen + new)), seen + new
            worth = {p: float(paid[row, seen:, p].sum()) for p in held}
            lost = sorted(held, key=worth.get)[: max(0, len(held) - 8)]
            held = [p for p in held if p not in lost]
            assert seen == 40 or {p for p in range(seen) if expiry[row, p] == seen} == set(lost)
