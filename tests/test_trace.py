import dataclasses
import inspect
import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

import fmlab as fm
from fmlab.core import Policy
from fmlab.language import ready
from fmlab.policies import H2O, TOVA, KeyNorm, Random, SinkWindow, SlidingWindow, SnapKV
from fmlab.rerun import replay
from fmlab.slots import split
from fmlab.trace import Trace, TraceError

IDS = torch.randperm(256, generator=torch.Generator().manual_seed(6))[:48]
POLICIES = [SinkWindow(), SlidingWindow(), Random(), KeyNorm(), H2O(), TOVA(), SnapKV(4, 3)]
TENSORS = ("ids", "queries", "keys", "values")


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


@pytest.fixture(scope="module")
def trace(tiny):
    return fm.record(tiny, IDS, dtype=torch.float32)


def same(one, other):
    tensors = all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)
    columns = ("output_norms", "repeated")
    for name in columns:
        mine, theirs = getattr(one, name), getattr(other, name)
        tensors &= mine is theirs is None or torch.equal(mine, theirs)
    plain = [f.name for f in dataclasses.fields(Trace) if f.name not in (*TENSORS, *columns)]
    return tensors and all(getattr(one, name) == getattr(other, name) for name in plain)


def test_a_record_is_what_the_attention_was_given(tiny, trace):
    """Queries, keys and values, put through a softmax by hand, give what the model's own eager attention gives."""
    tiny.model.set_attn_implementation("eager")
    stock = tiny.model(input_ids=IDS[None], output_attentions=True).attentions
    tiny.model.set_attn_implementation("sdpa")
    keys = trace.keys.repeat_interleave(trace.groups, 1)
    later = torch.ones(48, 48).triu(1).bool()
    weights = (trace.queries @ keys.transpose(2, 3) * trace.scaling).masked_fill(later, -torch.inf).softmax(-1)
    torch.testing.assert_close(weights, torch.cat(stock), rtol=0, atol=1e-5)
    torch.testing.assert_close(trace.view().attention(48), weights.view(6, 3, 48, 48).mean(1), rtol=0, atol=1e-6)
    assert trace.queries.shape == (3, 6, 48, 8) and trace.values.shape == trace.keys.shape == (3, 2, 48, 8)
    assert len(trace) == 48 and trace.layers == (0, 1, 2) and trace.model == "tiny llama" and trace.groups == 3


def test_a_record_of_text_has_its_pieces(tiny):
    trace = fm.record(tiny, "naïve 😀 <b>")
    assert "".join(trace.tokens) == "naïve 😀 <b>" and len(trace.tokens) == len(trace)
    assert trace.keys.dtype == torch.float16 and "&lt;b&gt;" in trace._repr_html_() and "3 layers" not in repr(trace)
    assert f"{trace.nbytes / 1e6:.1f} MB" in repr(trace)


def test_half_precision_is_the_full_record_rounded(tiny, trace):
    half = fm.record(tiny, IDS)
    assert all(torch.equal(getattr(half, name), getattr(trace, name).half()) for name in TENSORS[1:])


@pytest.mark.parametrize("layers", [(1,), (2, 0)])
def test_a_choice_of_layers(tiny, trace, layers):
    some = fm.record(tiny, IDS, layers=layers, dtype=torch.float32)
    assert some.layers == layers and some.windows == (None,) * len(layers)
    assert all(torch.equal(getattr(some, name), getattr(trace, name)[list(layers)]) for name in TENSORS[1:])
    assert torch.equal(fm.replay(some, Random(), 9), fm.replay(trace, Random(), 9)[list(layers)])


@pytest.mark.parametrize("layers", [[], [0, 0], [3], [-1]])
def test_layers_that_are_not_there(tiny, layers):
    with pytest.raises(ValueError, match=r"layers=\[.*\]; choose different layers from 0 to 2"):
        fm.record(tiny, IDS, layers=layers)


@pytest.mark.parametrize(("text", "says"), [("", "the text is empty"), ([], "empty"), (IDS[None], r"shape \(1, 48\)")])
def test_what_is_no_text(tiny, text, says):
    with pytest.raises(ValueError, match=says):
        fm.record(tiny, text)
    assert tiny.model.config._attn_implementation == "sdpa"


def test_layers_that_scale_differently_are_refused(tiny):
    lm = fm.tiny()
    lm.model.model.layers[1].self_attn.scaling = 0.1
    with pytest.raises(ValueError, match="scale their attention differently; record them one by one"):
        fm.record(lm, IDS)
    assert fm.record(lm, IDS, layers=[1]).scaling == 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip(tiny, tmp_path, dtype):
    trace = fm.record(
        tiny, "a \ud800".encode("utf-8", "replace").decode() + '"\\\n\x00', layers=[1], dtype=dtype, second_pass=True
    )
    path = trace.save(tmp_path / "x.safetensors")
    again = Trace.load(str(path))
    assert same(again, trace) and again.keys.dtype == dtype
    assert again.queries.is_contiguous() and isinstance(again.tokens, tuple)


