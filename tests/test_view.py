import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmlab import view as view_module
from fmlab.bag import Bag
from fmlab.view import View, ordinary

DIMENSION = 8


def build(heads=2, groups=3, held=4, new=3, order=None, window=None, softcap=None, scaling=0.5, **rest):
    """A view of one layer with random contents; `order` moves the entries to other slots."""
    generator = torch.Generator().manual_seed(7)
    n = held + new
    draw = lambda *shape: torch.randn(*shape, DIMENSION, generator=generator)  # noqa: E731
    keys, values, queries = draw(heads, n), draw(heads, n), draw(heads * groups, new)
    order = torch.arange(n) if order is None else torch.tensor(order)
    positions = (2 * torch.arange(held)).tolist() + list(range(20, 20 + new))
    return View(
        rest.pop("bag", Bag.of(1, [0], heads, groups)),
        torch.tensor(positions)[order].expand(heads, n).clone(),
        new,
        torch.full((heads,), 5),
        scaling=scaling,
        softcap=softcap,
        window=None if window is None else torch.full((heads,), window),
        keys=lambda: keys[:, order],
        values=lambda: values[:, order],
        queries=lambda: queries,
        **rest,
    )


def weights_by_hand(view, last):
    """float64, one query and one entry at a time: (heads, groups, last, n)."""
    heads, n = view.positions.shape
    groups, newest = len(view.queries) // heads, int(view.positions.max())
    out = torch.zeros(heads, groups, last, n, dtype=torch.float64)
    for h in range(heads):
        for g in range(groups):
            for row in range(last):
                at, query = newest - last + 1 + row, view.queries[h * groups + g, view.new - last + row].double()
                for j in range(n):
                    logit = float(query @ view.keys[h, j].double()) * view.scaling
                    if view.softcap is not None:
                        logit = view.softcap * float(torch.tensor(logit / view.softcap, dtype=torch.float64).tanh())
                    place = int(view.positions[h, j])
                    hidden = place > at or (view.window is not None and place <= at - int(view.window[h]))
                    out[h, g, row, j] = -torch.inf if hidden else logit
    return out.softmax(-1)


@pytest.mark.parametrize("order", [None, [3, 6, 0, 5, 2, 4, 1]])
@pytest.mark.parametrize("rest", [{}, {"window": 17}, {"softcap": 0.5}, {"window": 15, "softcap": 0.7}])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_attention_is_causal_softmaxed_and_averaged_over_the_query_heads(order, rest, last):
    view = build(order=order, **rest)
    expected = weights_by_hand(view, last)
    torch.testing.assert_close(view.weights(last).double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(view.attention(last).double(), expected.mean(1), rtol=0, atol=1e-6)
    assert view.attention(last).shape == (2, last, 7)


@pytest.mark.parametrize("last", [0, -1, 4])
def test_attention_of_queries_that_are_not_there(last):
    with pytest.raises(ValueError, match=rf"attention\(last={last}\) of a call with 3 queries; ask for 1 to 3"):
        build().attention(last=last)


@pytest.mark.parametrize("workspace", [1 << 24, 50, 1])
@pytest.mark.parametrize("new", [1, 3])
def test_received_is_the_sum_over_all_queries_in_any_workspace(monkeypatch, workspace, new):
    monkeypatch.setattr(view_module, "WORKSPACE", workspace)
    view = build(new=new)
    torch.testing.assert_close(view.received(), view.attention(last=new).sum(1))
    blocks = view.blocks()
    assert (
        blocks[0][0] == 0
        and blocks[-1][1] == new
        and all(a[1] == b[0] for a, b in zip(blocks[:-1], blocks[1:], strict=True))
    )
    assert (len(blocks) == 1) == (workspace == 1 << 24 or new == 1)


def test_what_is_not_asked_for_is_never_computed():
    made = []

    def make(name):
        return lambda: made.append(name) or torch.zeros(4, 6, DIMENSION)

    bag, positions = Bag.of(1, [0, 1], 2, 1), torch.arange(6).expand(4, 6)
    makers = {name: make(name) for name in ("keys", "values", "queries")}
    lazy = View(bag, positions, 6, torch.full((4,), 3), scaling=1.0, **makers)
    assert (lazy.new, lazy.age[0].tolist(), lazy.head.tolist()) == (6, [5, 4, 3, 2, 1, 0], [0, 1, 0, 1])
    assert (lazy.query_aware, lazy.window, lazy.softcap, lazy.scaling) == (False, None, None, 1.0)
    assert made == []
    assert lazy.values is lazy.values and made == ["values"]
    assert not lazy.asked_for_weights(1)
    lazy.attention(1)
    assert lazy.asked_for_weights(1) and not lazy.asked_for_weights(2)
    assert lazy.weights(1) is lazy.weights(1) and sorted(made) == ["keys", "queries", "values"]


def test_rows_stand_in_the_order_sequence_layer_head():
    bag = Bag.of(2, [5, 9], 2, 3)
    rows = list(zip(bag.sequence.tolist(), bag.layer.tolist(), bag.head.tolist(), strict=True))
    assert rows == [(s, layer, h) for s in (0, 1) for layer in (5, 9) for h in (0, 1)]
    assert len(bag) == 8 and bag.leader.tolist() == [0, 0, 2, 2, 4, 4, 6, 6]


def of_layers(layers, heads, positions):
    bag = Bag.of(1, list(range(layers)), heads, 1)
    zeros = lambda: torch.zeros(1)  # noqa: E731
    budget = torch.full((len(bag),), 4)
    return View(bag, positions, 1, budget, scaling=1.0, keys=zeros, values=zeros, queries=zeros)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("layers", "heads", "n"), [(30, 3, 5), (28, 8, 5), (7, 5, 5), (12, 12, 33), (1, 1, 1)])
