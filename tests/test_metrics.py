import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fmlab as fm
from fmlab import view
from fmlab.core import mask
from fmlab.metrics import Received, footprint, mass_recall, present, seen_mass, thirds
from fmlab.policies import H2O, Random, SinkWindow


def drawn(layers=2, kv_heads=2, groups=3, tokens=14, seed=0, **rest):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda heads: torch.randn(layers, heads, tokens, 4, generator=generator)  # noqa: E731
    queries, keys, values = draw(kv_heads * groups), draw(kv_heads), draw(kv_heads)
    ids, pieces = torch.arange(tokens), tuple("x" * tokens)
    return fm.Trace(ids, pieces, tuple(range(layers)), "drawn", queries, keys, values, 0.9, **rest)


def recall_by_hand(trace, expiry):
    """Loops in float64: for each query the softmax over all it may see, and how much lies on what it still sees."""
    layers, kv_heads, tokens = expiry.shape
    out = torch.zeros(layers, kv_heads, tokens, dtype=torch.float64)
    for layer in range(layers):
        window = (trace.windows[layer] if trace.windows else None) or tokens
        for head in range(kv_heads):
            for i in range(tokens):
                visible = [j for j in range(tokens) if i - window < j <= i]
                for g in range(trace.groups):
                    query = trace.queries[layer, head * trace.groups + g, i].double()
                    logits = trace.keys[layer, head, visible].double() @ query * trace.scaling
                    if trace.softcap is not None:
                        logits = trace.softcap * (logits / trace.softcap).tanh()
                    shares = dict(zip(visible, logits.softmax(0).tolist(), strict=True))
                    kept = [j for j in visible if i < expiry[layer, head, j]]
                    out[layer, head, i] += sum(shares[j] for j in kept) / trace.groups
    return out


KINDS = [{}, {"softcap": 1.5}, {"windows": (5, None)}, {"windows": (3, 6), "softcap": 2.0}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("workspace", [1 << 24, 200])
@pytest.mark.parametrize("policy", [H2O(), Random(), SinkWindow(1)], ids=repr)
def test_mass_recall_is_the_mean_of_what_every_query_still_sees(monkeypatch, kind, workspace, policy):
    monkeypatch.setattr(view, "WORKSPACE", workspace)
    trace = drawn(**kind)
    for budget, prefill in ((3, 1), (5, 8), (99, 1)):
        expiry = fm.replay(trace, policy, budget, prefill)
        expected = recall_by_hand(trace, expiry)
        torch.testing.assert_close(seen_mass(trace, expiry), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(mass_recall(trace, expiry), expected.mean(-1), rtol=0, atol=1e-6)
        for limit, fast in ((1 << 20, True), (0, False)):
            received = Received(trace, limit)
            assert received.fast == fast
            torch.testing.assert_close(received.mass_recall(expiry), expected.mean(-1), rtol=0, atol=1e-6)
        assert budget < 99 or (mass_recall(trace, expiry) - 1).abs().max() < 1e-6


def test_the_limit_of_received_is_in_bytes():
    trace = drawn()
    exact = 4 * 15 * 14 * 4
    assert Received(trace, exact).fast and not Received(trace, exact - 1).fast


def test_seen_mass_is_in_double_of_shape_layer_head_query():
    trace = drawn()
    seen = seen_mass(trace, torch.full((2, 2, 14), 15))
    assert seen.shape == (2, 2, 14) and seen.dtype == torch.float64 and (seen - 1).abs().max() < 1e-6


@pytest.mark.parametrize("measure", [seen_mass, mass_recall, lambda t, e: Received(t).mass_recall(e)])
def test_an_expiry_of_another_run_is_refused(measure):
    trace, good = drawn(), torch.full((2, 2, 14), 15)
    with pytest.raises(
        ValueError, match=r"shape \(2, 1, 14\) for a trace of \(layers, kv_heads, tokens\) = \(2, 2, 14\)"
    ):
        measure(trace, good[:, :1])
    with pytest.raises(ValueError, match=r"shape \(2, 2, 13\)"):
        measure(trace, good[..., 1:])
    good[1, 0, 9] = 9
    with pytest.raises(ValueError, match="expires before its own query; every query sees itself"):
        measure(trace, good)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 9))
def test_footprint_is_the_share_of_the_mask(data, tokens):
    rows = [[data.draw(st.integers(j + 1, tokens + 1)) for j in range(tokens)] for _ in range(3)]
    expiry = torch.tensor(rows).view(1, 3, tokens)
    seen = mask(expiry).sum((-1, -2))
    assert footprint(expiry).tolist() == (seen.double() / (tokens * (tokens + 1) / 2)).tolist()


def test_footprint_of_a_full_and_of_a_smallest_cache():
    assert footprint(torch.full((2, 3, 8), 9)).eq(1).all()
    assert footprint(torch.arange(1, 9)).item() == pytest.approx(8 / 36)


def test_present_counts_what_is_held_after_a_query():
    expiry = torch.tensor([[1, 5, 4, 6, 6], [6, 6, 6, 6, 6]])  # after query 0, 4, 3; two stay to the end
    assert present(expiry, 0, 5).tolist() == [2 / 5, 1]
    assert present(expiry, 0, 3).tolist() == [0, 1]
    assert present(expiry, 0, 3, after=3).tolist() == [2 / 3, 1]
    assert present(expiry, 1, 3, after=4).tolist() == [1 / 2, 1]
    assert present(expiry, 3, 4, after=4).tolist() == [1, 1]


@pytest.mark.parametrize("span", [(2, 2), (3, 2), (-1, 2), (0, 6)])
def test_a_span_that_is_none(span):
    with pytest.raises(
        ValueError, match=rf"entries {span[0]} to {span[1]} of a run of 5 tokens; give 0 <= start < stop"
    ):
        present(torch.full((5,), 6), *span)


@pytest.mark.parametrize("after", [1, 6])
def test_a_moment_before_the_entries_or_after_the_run(after):
    with pytest.raises(ValueError, match=f"after={after} queries; the entries have come after 2, and the run has 5"):
        present(torch.full((5,), 6), 0, 2, after)


def test_thirds_cover_every_token_once():
    for tokens in (3, 4, 5, 30, 31):
        expiry = torch.full((2, tokens), tokens + 1)
        expiry[0, : tokens // 2] = tokens
        sizes = [tokens // 3, 2 * tokens // 3 - tokens // 3, tokens - 2 * tokens // 3]
        early, middle, late = thirds(expiry)
        assert (early[1], middle[1], late[1]) == (1, 1, 1) and (early[0], late[0]) == (0, 1)
        held = sum(share[0] * size for share, size in zip((early, middle, late), sizes, strict=True))
        assert float(held) == pytest.approx(tokens - tokens // 2)
    with pytest.raises(ValueError, match="a run of 2 tokens has no thirds; give 3 or more"):
        thirds(torch.full((2,), 3))


def test_a_window_of_the_last_third_is_present_there_alone():
    trace = drawn(tokens=30)
    early, middle, late = thirds(fm.replay(trace, fm.policies.SlidingWindow(), 10))
    assert early.eq(0).all() and middle.eq(0).all() and late.eq(1).all()