def test_round_trip_of_a_trace_made_by_hand(tmp_path):
    queries, keys, values = torch.zeros(3, 2, 1, 3, 4)
    trace = Trace(torch.arange(3), ("a", "b", "c"), (4, 7), "hand", queries.clone(), keys.clone(), values.clone(), 0.5)
    assert same(Trace.load(trace.save(tmp_path / "hand")), trace) and trace.window() is None
    with pytest.raises(TraceError, match="2 token texts for 3 ids"):
        dataclasses.replace(trace, tokens=("a", "b"))


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 0.999])
def test_a_truncated_file(trace, tmp_path, share):
    whole = trace.save(tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(TraceError, match=r"cut is truncated or no safetensors file .*; write it again with fm.record"):
        Trace.load(cut)


def about(trace, **changed):
    names = ("tokens", "layers", "model", "scaling", "softcap", "windows")
    return {"format": "fmlab trace 1"} | {name: getattr(trace, name) for name in names} | changed


@pytest.mark.parametrize(
    ("metadata", "tensors", "says"),
    [
        (None, {}, "is no 'fmlab trace 1' file but 'foreign'; write it with"),
        ({"fmlab": '{"format": "fmlab replays 1"}'}, {}, "but 'fmlab replays 1'"),
        ({"fmlab": "{"}, {}, "is truncated or no safetensors file"),
        ({"fmlab": "[1]"}, {}, "is truncated or no safetensors file"),
        ({"layers": None}, {}, "lacks a part of a trace"),
        ({"layers": [0]}, {}, "do not fit each other; record it again"),
        ({"windows": [3]}, {}, "do not fit each other"),
        ({"tokens": ["a"]}, {}, "1 token texts for 48 ids"),
        ({}, {"keys": None}, "lacks a part"),
        ({}, {"extra": torch.zeros(1)}, "lacks a part"),
        ({}, {"keys": torch.zeros(3, 3, 48, 8)}, "do not fit|lacks a part"),
        ({}, {"keys": torch.zeros(3, 2, 48, 4)}, "do not fit|lacks a part"),
        ({}, {"values": torch.zeros(3, 2, 59, 8)}, "do not fit|lacks a part"),
        ({}, {"queries": torch.zeros(6, 48, 8)}, "lacks a part|do not fit"),
    ],
)
def test_a_foreign_file(trace, tmp_path, metadata, tensors, says):
    stored = {name: getattr(trace, name) for name in TENSORS} | tensors
    stored = {name: tensor for name, tensor in stored.items() if tensor is not None}
    if metadata is not None and "fmlab" not in metadata:
        metadata = {"fmlab": json.dumps(about(trace, **metadata))}
    save_file(stored, tmp_path / "x", metadata)
    with pytest.raises(TraceError, match=says):
        Trace.load(tmp_path / "x")


def test_what_is_no_file(tmp_path):
    (tmp_path / "text").write_text("no tensors in here, but some words")
    with pytest.raises(TraceError, match="text is truncated or no safetensors file"):
        Trace.load(tmp_path / "text")
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"does not exist; write it with fm.record\(...\).save\(path\)"):
            Trace.load(missing)


# Replay


