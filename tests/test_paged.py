"""The cache in pages: what it stores, what it knows of its pages, and what a decode step reads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fmlab as fm
from fmlab.paged import PAGES, PagedCache
from fmlab.sparsity import AntiDiagonal, Grid, QuestTopK, Streaming, VerticalSlash
from fmlab.sparsity.pages import over_pages, pages_of


def some(batch, kv_heads, n, d=8, seed=0, dtype=torch.float64):
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, kv_heads, n, d, generator=drawn, dtype=dtype) for _ in range(2)]


def filled(keys, values, calls, block=4):
    cache = PagedCache(1, block)
    for k, v in zip(keys.split(calls, 2), values.split(calls, 2), strict=True):
        cache.update(k, v, 0)
    return cache


def bounds(layer):
    """(batch, KV heads, pages, 2 d) by brute force: of each page the greatest and then the least key."""
    pages = [layer.keys[:, :, at : at + layer.cache.block] for at in range(0, layer.seen, layer.cache.block)]
    return torch.stack([torch.cat([page.amax(2), page.amin(2)], -1) for page in pages], 2)


def known(layer):
    return layer._bounds[..., : -(-layer.seen // layer.cache.block)].mT


@given(calls=st.lists(st.integers(1, 11), min_size=1, max_size=8), block=st.integers(1, 5), drop=st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_what_is_stored_and_its_bounds(calls, block, drop):
    keys, values = some(2, 3, sum(calls))
    layer = filled(keys, values, calls, block).layers[0]
    assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values) and layer.get_seq_length() == sum(calls)
    assert torch.equal(known(layer), bounds(layer))
    left = max(sum(calls) - drop, 0)
    layer.crop(-drop)
    assert layer.seen == left and torch.equal(layer.keys, keys[:, :, :left])
    layer.update(*(x[:, :, :1] for x in (values, keys)))  # and it goes on from there
    assert torch.equal(layer.keys, torch.cat([keys[:, :, :left], values[:, :, :1]], 2))
    assert torch.equal(known(layer), bounds(layer))


def reference(q, layer, top, block, together=False):
    keys, values = layer.keys.contiguous(), layer.values.contiguous()
    return fm.sparsity.attention(q, keys, values, QuestTopK(top, together).blocks(q, keys, block), "dense", 0.3)


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (9, 3), (4, 4)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("top", [1, 2, 4, 100])
@pytest.mark.parametrize("together", [False, True])
def test_every_step_is_the_pattern_over_the_same_tensors(heads, batch, top, together):
    (query_heads, kv_heads), block = heads, 4
    keys, values = some(batch, kv_heads, 40)
    queries = some(batch, query_heads, 40, seed=1)[0]
    cache = PagedCache(1, block)
    cache.update(keys[:, :, :13], values[:, :, :13], 0)
    for step in range(13, 40):  # ragged ends of every length
        now = slice(step, step + 1)
        key, _ = cache.update(keys[:, :, now], values[:, :, now], 0)
        layer, q = getattr(key, PAGES), queries[:, :, now]
        ours, theirs = layer.attend(q, 0.3, top, together), reference(q, layer, top, block, together)
        assert float((ours - theirs).abs().max()) < 1e-12
        pages, choosing = min(top, -(-(step + 1) // block)), kv_heads if together else query_heads
        chosen = batch * choosing * pages * block * 16 * 8  # keys and values of 8 dimensions, 8 bytes each
        scored = 0 if pages == -(-(step + 1) // block) else batch * kv_heads * -(-(step + 1) // block) * 16 * 8
        assert cache.read_nbytes == chosen + scored


@pytest.mark.parametrize("seen", [77, 80])
@pytest.mark.parametrize("together", [False, True])
def test_pages_that_are_not_chosen_are_not_read(seen, together):
    block, top = 4, 2
    keys, values = some(2, 2, seen, dtype=torch.float32)
    q = some(2, 6, 1, seed=5, dtype=torch.float32)[0]
    layer = filled(keys, values, [seen - 1, 1], block).layers[0]
    wanted = reference(q, layer, top, block, together)
    chosen = QuestTopK(top, together).blocks(q, keys, block).blocks[:, :, 0].unflatten(1, (2, 3)).any(2)
    assert not together or (chosen.sum(-1) == top).all()
    read = torch.nn.functional.pad(chosen.repeat_interleave(block, -1)[..., :seen], (0, layer._keys.shape[2] - seen))
    assert 0 < int(read.sum()) < read.numel() / 2
    for stored in (layer._keys, layer._values):
        stored.masked_fill_(~read[..., None], torch.nan)
    assert torch.allclose(layer.attend(q, 0.3, top, together), wanted, atol=1e-5)
    assert not reference(q, layer, top, block, together).isfinite().all()  # what reads them all finds them
    for stored in (layer._keys, layer._values):
        stored.masked_fill_(read[..., None], torch.nan)
    assert layer.attend(q, 0.3, top, together).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "pattern", [Streaming(2, 9), AntiDiagonal(0.5, 4), VerticalSlash(2, 3), QuestTopK(2)], ids=repr
)
@pytest.mark.parametrize("m", [1, 7, 32, 45])
def test_one_query_over_any_choice(pattern, dtype, m):
    keys, values = some(2, 2, m + 11, dtype=dtype)
    q = some(2, 6, 1, seed=3, dtype=dtype)[0]
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}.get(dtype, 0.02)
    for k, v in (
        (keys[:, :, :m], values[:, :, :m]),  # the beginning of a longer storage
        (keys[:, :, 4 : 4 + m], values[:, :, 4 : 4 + m].contiguous()),
        (keys[:, :, :m].mT.contiguous().mT, values[:, :, :m]),
    ):
        choice = pattern.blocks(q, k, 8)
        pages, shown = pages_of(choice)
        ours = over_pages(q, k, v, pages, 8, 0.4, shown)
        theirs = fm.sparsity.attention(*(x.double() for x in (q, k, v)), choice, "dense", 0.4)
        assert ours.dtype == dtype and float((ours.double() - theirs).abs().max()) < tolerance


def test_heads_that_see_unequally_many_blocks():
    grid = Grid(1, 20, 4)
    blocks = torch.tensor([[[True, False, True, False, True]], [[False, False, False, False, True]]])[None]
    pages, shown = pages_of(fm.sparsity.BlockChoice.over(grid, torch.zeros(1, 2, 1, 3), blocks))
    assert shown.sum(-1).tolist() == [[3, 1]] and sorted(pages[0, 0].tolist()) == [0, 2, 4]
    assert pages[0, 1].tolist() == [4, 4, 4]


@pytest.mark.parametrize("together", [False, True])
def test_a_gradient_through_a_step_is_an_error_and_not_a_zero(together):
    keys, values = some(1, 2, 9)
    q = some(1, 2, 1)[0].requires_grad_(True)
    with pytest.raises(RuntimeError, match="derivative .* is not implemented"):
        filled(keys, values, [9]).layers[0].attend(q, 0.3, 2, together).sum().backward()


def test_storage_doubles_and_is_not_copied_at_every_step():
    keys, values = some(1, 2, 200)
    layer, where, sizes = PagedCache(1, 4).layers[0], set(), set()
    for step in range(200):
        layer.update(keys[:, :, step : step + 1], values[:, :, step : step + 1])
        where.add((layer._keys.data_ptr(), layer.keys.data_ptr() == layer._keys.data_ptr()))
        sizes.add(layer.nbytes)
    pages = [1, 2, 4, 8, 16, 32, 64]
    assert sizes == {4 * 2 * 2 * 8 * 8 * n for n in pages} and len(where) <= 7 and all(same for _, same in where)
    assert layer.overhead_nbytes == 64 * 2 * 2 * 8 * 8 and torch.equal(layer.values, values)


def test_sequences_taken_repeated_and_forgotten():
    keys, values = some(3, 2, 10)
    cache = filled(keys, values, [9, 1])
    layer, order = cache.layers[0], torch.tensor([2, 0, 0])
    cache.reorder_cache(order)
    assert torch.equal(layer.keys, keys[order]) and torch.equal(known(layer), bounds(layer))
    cache.batch_select_indices(torch.tensor([0]))
    cache.batch_repeat_interleave(2)
    assert torch.equal(layer.values, values[[2, 2]]) and layer.nbytes == 2 * 2 * 12 * 2 * 8 * 8
    layer.update(keys[:2, :, :1], values[:2, :, :1])
    assert torch.equal(known(layer), bounds(layer)) and cache.seen == 11
    cache.crop(-2)
    assert (cache.seen, cache.get_seq_length(), layer.get_mask_sizes(3)) == (9, 9, (12, 0))
    cache.crop(5)  # as transformers below 5.3 asks: what is left
    assert cache.seen == 5 and repr(cache) == f"PagedCache(block=4, seen=5, nbytes={cache.nbytes})"
    cache.reset()
    assert (cache.seen, cache.nbytes, cache.overhead_nbytes, cache.read_nbytes) == (0, 0, 0, 0)
    layer.update(keys, values)
    assert torch.equal(layer.keys, keys)


def test_other_sequences_are_refused():
    keys, values = some(2, 2, 5)
    cache = filled(keys, values, [5])
    with pytest.raises(ValueError, match=r"keys of \(1, 2\) \(batch, KV heads\) after \(2, 2\); start a new cache"):
        cache.update(keys[:1], values[:1], 0)


@torch.no_grad()
def test_under_stock_attention_it_is_a_cache_like_any_other():
    model = fm.tiny().model
    ids = torch.arange(30)[None]
    cache = PagedCache(3, 4)
    parts = [model(part, past_key_values=cache).logits for part in ids.split([11, 6, 1, 1, 11], 1)]
    assert torch.allclose(torch.cat(parts, 1), model(ids).logits, atol=1e-4) and cache.read_nbytes == 0


def test_made_in_inference_mode_and_continued_outside():
    keys, values = some(1, 2, 12)
    with torch.inference_mode():
        cache = filled(keys[:, :, :9], values[:, :, :9], [8, 1])
        cache.reorder_cache(torch.tensor([0]))
    for step in range(9, 12):
        cache.update(keys[:, :, step : step + 1], values[:, :, step : step + 1], 0)
    assert torch.equal(cache.layers[0].keys, keys) and torch.equal(known(cache.layers[0]), bounds(cache.layers[0]))
