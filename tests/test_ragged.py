"""Heads that hold unequally many entries, live and replayed: one masked pass, real bytes, nothing of another head."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_allocation import ada_by_hand
from test_live import ARCHES, CALLS, IDS, assert_same_logits, gemma, live
from test_slots import Lottery, lots

import fmlab as fm
from fmlab.bag import Bag
from fmlab.core import BudgetError
from fmlab.masked import masked_logits
from fmlab.policies import H2O, TOVA, Ada, KeyNorm, PerLayer, Pyramid, Random, SinkWindow, SnapKV, Uniform
from fmlab.ragged import Ragged
from fmlab.slots import Meter

ALLOCATIONS = [Ada(9), Pyramid(9, 3), PerLayer((12, 5, 9))]
POLICIES = [SinkWindow(2), H2O(), KeyNorm(), SnapKV(3, 3)]
SLOT = 8 * 2 * 4  # bytes of a key and a value of eight float32


@dataclass(frozen=True)
class Lopsided(fm.Allocation):
    """Twice as much for the last head as for the others."""

    budget: int

    def split(self, scores, layer, total):
        share = len(scores) * self.budget // (len(scores) + 1)
        return torch.tensor([share] * (len(scores) - 1) + [2 * share])


@dataclass(frozen=True)
class Alike(fm.Allocation):
    """The same for all, without saying so beforehand."""

    budget: int

    def split(self, scores, layer, total):
        return torch.full((len(scores),), self.budget)


# The memory alone


def by_hand(bag, calls, budget, floor, window):
    """Lists instead of slots: the positions held and the expiry of each head, after every call."""
    rows = [int(10 * layer + head) for layer, head in zip(bag.layer, bag.head, strict=True)]
    layers = [[row for row in range(len(bag)) if bag.layer[row] == layer] for layer in sorted(set(bag.layer.tolist()))]
    held, expiry, seen = [[] for _ in rows], [[] for _ in rows], 0
    most = budget if window is None else min(budget, max(1, window - 1))
    for new in calls:
        for mine, gone in zip(held, expiry, strict=True):
            mine += range(seen, seen + new)
            gone += [None] * new
        seen += new

        def worth(row, place, seen=seen):
            slid_out = window is not None and seen - 1 - place >= window - 1
            return (-1e9 if slid_out else float((rows[row] * 7919 + place * 104729) % 1009), place)

        for crowd in layers:
            if sum(len(held[row]) for row in crowd) <= most * len(crowd):
                continue
            shares = ada_by_hand([[worth(row, place)[0] for place in held[row]] for row in crowd], budget, floor)
            for row, share in zip(crowd, shares, strict=True):
                share = share if window is None else min(share, max(1, window - 1))
                while len(held[row]) > share:
                    loser = min(held[row], key=lambda place, row=row: worth(row, place))
                    held[row].remove(loser)
                    expiry[row][loser] = seen
        full = [[seen + 1 if e is None else e for e in gone] for gone in expiry]
        if window is not None:
            full = [[min(e, place + window) for place, e in enumerate(gone)] for gone in full]
        yield [sorted(mine) for mine in held], full


def run(slots, calls):
    """Yield the slots after every call; `Lottery` checks that columns and data stay with their entries."""
    for new in calls:
        places = torch.arange(slots.seen, slots.seen + new).float().expand(len(slots.bag), new)
        slots.stage(new, keys=torch.stack([places, places], -1), values=torch.stack([places, -places], -1))

        def show(rows, positions, new=new):
            return {
                "keys": lambda: slots.staged("keys", rows),
                "values": lambda: slots.staged("values", rows),
                "queries": lambda: torch.zeros(len(rows), new, 2),
                "new_keys": lambda: slots.staged_new("keys", rows),
            }

        slots.settle(slots.choose(Lottery(), slots.parts(show, scaling=1.0)))
        yield slots


CHUNKS = st.lists(st.sampled_from([1, 1, 1, 1, 1, 2, 3, 7, 20]), min_size=1, max_size=25)


@settings(max_examples=40, deadline=None)
@given(CHUNKS, st.integers(1, 9), st.sampled_from([0.0, 0.4]), st.sampled_from([None, 6, 12]))
def test_it_holds_what_lists_would_hold(calls, budget, floor, window):
    meter, bag = Meter(), Bag.of(1, [0, 1], 3, 1)
    slots = Ragged(bag, Ada(budget, floor), 2, meter, None if window is None else torch.full((6,), window))
    for now, (held, expiry) in zip(run(slots, calls), by_hand(bag, calls, budget, floor, window), strict=True):
        assert [sorted(p for p in row if p >= 0) for row in now.places.tolist()] == held
        assert now.expiry().tolist() == expiry
        assert now.held == max(map(len, held)) and now.seen == len(expiry[0]) and not now.interrupted
        assert now.nominal_nbytes == sum(map(len, held)) * 16
        assert meter.now == now.nbytes + now.overhead_nbytes <= meter.peak
        assert now.nbytes <= now.nominal_nbytes + 6 * 16 * 9  # a slot a head, and before the first eviction some more


def test_the_lottery_is_a_lottery():
    """Or the test above would compare equal lengths."""
    slots = Ragged(Bag.of(1, [0, 1], 3, 1), Ada(8), 2)
    lengths = [[row.held for row in now.rows] for now in run(slots, [30, 1])]
    assert lengths[0] == [7, 9, 8, 9, 7, 8] and sum(lengths[1]) == 48
    assert lots(torch.tensor([1]), torch.tensor([[2]])).item() == (7919 + 2 * 104729) % 1009


def test_heads_can_be_taken_twice():
    meter = Meter()
    slots = Ragged(Bag.of(2, [0], 2, 1), Ada(6), 1, meter)
    for _ in run(slots, [20, 1, 1]):
        pass
    places = slots.places.tolist()
    slots.take(torch.tensor([2, 3, 2, 3]))
    assert slots.places.tolist() == [places[n] for n in (2, 3, 2, 3)] and slots.bag.sequence.tolist() == [0, 0, 1, 1]
    assert meter.now == slots.nbytes + slots.overhead_nbytes
    before = slots.rows[2].places.tolist()
    slots.rows[0].data["keys"].zero_()
    slots.rows[0]._positions.zero_()
    assert slots.rows[2].data["keys"].abs().sum() > 0 and slots.rows[2].places.tolist() == before


def test_a_split_tells_a_bad_entry_from_none():
    told = []

    class Spy(Alike):
        def split(self, scores, layer, total):
            told.append((scores > -torch.inf).sum(-1).tolist())
            return super().split(scores, layer, total)

    class Scorns(KeyNorm):
        def score(self, view, stats):
            return torch.full(view.positions.shape, -torch.inf)

    trace = fm.record(fm.tiny(), IDS[0], layers=[1])
    expiry = fm.replay(trace, Scorns(), Spy(9), 12)
    assert told == [[12, 12]] + [[10, 10]] * 28 and int((expiry == 41).sum()) == 18


# Live


@pytest.mark.parametrize("allocation", [*ALLOCATIONS, Lopsided(9)], ids=repr)
@pytest.mark.parametrize("arch", ARCHES)
def test_live_is_one_masked_pass(arch, allocation):
    model = fm.tiny(arch).model
    for policy in POLICIES if arch == "llama" else POLICIES[2:]:
        logits, cache = live(model, policy, allocation, IDS)
        assert_same_logits(logits, masked_logits(model, IDS, cache.expiry))
        held = (cache.expiry == 41).sum(-1)  # (batch, layers, heads)
        budgets = torch.tensor([allocation.at(layer, 3) for layer in range(3)]) * held.shape[-1]
        assert (held.sum(-1) <= budgets).all() and (held.sum(-1) >= budgets - 2).all()
        unequal = (held != held[..., :1]).any()
        assert bool(unequal) == (
            isinstance(allocation, Lopsided) or (isinstance(allocation, Ada) and policy != POLICIES[0])
        )


@pytest.mark.parametrize("allocation", [Ada(8), Ada(20), Pyramid(12, 2)], ids=repr)
def test_a_model_with_windows_of_its_own_keeps_them(allocation):
    for model, window in ((fm.tiny("mistral", sliding_window=16).model, 16), (gemma(2), None)):
        for policy in (H2O(), KeyNorm()):
            logits, cache = live(model, policy, allocation, IDS)
            assert_same_logits(logits, masked_logits(model, IDS, cache.expiry))
            if window is not None:
                assert (cache.expiry <= torch.arange(40) + window).all()
                assert all(layer.slots.held <= window for layer in cache.layers)


@torch.no_grad()
@pytest.mark.parametrize("policy", [*POLICIES, TOVA(), Random()], ids=repr)
@pytest.mark.parametrize(("arch", "budget", "rest"), [("llama", 7, {}), ("mistral", 14, {"sliding_window": 12})])
def test_equal_shares_are_the_plain_number(arch, budget, rest, policy):
    lm = fm.tiny(arch, **rest)
    expected, plain = live(lm.model, policy, budget, IDS)
    trace = fm.record(lm, IDS[0], dtype=torch.float32)
    replayed = fm.replay(trace, policy, budget, (9, 4))
    for allocation in (Uniform(budget), Alike(budget)):
        logits, cache = live(lm.model, policy, allocation, IDS)
        assert torch.equal(cache.expiry, plain.expiry)
        assert_same_logits(logits, expected)
        assert isinstance(cache.layers[0].slots, Ragged) == isinstance(allocation, Alike)
        assert torch.equal(fm.replay(trace, policy, allocation, (9, 4)), replayed)


@torch.no_grad()
@pytest.mark.parametrize("allocation", [*ALLOCATIONS, Lopsided(9)], ids=repr)
@pytest.mark.parametrize("arch", ["llama", "gpt_neox"])
def test_a_replay_is_the_live_run_at_the_first_layer(arch, allocation):
    lm = fm.tiny(arch)
    trace = fm.record(lm, IDS[0], dtype=torch.float32)
    for policy in (H2O(), KeyNorm()):
        cache = live(lm.model, policy, allocation, IDS[:1])[1]
        replayed = fm.replay(trace, policy, allocation, prefill=tuple(CALLS))
        assert torch.equal(replayed[0], cache.expiry[0])
        part = fm.replay(fm.record(lm, IDS[0], layers=[2], dtype=torch.float32), policy, allocation, tuple(CALLS))
        assert torch.equal(part[0], replayed[2])  # a trace of one layer knows how many there are


def test_a_replay_of_an_allocation_can_be_watched():
    trace = fm.record(fm.tiny(), IDS[0], dtype=torch.float32)
    told = {}
    for budget in (9, Alike(9), Ada(9)):
        calls = told[repr(budget)] = []

        def watch(view, stats, calls=calls):  # sorted now: the slots are overwritten later
            calls.append((view.positions.sort().values, stats["norm"].sort().values))

        fm.replay(trace, KeyNorm(), budget, 20, watch=watch)
    assert len(told["9"]) == len(told[repr(Alike(9))]) == 21 and len(told[repr(Ada(9))]) > 21
    assert all(torch.equal(*pair) for one, other in zip(told["9"], told[repr(Alike(9))], strict=True)
               for pair in zip(one, other, strict=True))  # fmt: skip


def test_a_trace_keeps_how_deep_its_model_is(tmp_path):
    trace = fm.record(fm.tiny(), IDS[0], layers=[1])
    assert fm.Trace.load(trace.save(tmp_path / "t.safetensors")).depth == 3
    older = fm.Trace(trace.ids, trace.tokens, (1,), "old", trace.queries, trace.keys, trace.values, trace.scaling)
    with pytest.raises(ValueError, match=r"does not say how many layers.*Ada\(budget=5, floor=0.2\).*record it again"):
        fm.replay(older, KeyNorm(), Ada(5))
    assert torch.equal(fm.replay(older, KeyNorm(), 5), fm.replay(trace, KeyNorm(), 5))


@torch.no_grad()
@pytest.mark.parametrize("allocation", [*ALLOCATIONS, Lopsided(9)], ids=repr)
def test_bytes_and_positions_at_every_step(allocation):
    model = fm.tiny().model
    peak = 0
    with fm.finite(model, KeyNorm(), allocation) as cache:
        assert (cache.nbytes, cache.nominal_nbytes, cache.peak_nbytes) == (0, 0, 0)
        for part in IDS.split(CALLS, 1):
            model(input_ids=part, past_key_values=cache)
            held = cache.expiry == cache.seen + 1  # (batch, layers, heads, seen)
            for layer in range(3):
                assert int(held[:, layer].sum((1, 2)).max()) <= 2 * allocation.at(layer, 3)
                places = cache.positions(layer)
                for where, there in zip(places.flatten(0, 1), held[:, layer].flatten(0, 1), strict=True):
                    assert sorted(p for p in where.tolist() if p >= 0) == there.nonzero().flatten().tolist()
            stores = [row for layer in cache.layers for row in getattr(layer.slots, "rows", [layer.slots])]
            columns = [column for store in stores for column in store.data.values()]
            assert cache.nbytes == sum(c.untyped_storage().nbytes() for c in columns)
            assert cache.nominal_nbytes == int(held.sum()) * SLOT
            assert cache.nominal_nbytes <= cache.nbytes <= cache.nominal_nbytes + 12 * SLOT  # one free slot a head
            for store in stores:  # never more than a slot to spare, also for a head that grows or shrinks
                assert store.places.shape[1] <= store.held + 1
            peak = max(peak, cache.nbytes + cache.overhead_nbytes)
            assert cache.peak_nbytes >= peak
    assert cache.nominal_nbytes == 2 * 2 * SLOT * sum(allocation.at(layer, 3) for layer in range(3))
    assert repr(allocation) in repr(cache)


def test_the_plain_number_tells_its_nominal_bytes_too():
    cache = live(fm.tiny().model, KeyNorm(), 9, IDS)[1]
    assert (cache.nominal_nbytes, cache.nbytes) == (12 * 9 * SLOT, 12 * 10 * SLOT)


@pytest.mark.parametrize("arch", ["llama", "gpt_neox"])
@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=repr)
def test_generation_is_the_argmax_of_the_masked_pass(arch, allocation):
    model = fm.tiny(arch).model
    with fm.finite(model, H2O(), allocation) as cache:
        said = model.generate(IDS[:1, :30], past_key_values=cache, max_new_tokens=12, do_sample=False)
    best = masked_logits(model, said[:, :-1], cache.expiry).argmax(-1)
    assert torch.equal(best[:, 29:], said[:, 30:]) and cache.seen == 41


@pytest.mark.parametrize("inference", [False, True])
def test_beams_move_what_a_sequence_remembers(inference):
    model = fm.tiny().model
    settings = dict(max_new_tokens=10, do_sample=False, num_beams=4, return_dict_in_generate=True, output_scores=True)
    with torch.inference_mode(inference), fm.finite(model, H2O(), Ada(14)) as cache:
        found = model.generate(IDS[:1], past_key_values=cache, **settings)
    tokens = found.sequences
    logits = live(model, H2O(), Ada(14), tokens[:, :-1], [40] + [1] * 9)[0]
    chosen = logits.log_softmax(-1)[0, 39:].gather(1, tokens[0, 40:, None]).sum()
    assert float(found.sequences_scores[0]) == pytest.approx(float(chosen) / 10, abs=1e-4)


def test_a_budget_above_the_length_is_the_full_cache():
    model = fm.tiny().model
    logits, cache = live(model, H2O(), Ada(1_000), IDS)
    assert (cache.expiry == 41).all()
    assert_same_logits(logits, model(input_ids=IDS).logits)
    with fm.finite(model, H2O(), Pyramid(500, 3)) as cache:
        ours = model.generate(IDS, past_key_values=cache, max_new_tokens=8, do_sample=False)
    assert torch.equal(ours, model.generate(IDS, max_new_tokens=8, do_sample=False))


@torch.no_grad()
def test_a_copy_is_independent_and_half_precision_is_kept():
    model = fm.tiny().model.to(torch.bfloat16)
    with fm.finite(model, H2O(), Ada(8)) as cache:
        model(input_ids=IDS[:, :20], past_key_values=cache)
        twin, before = cache.copy(), (cache.expiry.tolist(), cache.positions(1).tolist(), cache.nbytes)
        first = [model(input_ids=part, past_key_values=twin).logits for part in IDS[:, 20:].split([4] + [1] * 16, 1)]
        assert (cache.expiry.tolist(), cache.positions(1).tolist(), cache.nbytes) == before
        second = [model(input_ids=part, past_key_values=cache).logits for part in IDS[:, 20:].split([4] + [1] * 16, 1)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert cache.layers[0].slots.rows[0].data["keys"].dtype == torch.bfloat16


def test_gradients_reach_the_model_and_not_the_cache():
    model = fm.tiny().model.requires_grad_(True)
    with fm.finite(model, KeyNorm(), Ada(8)) as cache:
        for part in IDS.split([30, 1, 9], 1):
            logits = model(input_ids=part, past_key_values=cache).logits
    logits.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    rows = [row for layer in cache.layers for row in layer.slots.rows]
    assert not any(tensor.requires_grad for row in rows for tensor in row.data.values())


# What goes wrong


def test_an_interrupted_run_can_be_read_and_not_continued():
    model = fm.tiny().model

    class Interrupts(H2O):
        def score(self, view, stats):
            if int(view.layer[0]) == 1 and int(view.positions.max()) >= 20:
                raise KeyboardInterrupt
            return super().score(view, stats)

    with torch.no_grad(), fm.finite(model, Interrupts(), Ada(8)) as cache:
        for part in IDS[:1, :20].split([15, 1, 1, 1, 1, 1], 1):
            model(input_ids=part, past_key_values=cache)
        whole = cache.expiry
        with pytest.raises(KeyboardInterrupt):
            model(input_ids=IDS[:1, 20:21], past_key_values=cache)
        assert cache.seen == 20 and torch.equal(cache.expiry, whole)
        with pytest.raises(RuntimeError, match="interrupted in the middle of a call after 20 tokens"):
            model(input_ids=IDS[:1, 20:21], past_key_values=cache)


def test_more_pinned_than_a_head_may_hold():
    with pytest.raises(BudgetError, match=r"SnapKV\(window=8, kernel=3\): budget 5 < 8 pinned entries"):
        live(fm.tiny().model, SnapKV(8, 3), PerLayer((12, 5, 9)), IDS)
    with pytest.raises(
        BudgetError, match=r"SnapKV\(window=8.*: budget 5 < 6 pinned entries.*what PerLayer.* gives layer 1"
    ):
        fm.replay(fm.record(fm.tiny(), IDS[0]), SnapKV(8, 3), PerLayer((12, 5, 9)))
    with pytest.raises(BudgetError, match=r"under Ada\(budget=3, floor=0.2\) in layer 0: budget 3 < 4 pinned"):
        live(fm.tiny().model, SnapKV(4, 3), Ada(3), IDS)


def test_a_mean_over_half_a_layer_is_refused():
    with pytest.raises(ValueError, match="only some heads of a layer stand in this view.*one share for all heads"):
        live(fm.tiny().model, TOVA(), Lopsided(9), IDS)
    ada, plain = (live(fm.tiny().model, TOVA(), budget, IDS)[1] for budget in (Ada(9), 9))
    assert torch.equal(ada.expiry, plain.expiry)  # its heads want the same, so they get the same


def test_nan_and_changing_columns_are_refused():
    class Nothing(KeyNorm):
        def score(self, view, stats):
            return super().score(view, stats).masked_fill(view.positions == 7, torch.nan)

    with pytest.raises(ValueError, match=r"in layer 0: score of position 7 is NaN"):
        live(fm.tiny().model, Nothing(), Ada(9), IDS)

    class Moody(KeyNorm):
        def observe(self, view, stats):
            return super().observe(view, stats) | ({"n": view.age} if view.positions.shape[1] > 13 else {})

    with pytest.raises(ValueError, match="remembers other columns for some heads than for others"):
        live(fm.tiny("gpt_neox").model, Moody(), Ada(9), IDS)


def test_nll_knows_when_an_allocation_begins_to_evict():
    lm = fm.tiny()
    run = fm.tasks.nll(lm, IDS[0], H2O(), PerLayer((30, 14, 20)), prefill=10)
    assert run.evicting_from == fm.tasks.nll(lm, IDS[0], H2O(), 14, prefill=10).evicting_from == 16
    assert len(run.delta(fm.tasks.nll(lm, IDS[0], prefill=10))) == 40 - 16


@dataclass(frozen=True)
class Needy(KeyNorm):
    """Asks for all that a live model can prepare."""

    needs = frozenset({"pre_rope", "output_projection"})

    def observe(self, view, stats):
        arrived = view.new_output_norms + view.new_values.norm(dim=-1)
        return {"n": view.fill_new(stats["n"], arrived) if "n" in stats else arrived}

    def score(self, view, stats):
        towards = view.pre_rope_queries.unflatten(0, (len(view.layer), -1)).mean((1, 2))
        return stats["n"] - view.pre_rope_keys.norm(dim=-1) + (view.pre_rope_keys @ towards[..., None])[..., 0]


@dataclass(frozen=True)
class Foreseeing(KeyNorm):
    """Asks for all that only a record can prepare."""

    needs = frozenset({"future", "second_pass"})

    def observe(self, view, stats):
        return {"n": view.fill_new(stats["n"], view.new_repeated) if "n" in stats else view.new_repeated}

    def score(self, view, stats):
        return view.future + stats["n"]


@torch.no_grad()
def test_what_a_policy_needs_is_that_of_its_own_heads():
    lm = fm.tiny("gpt_neox")
    for policy in (Needy(), Foreseeing()):
        trace = fm.record(lm, IDS[0], dtype=torch.float32, second_pass=True)
        assert torch.equal(fm.replay(trace, policy, Alike(9), (17, 6)), fm.replay(trace, policy, 9, (17, 6)))
    logits, cache = live(lm.model, Needy(), Alike(9), IDS)
    assert torch.equal(cache.expiry, live(lm.model, Needy(), 9, IDS)[1].expiry)
    for allocation in (Ada(9), Lopsided(9)):
        logits, cache = live(lm.model, Needy(), allocation, IDS)
        assert_same_logits(logits, masked_logits(lm.model, IDS, cache.expiry))
        assert len(set((cache.expiry[0, 0] == 41).sum(-1).tolist())) > 1
        alone = live(lm.model, Needy(), allocation, IDS[1:])[1]
        assert torch.equal(cache.expiry[1], alone.expiry)  # nothing of the other sequence