@torch.no_grad()
@pytest.mark.parametrize("sizes", [1, 25, (20, 7, 1, 9)], ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_replay_is_the_live_run_at_the_first_layer(tiny, trace, policy, sizes):
    calls = split(48, sizes)
    with fm.finite(tiny.model, policy, 12) as cache:
        for part in IDS[None].split(calls, 1):
            tiny.model(input_ids=part, past_key_values=cache)
    replayed = replay(trace, policy, 12, prefill=sizes)
    assert torch.equal(replayed[0], cache.expiry[0])
    assert (replayed == 49).sum(-1).eq(12).all() and replayed.dtype == torch.int64


@torch.no_grad()
@pytest.mark.parametrize(("budget", "prefill"), [(6, 1), (6, 30), (15, 1), (40, 20)])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_model_with_sliding_windows(policy, budget, prefill):
    config = Qwen3Config(
        vocab_size=256, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6, head_dim=8,
        num_key_value_heads=2, sliding_window=16, use_sliding_window=True, initializer_range=0.3,
        layer_types=["sliding_attention", "full_attention"], bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = ready(Qwen3ForCausalLM(config), fm.tiny().tokenizer, "sliding", "random weights")
    for layer in lm.model.model.layers:  # or else all keys are of one length, and rounding decides for KeyNorm
        layer.self_attn.k_norm.weight.uniform_(0.5, 2)
    trace = fm.record(lm, IDS, dtype=torch.float32)
    assert trace.windows == (16, None) and trace.window().tolist() == [16, 16, 48, 48]
    with fm.finite(lm.model, policy, budget) as cache:
        for part in IDS[None].split(split(48, prefill), 1):
            lm.model(input_ids=part, past_key_values=cache)
    replayed = replay(trace, policy, budget, prefill)
    assert torch.equal(replayed[0], cache.expiry[0])
    assert (replayed[0] <= torch.arange(48) + 16).all() and (replayed[1] == 49).sum(-1).eq(budget).all()


def test_all_layers_and_heads_at_once(trace):
    shapes = []

    class Counting(Policy):
        def score(self, view, stats):
            shapes.append(tuple(view.positions.shape))
            return -view.age.float()

    replay(trace, Counting(), 10)
    assert shapes == [(6, 11)] * 38  # one call a step; none before the budget is full


def test_every_call_is_observed_where_a_policy_observes(trace):
    calls = []

    class Observing(Policy):
        def observe(self, view, stats):
            calls.append(view.new)
            return {}

        def score(self, view, stats):
            return -view.age.float()

    replay(trace, Observing(), 10, prefill=(4, 20))
    assert calls == [4, 20] + [1] * 24


def test_joining_the_first_calls_changes_nothing(trace):
    class Watching(SlidingWindow):
        def observe(self, view, stats):  # as the inherited one, but its own: no calls are joined
            return stats

    for prefill in (1, 5, (3, 4, 9), 48):
        assert torch.equal(replay(trace, SlidingWindow(), 8, prefill), replay(trace, Watching(), 8, prefill))


def test_progress_and_cancel(trace):
    told = []
    replay(trace, H2O(), 8, progress=told.append)
    assert told == [48]
    long = fm.record(fm.tiny(), torch.arange(200), dtype=torch.float32, layers=[0])
    replay(long, H2O(), 8, progress=told.append)
    assert told == [48, 64, 128, 192, 200]

    def cancel(done):
        told.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(long, H2O(), 8, progress=cancel)
    assert told[-1] == 64


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_trace_is_left_as_it_was(trace, policy):
    before = [getattr(trace, name).clone() for name in TENSORS]
    first = replay(trace, policy, 12, prefill=20)
    fm.metrics.mass_recall(trace, first)
    assert torch.equal(replay(trace, policy, 12, prefill=20), first)
    assert all(torch.equal(getattr(trace, name), kept) for name, kept in zip(TENSORS, before, strict=True))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_under_inference_mode(tiny, trace, policy):
    plain = replay(trace, policy, 12)
    with torch.inference_mode():
        assert torch.equal(replay(trace, policy, 12), plain)
        recorded = fm.record(tiny, IDS, dtype=torch.float32)
        assert fm.metrics.mass_recall(recorded, plain).shape == (3, 2)
    assert torch.equal(replay(recorded, policy, 12), plain) and not recorded.keys.is_inference()


def test_budgets_and_prefills_that_mean_nothing(trace):
    assert (replay(trace, H2O(), 1_000) == 49).all()
    for wrong in (0, -1):
        with pytest.raises(fm.BudgetError, match=f"budget {wrong} < 1"):
            replay(trace, H2O(), wrong)
    with pytest.raises(fm.BudgetError, match=r"SinkWindow\(sinks=4\): budget 4 < 5 pinned"):
        replay(trace, SinkWindow(), 4)
    with pytest.raises(ValueError, match="prefill=0; give the size of the first call"):
        replay(trace, H2O(), 8, prefill=0)
    with pytest.raises(TypeError):
        replay(trace, H2O, 8)
    assert "is no Policy" in str(
        pytest.raises(TypeError, inspect.unwrap(fm.core.check_needs), H2O, frozenset(), "x").value
    )


def test_a_policy_that_needs_what_was_not_recorded_is_refused_on_entry(trace):
    class Reader(SlidingWindow):
        needs = frozenset({"second_pass"})

    with pytest.raises(ValueError, match="needs second_pass, which a replay of .* cannot prepare"):
        replay(trace, Reader(), 8)


def test_a_layer_alone():
    trace = fm.record(fm.tiny(), "A text to be forgotten.", layers=[0, 2])
    one = trace.layer(1)
    assert one.layers == (2,) and one.windows == trace.windows[1:] and one.ids is trace.ids
    for name in ("queries", "keys", "values"):
        assert torch.equal(getattr(one, name), getattr(trace, name)[1:])
    assert all((column is None) == (one.columns[name] is None) for name, column in trace.columns.items())
    assert torch.equal(fm.replay(one, fm.policies.TOVA(), 8), fm.replay(trace, fm.policies.TOVA(), 8)[1:])