def test_the_heads_of_a_layer_get_the_same_mean_to_the_last_bit(shuffled, layers, heads, n):
    """Or else a near tie would let them keep different tokens, and no further mean over them would have a meaning."""
    generator = torch.Generator().manual_seed(0)
    places = [torch.randperm(n, generator=generator) if shuffled else torch.arange(n) for _ in range(layers * heads)]
    view, scores = of_layers(layers, heads, torch.stack(places)), torch.rand(layers * heads, n, generator=generator)
    means = view.mean_over_layer(scores)
    by_place = torch.empty_like(means).scatter_(1, view.positions, means).view(layers, heads, n)
    assert torch.equal(by_place, by_place[:, :1].expand_as(by_place))
    expected = torch.empty_like(scores).scatter_(1, view.positions, scores).view(layers, heads, n).double().mean(1)
    torch.testing.assert_close(by_place[:, 0].double(), expected, rtol=1e-6, atol=1e-7)


def test_no_mean_over_heads_that_hold_different_entries():
    places = torch.tensor([[0, 1, 2], [0, 1, 3]])
    with pytest.raises(ValueError, match="heads of one layer hold different positions"):
        of_layers(1, 2, places).mean_over_layer(torch.zeros(2, 3))
    apart = of_layers(2, 1, places).mean_over_layer(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    assert apart.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_age_counts_from_the_newest_token_of_the_run():
    assert build(held=2, new=1).age.tolist() == [[20, 18, 0]] * 2
    assert build(held=2, new=1, newest=25).age.tolist() == [[25, 23, 5]] * 2


def test_tensors_of_inference_mode_are_made_ordinary_once():
    with torch.inference_mode():
        tensor = torch.ones(3)
        copy, kept = ordinary(tensor), build().age
    assert not copy.is_inference() and copy.tolist() == [1, 1, 1]
    assert ordinary(copy) is copy
    assert not kept.is_inference()


@pytest.mark.parametrize("new", [1, 3])
def test_the_new_keys_stand_in_order_of_position_wherever_their_slots_are(new):
    places = torch.tensor([[9, 2, 7, 8, 0], [1, 8, 9, 7, 4]])
    keys = places[..., None] * torch.tensor([1.0, -1.0])
    bag, none = Bag.of(1, [0], 2, 1), lambda: torch.zeros(1)
    view = View(bag, places, new, torch.full((2,), 5), scaling=1.0, keys=lambda: keys, values=none, queries=none)
    assert view.new_keys[..., 0].tolist() == [[7, 8, 9][-new:]] * 2 and view.asked == frozenset()
    filled = view.fill_new(torch.full((2, 5), -1.0), -view.new_keys[..., 1])
    assert filled.tolist() == [[p if p > 9 - new else -1 for p in row] for row in places.tolist()]


def test_what_was_asked_for_is_remembered():
    view = build(held=2, new=1)
    assert view.asked == frozenset()
    view.attention(1)
    assert view.asked == {"attention"}
    _ = view.keys, view.values, view.age
    assert view.asked == {"attention", "keys", "values"}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_rank_counts_the_older_entries(data):
    heads, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    most = data.draw(st.sampled_from([n, 4 * n, 40 * n]))  # close together or far apart
    rows = [data.draw(st.lists(st.integers(0, most - 1), min_size=n, max_size=n, unique=True)) for _ in range(heads)]
    nothing = dict.fromkeys(("keys", "values", "queries"), torch.Tensor)
    shown = View(Bag.of(1, [0], heads, 1), torch.tensor(rows), 1, torch.full((heads,), n), scaling=1.0, **nothing)
    assert shown.rank.tolist() == [[sum(other < place for other in row) for place in row] for row in rows]
