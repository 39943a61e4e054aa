"""Every form of a choice holds what its mask holds; Longformer's is checked against transformers' own Longformer."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sparsity_choice import causal, sizes, some_choice
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import fmlab as fm
from fmlab import core
from fmlab.policies import H2O, SnapKV
from fmlab.sparsity import BlockChoice, Grid, LocalGlobal, SlidingBlocks, Streaming, forms, memory

choices = st.builds(
    lambda size, share, seed, heads: some_choice(*size, share, heads=heads, seed=seed),
    sizes,
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
    st.integers(1, 3),
)


@settings(deadline=None, max_examples=60)
@given(choices)
def test_sparse_forms_hold_what_the_mask_holds(choice):
    mask = choice.mask()
    assert torch.equal(forms.coo(choice), mask.nonzero().T)
    assert all(torch.equal(forms.coo(choice, axes), mask.nonzero().T[4 - axes :]) for axes in (1, 2, 3))
    starts, columns = forms.csr(choice)
    assert torch.equal(starts.diff(), mask.flatten(0, 2).sum(-1)) and starts[0] == 0
    assert torch.equal(columns, mask.flatten(0, 2).nonzero()[:, 1])
    starts, columns = forms.bsr(choice)
    assert torch.equal(starts.diff(), choice.blocks.flatten(0, 2).sum(-1)) and starts[0] == 0
    assert torch.equal(columns, choice.blocks.flatten(0, 2).nonzero()[:, 1])


def test_torch_reads_the_rows_as_its_own():
    choice = some_choice(9, 14, 4)
    starts, columns = forms.csr(choice)
    theirs = torch.sparse_csr_tensor(starts, columns, torch.ones(len(columns)), (2 * 3 * 9, 14), check_invariants=True)
    assert torch.equal(theirs.to_dense().bool(), choice.mask().flatten(0, 2))


@settings(deadline=None, max_examples=40)
@given(choices.filter(lambda choice: choice.n))
def test_flex_s_forms_hold_what_the_mask_holds(choice):
    mask, (n, m, block) = choice.mask(), (choice.n, choice.m, choice.block)
    assert torch.equal(create_mask(forms.mask_mod(choice), *mask.shape, device="cpu"), mask)
    built = forms.block_mask(choice)
    assert built.seq_lengths == (n, m) and built.BLOCK_SIZE == (block, block)
    parts = [
        listed(num, index, choice.blocks)
        for num, index in ((built.kv_num_blocks, built.kv_indices), (built.full_kv_num_blocks, built.full_kv_indices))
    ]
    assert torch.equal(parts[0] | parts[1], choice.blocks) and not (parts[0] & parts[1]).any()
    full = parts[1].repeat_interleave(block, 2).repeat_interleave(block, 3)
    assert not full[..., n:, :].any() and not full[..., m:].any()  # ragged blocks are never full
    assert mask[full[..., :n, :m]].all()  # in a full block the mask_mod is not asked


def listed(num, index, like):
    """Lists of blocks as booleans."""
    blocks = torch.zeros_like(like)
    for place in torch.cartesian_prod(*map(torch.arange, num.shape)).tolist():
        row = tuple(place)
        blocks[row][index[row][: num[row]].long()] = True
    return blocks


# Longformer


def both_ways(pattern, tokens):
    """What a text in blocks of one token lets see, looking both ways."""
    q = torch.empty(1, 1, tokens, 1)
    choice = pattern.blocks(q, q, block=1)
    mask = choice.mask()[0, 0]
    return choice, mask | mask.T


@pytest.mark.parametrize(
    "pattern",
    [LocalGlobal(3, ()), LocalGlobal(3, (0,)), LocalGlobal(5, (0, 9, 10, 30)), LocalGlobal(3, (39,))],
    ids=repr,
)
def test_longformer_attends_as_the_choice_says(pattern):
    from transformers import LongformerConfig, LongformerModel

    torch.manual_seed(0)
    choice, mask = both_ways(pattern, 40)
    given = forms.longformer(choice)
    assert given.global_attention_mask[0].nonzero()[:, 0].tolist() == list(pattern.positions)
    assert given.attention_window == 2 * (pattern.window - 1)
    config = LongformerConfig(
        vocab_size=50,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=8,
        max_position_embeddings=64,
        attention_window=[given.attention_window],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = LongformerModel(config, add_pooling_layer=False).eval()
    attention = model.encoder.layer[0].attention.self
    for name in ("query", "key", "value"):  # global tokens project as the others do: then it is one masked attention
        getattr(attention, f"{name}_global").load_state_dict(getattr(attention, name).state_dict())
    seen = {}
    attention.register_forward_hook(lambda _, args, out: seen.update(inputs=args[0], out=out[0]))
    with torch.no_grad():
        model(torch.arange(40)[None], given.attention_mask, given.global_attention_mask)
        x = seen["inputs"][:, :40]  # Longformer fills the text up to a multiple of its window
        q, k, v = (getattr(attention, n)(x).unflatten(-1, (3, 4)).transpose(1, 2) for n in ("query", "key", "value"))
        expected = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    torch.testing.assert_close(seen["out"][:, :40], expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), atol=1e-3)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 24), st.integers(1, 5), st.floats(0, 1), st.integers(0, 99))
def test_longformer_s_causal_half_covers_any_choice(tokens, block, share, seed):
    choice = some_choice(tokens, tokens, block, share, batch=1, heads=1, seed=seed)
    masks = forms.longformer(choice)
    wide = torch.arange(tokens)[:, None] - torch.arange(tokens) <= masks.attention_window // 2
    everywhere = masks.global_attention_mask[0].bool()
    covered = (wide | everywhere | everywhere[:, None]) & causal(tokens, tokens)
    assert covered[choice.mask()[0, 0]].all()
    assert masks.attention_window % 2 == 0 and (masks.attention_mask == 1).all()


def test_longformer_refuses_what_it_has_no_words_for():
    with pytest.raises(ValueError, match="heads of this choice differ"):
        forms.longformer(some_choice(20, 20, 4))
    with pytest.raises(ValueError, match="5 queries over 9 keys"):
        forms.longformer(some_choice(5, 9, 4))
    q = torch.empty(2, 3, 20, 1)
    assert forms.longformer(Streaming(4, 4).blocks(q, q, 4)).global_attention_mask.shape == (2, 20)


# From memory


def some_expiry(layers, heads, tokens, seed=0):
    draw = torch.Generator().manual_seed(seed)
    born = torch.arange(tokens)
    return (born + 1 + torch.randint(0, tokens + 1, (layers, heads, tokens), generator=draw)).clamp(max=tokens)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_a_run_s_expiry_is_a_mask_and_a_choice(tokens, block, group, seed):
    expiry = some_expiry(2, 2, tokens, seed)
    still = causal(tokens, tokens) & (torch.arange(tokens)[:, None] < expiry[:, :, None])
    still = still.repeat_interleave(group, 1)
    mod = memory.mask_mod_of(expiry, group)
    assert torch.equal(create_mask(mod, *still.shape, device="cpu"), still)
    choice = memory.choice_of(expiry, group, block)
    rounded = torch.zeros_like(choice.blocks)
    for layer, head, i, j in still.nonzero().tolist():
        rounded[layer, head, i // block, j // block] = True
    assert torch.equal(choice.blocks, rounded)


def test_one_layer_s_expiry_is_for_any_batch():
    expiry = some_expiry(1, 2, 9)
    mask = create_mask(memory.mask_mod_of(expiry), 5, 2, 9, 9, device="cpu")
    assert torch.equal(mask[4], mask[0]) and torch.equal(mask[0].sum(-2), expiry[0] - torch.arange(9))


def test_a_window_s_expiry_is_the_sliding_choice():
    expiry = (torch.arange(40) + 6).clamp(max=40).expand(1, 3, -1)
    q = torch.empty(1, 3, 40, 1)
    assert torch.equal(memory.choice_of(expiry, block=4).blocks, SlidingBlocks(6).blocks(q, q, 4).blocks)


def test_an_entry_that_its_own_query_never_saw_is_refused():
    expiry = some_expiry(2, 2, 9)
    expiry[1, 0, 5] = 5
    for of in (memory.choice_of, memory.mask_mod_of):
        with pytest.raises(ValueError, match="layer 1, KV head 0: token 5 expires at 5"):
            of(expiry)
        with pytest.raises(ValueError, match="group=0"):
            of(some_expiry(1, 1, 3), 0)


def test_an_expiry_of_several_samples_is_refused_and_says_how_to_take_one():
    expiry = some_expiry(2, 2, 9)
    for of in (memory.choice_of, memory.mask_mod_of):
        for wrong in (expiry[None], expiry[0]):
            shape = r"\(" + ", ".join(map(str, wrong.shape)) + r"\)"
            with pytest.raises(
                ValueError, match=f"expiry of shape {shape}; .* one sample, expiry.sample., and of one layer"
            ):
                inspect.unwrap(of)(wrong)  # as users call it, without our check of annotations


@torch.no_grad()
def runs():
    """What really expires: in a replay from a record, and in a live cache of two samples."""
    lm = fm.tiny()
    ids = torch.randperm(256, generator=torch.Generator().manual_seed(3))[:80].view(2, 40)
    yield fm.replay(fm.record(lm, ids[0]), SnapKV(4, 3), 12, prefill=20)
    with fm.finite(lm.model, H2O(), 12) as cache:
        for part in ids.split([20] + [1] * 20, 1):
            lm.model(part, past_key_values=cache)
    yield from cache.expiry


@pytest.mark.parametrize("group", [1, 3])
def test_what_real_runs_keep_is_their_mask(group):
    found = list(runs())
    assert len(found) == 3
    for expiry in found:
        kept = core.mask(expiry).repeat_interleave(group, 1)
        assert 0 < int(kept[..., -1, :].sum()) < kept[..., -1, :].numel() / 2, "something was evicted"
        mod = memory.mask_mod_of(expiry, group)
        assert torch.equal(create_mask(mod, *kept.shape, device="cpu"), kept)
        choice = memory.choice_of(expiry, group, 8)
        assert not (kept & ~choice.mask()).any() and choice.density < 1
        blocks = kept.unflatten(-1, (5, 8)).unflatten(-3, (5, 8)).any(-1).any(-2)
        assert torch.equal(choice.blocks, blocks)


def test_flex_attention_under_a_run_s_mask_mod_is_masked_attention():
    expiry = next(runs())
    q, k, v = torch.randn(3, *expiry.shape, 8, generator=torch.Generator().manual_seed(0)).unbind()
    blocks = create_block_mask(memory.mask_mod_of(expiry), *expiry.shape, 40, "cpu", BLOCK_SIZE=8)
    ours = flex_attention(q, k, v, block_mask=blocks)
    torch.testing.assert_close(ours, scaled_dot_product_attention(q, k, v, attn_mask=core.mask(expiry)))


@pytest.mark.parametrize("of", [(1, 2), (2, 1), (0, 3)], ids=str)
@pytest.mark.parametrize("size", [(0, 0), (0, 5)], ids=str)
def test_an_empty_choice_has_empty_forms(size, of):
    grid = Grid(*size, 4)
    choice = BlockChoice(torch.zeros(*of, grid.rows, grid.columns, dtype=torch.bool), *size, 4)
    assert forms.coo(choice).shape == (4, 0) and forms.coo(choice).dtype == torch.int64
    for rows in (forms.csr(choice), forms.bsr(choice)):
        assert rows.starts.tolist() == [0] and rows.columns.tolist() == []
    assert choice.mask().shape == (*of, *size) and choice.density == 1.0


def test_a_choice_of_one_block_is_one_row():
    starts, columns = forms.bsr(BlockChoice(torch.ones(1, 1, 1, 1, dtype=torch.bool), 3, 3, 8))
    assert (starts.tolist(), columns.tolist()) == ([0, 1], [0])


def test_axes_that_there_are_not_are_refused():
    q = torch.empty(1, 1, 9, 1)
    with pytest.raises(ValueError, match="axes=5; give 1 to 4"):
        forms.coo(Streaming(1, 4).blocks(q, q, 4), 5)
