"""Every kernel gives what SDPA under the choice's mask gives, values and gradients; none stands in for another."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sparsity_choice import sizes, some_choice
from torch.nn.functional import scaled_dot_product_attention

import fmlab as fm
from fmlab.sparsity import (
    BigBird,
    BlockChoice,
    Dilated,
    Grid,
    LocalGlobal,
    SlidingBlocks,
    Streaming,
    Strided,
    dispatch,
    flex,
    pattern,
)


def tensors(n, m, heads=6, kv_heads=2, batch=2, d=8, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, n, d), (batch, kv_heads, m, d), (batch, kv_heads, m, d)]
    return [torch.randn(shape, generator=draw, dtype=dtype) for shape in shapes]


def reference(q, k, v, choice, scale=None):
    """SDPA in float64 under the mask, keys repeated for each query head."""
    k, v = (x.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return scaled_dot_product_attention(q.double(), k, v, attn_mask=choice.mask(), scale=scale)


def agrees(kernel, q, k, v, choice, scale=None):
    given = [x.clone() for x in (q, k, v)]
    out = fm.sparsity.attention(q, k, v, choice, kernel, scale)
    assert out.dtype == q.dtype and out.shape == q.shape
    assert all(torch.equal(a, b) for a, b in zip(given, (q, k, v), strict=True))
    torch.testing.assert_close(out.double(), reference(q, k, v, choice, scale), atol=1e-5, rtol=0)


SHAPES = [  # queries, keys, block, heads, KV heads
    (1, 1, 4, 2, 1),
    (33, 33, 4, 6, 2),
    (40, 40, 8, 4, 4),
    (40, 75, 8, 4, 2),
    (9, 17, 4, 2, 2),
    (1, 50, 4, 3, 1),
    (63, 130, 8, 2, 2),
]
PATTERNS = [
    SlidingBlocks(1),
    SlidingBlocks(9),
    SlidingBlocks(999),
    Streaming(5, 20),
    LocalGlobal(9, (0, 11, 12, 30)),
    BigBird(1, 1, 2),
    Strided(16),
    Dilated(4, 16),
]


@pytest.mark.parametrize("kernel", ["gather", "dense"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_reference_on_every_pattern(kernel, shape):
    n, m, block, heads, kv_heads = shape
    q, k, v = tensors(n, m, heads, kv_heads)
    for some in PATTERNS:
        agrees(kernel, q, k, v, some.blocks(q, k, block))


@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.integers(0, 999), st.booleans())
def test_gather_equals_the_reference_on_any_choice(size, share, seed, alike):
    choice = some_choice(*size, share, heads=6, seed=seed)
    if alike:
        choice = BlockChoice(choice.blocks[:, :1].expand(-1, 6, -1, -1), *size)
    agrees("gather", *tensors(*size[:2], seed=seed), choice, scale=0.3)


def test_gather_takes_views_doubles_and_choices_of_one_block():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors(30, 30, dtype=torch.float64))
    choice = some_choice(30, 30, 4, heads=6)
    out = fm.sparsity.attention(q, k, v, choice, "gather")
    torch.testing.assert_close(out, reference(q, k, v, choice), atol=1e-12, rtol=0)
    agrees("gather", *tensors(5, 5), BlockChoice(torch.ones(2, 6, 1, 1, dtype=torch.bool), 5, 5, 64))


def test_gather_in_half_precision_is_as_near_as_half_precision_is():
    q, k, v = (x.bfloat16() for x in tensors(60, 60))
    choice = some_choice(60, 60, 4, heads=6)
    out = fm.sparsity.attention(q, k, v, choice, "gather")
    torch.testing.assert_close(out.double(), reference(q, k, v, choice), atol=0.03, rtol=0)


def test_gather_reads_nothing_that_was_not_chosen():
    q, k, v = tensors(64, 64, heads=2, kv_heads=2, batch=1)
    choice = Streaming(4, 9).blocks(q, k, 4)
    out = fm.sparsity.attention(q[:, :, 32:], k, v, Streaming(4, 9).blocks(q[:, :, 32:], k, 4), "gather")
    k[:, :, 4:20] = v[:, :, 4:20] = torch.nan  # before the windows of the last 32 queries, after the sinks
    again = fm.sparsity.attention(q[:, :, 32:], k, v, Streaming(4, 9).blocks(q[:, :, 32:], k, 4), "gather")
    assert torch.equal(out, again) and choice.density < 0.5


def gradients(run, q, k, v):
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    up = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=q.dtype)
    return torch.autograd.grad((run(q, k, v) * up).sum(), (q, k, v))


def test_gather_has_the_gradient_of_the_reference():
    q, k, v = tensors(30, 41, dtype=torch.float64)
    choice = some_choice(30, 41, 8, heads=6)
    ours = gradients(lambda *x: fm.sparsity.attention(*x, choice, "gather", 0.3), q, k, v)
    theirs = gradients(lambda *x: reference(*x, choice, 0.3), q, k, v)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


@pytest.fixture
def compiled():
    try:
        flex.compiler()
    except fm.sparsity.NoCompiler as error:
        pytest.skip(str(error))


def test_flex_equals_the_reference_with_its_gradient(compiled):
    n, m, block = 70, 131, 16  # ragged, queries that begin within a block, three query heads a KV head: one compilation
    q, k, v = tensors(n, m, batch=1)
    choices = [some_choice(n, m, block, share, batch=1, heads=6) for share in (0.0, 0.3, 1.0)]
    choices += [some.blocks(q, k, block) for some in (SlidingBlocks(1), Streaming(3, 30))]
    for choice in choices:
        agrees("flex", q, k, v, choice)
    for choice in choices[1:3]:
        ours = gradients(lambda *x, c=choice: fm.sparsity.attention(*x, c, "flex"), q, k, v)
        theirs = gradients(lambda *x, c=choice: reference(*x, c).float(), q, k, v)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_without_a_compiler_flex_is_an_error_and_auto_goes_on_without_it(monkeypatch):
    from torch._inductor import config, cpp_builder

    monkeypatch.setattr(dispatch, "_plans", {})
    q, k, v = tensors(8, 8)
    choice = Streaming(2, 2).blocks(q, k, 4)
    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.raises(fm.sparsity.NoCompiler, match=r"no-such-compiler.*g\+\+.*gather"):
            fm.sparsity.attention(q, k, v, choice, "flex")
        plan = fm.sparsity.plan(q, k, v, choice)
        agrees("auto", q, k, v, choice)
    cpp_builder.cpp_compiler_search.cache_clear()
    assert set(plan.seconds) == {"dense", "gather"} and "no-such-compiler" in plan.left_out["flex"]
    assert "no flex" in str(plan) and str(plan).startswith(plan.kernel)


def test_a_compiler_that_fails_is_an_error_of_flex_and_told_by_auto(monkeypatch, caplog):
    from torch._inductor.exc import InductorError

    def fails(*args, **options):
        raise InductorError(RuntimeError("C++ compile error\nand all it said"), None)

    monkeypatch.setattr(dispatch, "compiler", lambda: "c++")
    monkeypatch.setattr(flex, "compiler", lambda: "c++")
    monkeypatch.setattr(flex, "_compiled", lambda: fails)
    monkeypatch.setattr(dispatch, "_plans", {})
    q, k, v = tensors(8, 8)
    choice = Streaming(2, 2).blocks(q, k, 4)
    says = r"could not compile the kernel 'flex' \(RuntimeError: C\+\+ compile error\); mend .* CXX, .*'gather'"
    with pytest.raises(fm.sparsity.NoCompiler, match=says):
        fm.sparsity.attention(q, k, v, choice, "flex")
    plan = fm.sparsity.plan(q, k, v, choice)
    assert set(plan.seconds) == {"dense", "gather"} and "C++ compile error" in plan.left_out["flex"]
    assert "no flex: torch could not compile" in str(plan) and "measured without the kernel 'flex'" in caplog.text
    agrees("auto", q, k, v, choice)


def test_flex_names_a_data_type_that_it_does_not_take_and_auto_leaves_it_out(monkeypatch):
    monkeypatch.setattr(dispatch, "_plans", {})
    q, k, v = tensors(8, 8, dtype=torch.float64)
    choice = Streaming(2, 2).blocks(q, k, 4)
    with pytest.raises(ValueError, match="takes torch.float32, .*, and these tensors are torch.float64; .*'gather'"):
        fm.sparsity.attention(q, k, v, choice, "flex")
    plan = fm.sparsity.plan(q, k, v, choice)
    assert set(plan.seconds) == {"dense", "gather"} and "torch.float64" in plan.left_out["flex"]
    agrees("auto", q, k, v, choice)
    assert all(flex.refused_dtype(q.to(dtype)) is None for dtype in (torch.float32, torch.float16, torch.bfloat16))


@pytest.mark.parametrize("kernel", ["auto", *dispatch.KERNELS])
@pytest.mark.parametrize("size", [(0, 0), (0, 5)], ids=str)
def test_no_query_gives_an_empty_tensor_and_runs_no_kernel(kernel, size, monkeypatch):
    for name in dispatch.KERNELS:  # one of them ends the process
        monkeypatch.setitem(dispatch.KERNELS, name, lambda *args: pytest.fail("a kernel was run"))
    for dtype in (torch.float32, torch.float64):
        q, k, v = tensors(*size, dtype=dtype)
        out = fm.sparsity.attention(q, k, v, Streaming(2, 2).blocks(q, k, 4), kernel)
        assert out.shape == q.shape and out.dtype == dtype
    with pytest.raises(ValueError, match=r"\(2, 6, 0, 8\) hold nothing to measure"):
        fm.sparsity.plan(q, k, v, Streaming(2, 2).blocks(q, k, 4))


def test_auto_takes_the_fastest_and_measures_once(monkeypatch):
    import time

    calls = []

    def kernel(name, seconds):
        def run(q, k, v, choice, scale):
            calls.append(name)
            time.sleep(seconds)
            return q * 0 + len(name)

        return run

    monkeypatch.setattr(
        dispatch,
        "KERNELS",
        {"dense": kernel("dense", 0.02), "gather": kernel("gather", 0), "flex": kernel("flex", 0.02)},
    )
    monkeypatch.setattr(dispatch, "compiler", lambda: "c++")
    monkeypatch.setattr(dispatch, "_plans", {})
    q, k, v = tensors(8, 8)
    choice = Streaming(2, 2).blocks(q, k, 4)
    out = fm.sparsity.attention(q, k, v, choice)
    assert (out == len("gather")).all() and calls[-1] == "gather"
    plan, before = fm.sparsity.plan(q, k, v, choice), len(calls)
    assert plan.kernel == "gather" and min(plan.seconds, key=plan.seconds.get) == "gather" and not plan.left_out
    fm.sparsity.attention(q, k, v, choice)
    assert len(calls) == before + 1  # remembered
    fm.sparsity.plan(q, k, v, SlidingBlocks(1).blocks(q, k, 4))
    assert len(calls) > before + 1  # another density is another kind


def test_a_mask_beyond_memory_is_no_candidate(monkeypatch):
    monkeypatch.setattr(dispatch, "_MASK", 100)
    q, k, v = tensors(8, 8)
    assert "GB" in dispatch._left_out(q, Streaming(2, 2).blocks(q, k, 4))["dense"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, c: (q, k, v, c, "fast"), "kernel='fast'.*'dense', 'gather', 'flex'"),
        (lambda q, k, v, c: (q[:, :5], k, v, c), "5 query heads over 2 KV heads"),
        (lambda q, k, v, c: (q[:, :4], k, v, c), r"choice is for .*\(2, 6, 8, 8\).* are \(2, 4, 8, 8\)"),
        (lambda q, k, v, c: (q[:, :, :4], k, v, c), r"are \(2, 6, 4, 8\)"),
        (lambda q, k, v, c: (q, k[:, :, :4], v[:, :, :4], c), "8 queries over 4 keys"),
        (lambda q, k, v, c: (q.to("meta"), k.to("meta"), v.to("meta"), c, "gather"), "for the CPU, and these tensors are on meta"),
        (lambda q, k, v, c: (q, k, v.double(), c), "values are torch.float64 and keys torch.float32; give all in one"),
        (lambda q, k, v, c: (q.bfloat16(), k, v, c), "queries are torch.bfloat16 and keys torch.float32; give both in one"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    q, k, v = tensors(8, 8)
    with pytest.raises(ValueError, match=message):
        fm.sparsity.attention(*change(q, k, v, Streaming(2, 2).blocks(q, k, 4)))


def test_tensors_without_an_axis_for_samples_or_heads_are_refused():
    q, k, _ = tensors(8, 8, batch=1)
    grid_of = inspect.unwrap(pattern.grid_of)  # as users call it, without our check of annotations
    with pytest.raises(ValueError, match=r"queries of shape \(6, 8, 8\); give \(batch, .* queries\[None\]"):
        grid_of(q[0], k, 4)
    with pytest.raises(ValueError, match=r"keys of shape \(2, 8, 8\); .* keys\[None\]"):
        grid_of(q, k[0], 4)


def test_no_row_is_left_out_or_taken_twice():
    """Every row has one band, and band and rest together are its blocks."""
    from fmlab.sparsity.gather import cut

    for seed in range(20):
        choice = some_choice(38, 45, 4, 0.5, batch=1, heads=1, seed=seed)
        grid, blocks = Grid(38, 45, 4), choice.blocks[0, 0]
        bands = cut(blocks, grid)
        rows = sorted([*range(bands.triangle), *(r for some in bands.wide + bands.narrow for r in some)])
        assert rows == list(range(grid.rows))
        rests = dict(row for some in bands.single.values() for row in some)
        rests |= {row: columns for some, columns in bands.shared for row in some}
        for row in range(bands.triangle, grid.rows):
            width = bands.width if any(row in some for some in bands.wide) else 1
            first = int(grid.own[row].nonzero()[0])
            own = grid.own[row].nonzero()[:, 0].tolist()
            band = {*range(first - width + 1, first), *own}
            assert band.isdisjoint(rests.get(row, []))
            assert sorted(band | {*rests.get(row, [])}) == blocks[row].nonzero()[:, 0].tolist()
