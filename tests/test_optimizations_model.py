"""The pairs that run the model: both ways give the same, change nothing they were given, and the fast one does less."""

import functools
import pkgutil

import pytest
import torch
from torch import Tensor

import fmlab as fm
from fmlab.forks import Prefill
from fmlab.optimizations import (
    batched_forks,
    kv_carry_over,
    lazy_import,
    prefix_cache,
    real,
    shared_prefill,
    slot_overwriting,
    vectorised_replay,
    windowed_attention,
)
from fmlab.optimizations.recorded import recorded
from fmlab.trace import Trace

MODULES = (
    slot_overwriting,
    shared_prefill,
    batched_forks,
    windowed_attention,
    kv_carry_over,
    vectorised_replay,
    prefix_cache,
)
ALL = (*MODULES, lazy_import)


def by_name(modules):
    return pytest.mark.parametrize("pair", [m.PAIR for m in modules], ids=[m.PAIR.name for m in modules])


def use(model, monkeypatch):
    monkeypatch.setattr(real, "lm", functools.cache(lambda: model))
    monkeypatch.setattr(real, "_prose", functools.cache(real._prose.__wrapped__))  # ids are of the model's tokenizer


@pytest.fixture
def tiny(monkeypatch):
    use(fm.tiny(), monkeypatch)
    return real.lm()


def tensors(value: object) -> list[Tensor]:
    """All tensors in what a pair takes or gives."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for each in value for tensor in tensors(each)]
    if isinstance(value, Trace):
        return [value.ids, value.queries, value.keys, value.values]
    if isinstance(value, Prefill):
        views = value._layers.values()
        return [value.ids, *(x for view in views for x in (view.queries, view.keys, view.values))]
    return []


def check(pair, size, seed):
    given = pair.inputs(size, seed)
    before = [tensor.clone() for tensor in tensors(given)]
    plain, fast = tensors(pair.baseline(*given)), tensors(pair.optimised(*given))
    assert plain and len(plain) == len(fast)
    for expected, found in zip(plain, fast, strict=True):
        torch.testing.assert_close(found, expected, atol=pair.tolerance, rtol=0)
    for was, tensor in zip(before, tensors(given), strict=True):
        assert torch.equal(was, tensor)
    return plain


@by_name(MODULES)
@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_both_ways_give_the_same_and_change_nothing(tiny, pair, size):
    check(pair, size, seed=size)


@pytest.mark.parametrize("module", [slot_overwriting, windowed_attention, vectorised_replay], ids=lambda m: m.PAIR.name)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_beyond_a_window_and_a_budget(tiny, module, seed):
    check(module.PAIR, 70, seed)


@by_name(MODULES)
def test_the_seed_draws_the_inputs(tiny, pair):
    one, same, other = (tensors(pair.inputs(5, seed)) for seed in (1, 1, 2))
    if pair is kv_carry_over.PAIR:
        one, same, other = ([torch.tensor(pair.inputs(5, seed)[0][-1])] for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(one, other, strict=True))


@by_name(ALL)
def test_a_pair_is_whole(tiny, pair):
    assert len(set(pair.sizes)) >= 3
    assert callable(pkgutil.resolve_name(pair.used_in or pair.offered_as))
    amounts = [pair.floor(size).amount for size in (0, 1, 7)]
    assert 0 <= amounts[0] <= amounts[1] <= amounts[2]


# What each really does


def reads(lm, run) -> list[int]:
    """The tokens that the model is given, call by call."""
    sizes = []
    hook = lm.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        run()
    finally:
        hook.remove()
    return sizes


@pytest.mark.parametrize(
    ("module", "plain", "fast"),
    [
        (shared_prefill, [256, 4] * 3, [256, 4, 4, 4]),
        (batched_forks, [1] * 9, [3] * 3),
        (prefix_cache, [272] * 3, [272, 16, 16]),
    ],
    ids=lambda value: value.PAIR.name if hasattr(value, "PAIR") else "",
)
def test_the_fast_way_reads_less_or_in_fewer_calls(tiny, module, plain, fast):
    given = module.inputs(3, 0)
    assert reads(tiny, lambda: module.PAIR.baseline(*given)) == plain
    assert reads(tiny, lambda: module.PAIR.optimised(*given)) == fast


def test_a_carried_cache_reads_every_token_once(tiny):
    (prompts,) = kv_carry_over.inputs(4, 0)
    lengths = [len(ids) for ids in prompts]
    assert all(longer[: len(ids)] == ids for ids, longer in zip(prompts, prompts[1:], strict=False))
    assert reads(tiny, lambda: kv_carry_over.reading_again(prompts)) == lengths
    assert sum(reads(tiny, lambda: kv_carry_over.carrying(prompts))) == lengths[-1]


def test_prompts_share_their_beginning_alone(tiny):
    (prompts,) = prefix_cache.inputs(3, 0)
    assert prompts.shape == (3, 272)
    assert (prompts[:, :256] == prompts[0, :256]).all()
    assert len({tuple(row[256:].tolist()) for row in prompts}) == 3


@pytest.mark.parametrize("way", [slot_overwriting.gathering, slot_overwriting.overwriting])
def test_what_is_held_is_what_was_never_evicted(tiny, way):
    keys, values, new_keys, new_values, evicted = slot_overwriting.inputs(9, 4)
    held = way(keys, values, new_keys, new_values, evicted)
    for head in range(len(keys)):
        lost = evicted[:, head, 0].tolist()
        left = sorted(set(range(9 + slot_overwriting.STEPS)) - set(lost))
        assert len(set(lost)) == len(lost) and held.positions[head].tolist() == left
        assert torch.equal(held.keys[head], torch.cat([keys[head], new_keys[head]])[left])
        assert torch.equal(held.values[head], torch.cat([values[head], new_values[head]])[left])


@pytest.mark.parametrize("way", [windowed_attention.eager, windowed_attention.windowed])
def test_attention_is_that_of_the_definition(tiny, way):
    (trace,) = windowed_attention.inputs(50, 3)
    queries, keys, values = (x[0].double() for x in (trace.queries, trace.keys, trace.values))
    keys, values = (x.repeat_interleave(trace.groups, 0) for x in (keys, values))
    visible = torch.ones(50, 50, dtype=torch.bool).tril()
    weights = (queries @ keys.mT * trace.scaling).masked_fill(~visible, -torch.inf).softmax(-1)
    found = way(trace)
    last = weights.unflatten(0, (-1, trace.groups)).mean(1)[:, -windowed_attention.WINDOW :]
    torch.testing.assert_close(found.last.double(), last, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.output[0].double(), (weights @ values).transpose(0, 1), atol=1e-5, rtol=0)


def test_heads_forget_apart_from_each_other(tiny):
    trace, budget = vectorised_replay.inputs(40, 0)
    expiry = vectorised_replay.head_by_head(trace, budget).flatten(0, 1)
    assert len({tuple(row.tolist()) for row in expiry}) > len(expiry) // 2


def test_a_record_of_nothing_has_its_layers(tiny):
    empty, one = recorded(0, [0, 2], seed=0), recorded(1, [0, 2], seed=0)
    assert (len(empty), len(one)) == (0, 1)
    assert empty.layers == one.layers == (0, 2) and empty.keys.shape == (2, 2, 0, 8)
    assert fm.replay(empty, fm.policies.H2O(), 4).shape == (2, 2, 0)


# Imports, each in a fresh process


@pytest.mark.parametrize("size", [0, 1, 3])
def test_rooms_have_the_same_names_whenever_they_are_imported(monkeypatch, size):
    monkeypatch.setattr(lazy_import, "ROOMS", ("intervals", "published"))
    (used,) = lazy_import.inputs(size, seed=1)
    assert len(used) == size
    found = lazy_import.lazily(used)
    assert found == lazy_import.all_up_front(used)
    assert set(found) == set(used)
    assert "intervals" not in used or found["intervals"]["wilson"] == "function"


def test_every_room_can_be_imported_up_front():
    used = ["intervals"]
    assert lazy_import.all_up_front(used) == lazy_import.lazily(used)


def test_only_what_is_used_is_imported(monkeypatch):
    told = 'used and names(used[0])\nprint(json.dumps({"torch": {"is": str("torch" in sys.modules)}}))'
    monkeypatch.setattr(lazy_import, "SCRIPT", lazy_import.SCRIPT.rpartition("print(")[0] + told)
    heavy = [lazy_import.lazily(used)["torch"]["is"] for used in ([], ["intervals"], ["trace"])]
    assert heavy == ["False", "False", "True"]


# With the real model


@pytest.mark.real
@pytest.mark.parametrize(
    ("module", "size"),
    [(shared_prefill, 2), (batched_forks, 3), (windowed_attention, 48), (kv_carry_over, 2), (vectorised_replay, 32)],
    ids=lambda value: value.PAIR.name if hasattr(value, "PAIR") else "",
)
def test_both_ways_give_the_same_with_the_real_model(lm, monkeypatch, module, size):
    use(lm, monkeypatch)
    check(module.PAIR, size, seed=7)
