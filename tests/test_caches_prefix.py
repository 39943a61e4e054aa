import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

import fmlab as fm
from fmlab.caches import PrefixCache, prefix
from fmlab.caches.prefix import block_hashes

ARCHS = ("llama", "qwen3", "mistral", "gpt_neox")
TEXT = torch.randint(0, 256, (80,), generator=torch.Generator().manual_seed(0))


def read(lm, ids, cache=None):
    """The logits after each token, and the cache that holds them."""
    cache = DynamicCache() if cache is None else cache
    return lm.model(input_ids=torch.as_tensor(ids)[None], past_key_values=cache).logits[0], cache


def fake(ids, layers=2, heads=2, d=3, dtype=torch.float32):
    """A cache whose keys and values tell, at each place, all tokens up to there."""
    cache, told = DynamicCache(), []
    for place in range(len(ids)):
        torch_seed = hash(tuple(ids[: place + 1])) & 0x7FFFFFFF
        told.append(torch.randn(layers, 2, heads, d, generator=torch.Generator().manual_seed(torch_seed)))
    held = torch.stack(told, dim=-2).to(dtype) if told else torch.empty(layers, 2, heads, 0, d)
    for layer in range(layers):
        cache.update(held[layer, 0][None], held[layer, 1][None], layer)
    return cache


def holds(prefix, ids):
    """Whether a prefix has the keys and values of its tokens, exactly."""
    whole = fake(ids)
    return all(
        torch.equal(layer.keys, other.keys[..., : prefix.tokens, :])
        and torch.equal(layer.values, other.values[..., : prefix.tokens, :])
        for layer, other in zip(prefix.layers, whole.layers, strict=True)
    )


def check(cache):
    """What is true of the store at all times."""
    blocks = cache._blocks
    assert cache.capacity is None or len(cache) <= cache.capacity
    newer = list(blocks.values())[::-1]
    for place, each in enumerate(newer):
        assert each.parent is None or any(each.parent is other for other in newer[:place])  # stored, and used later
    assert cache.nbytes == sum(each.nbytes for each in newer)


# The logits are the same


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("block", [1, 7, 16])
def test_logits_after_a_cached_prefix_are_those_without(arch, block):
    lm, cache = fm.tiny(arch), PrefixCache(block=block)
    first, held = read(lm, TEXT[:60])
    assert cache.insert(TEXT[:60], held) == 60 // block
    for ids in (TEXT, torch.cat([TEXT[:33], TEXT[40:]]), TEXT[:60], TEXT[:61]):
        same = int((ids[:60] == TEXT[: len(ids)][:60]).int().cumprod(0).sum())
        plain, _ = read(lm, ids)
        found = cache.lookup(ids)
        assert found.tokens == found.get_seq_length() == min(same, len(ids) - 1) // block * block > 0
        again, grown = read(lm, ids[found.tokens :], found)
        assert torch.allclose(again, plain[found.tokens :], atol=1e-5, rtol=1e-5)
        assert grown.get_seq_length() == len(ids)
    assert cache.lookup(TEXT[1:]).tokens == 0


def test_a_sliding_window_model_reads_on_from_layers_that_hold_all():
    lm, cache = fm.tiny("mistral", sliding_window=16), PrefixCache(block=8)
    cache.insert(TEXT[:60], read(lm, TEXT[:60])[1])
    plain, _ = read(lm, TEXT, DynamicCache(config=lm.model.config))
    found = cache.lookup(TEXT)
    assert found.tokens == 56
    assert torch.allclose(read(lm, TEXT[56:], found)[0], plain[56:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("known", [0, 48])
def test_generate_takes_the_whole_prompt_with_the_prefix_and_what_it_wrote_can_be_inserted(known):
    lm, cache = fm.tiny(), PrefixCache(block=8)
    lm.model.double()  # tokens read one by one differ from those of one call by rounding
    settings = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True}
    plain = lm.model.generate(TEXT[None, :50], **settings).sequences[0]
    if known:
        cache.insert(TEXT[:known], read(lm, TEXT[:known])[1])
    found = cache.lookup(TEXT[:50])
    assert found.tokens == known
    out = lm.model.generate(TEXT[None, :50], past_key_values=found, **settings)
    assert out.sequences[0].tolist() == plain.tolist()
    length = out.past_key_values.get_seq_length()
    assert (length, found.tokens) == (61, known)
    cache.insert(plain[:length], out.past_key_values)
    longer = torch.cat([plain, TEXT[60:]])
    again = cache.lookup(longer)
    assert again.tokens == 56
    assert torch.allclose(read(lm, longer[56:], again)[0], read(lm, longer)[0][56:], atol=1e-9, rtol=0)


@pytest.mark.real
def test_the_real_model_says_the_same_after_a_cached_prefix(lm):
    opening = {"role": "system", "content": "You are a helpful assistant who answers in one short sentence. " * 3}
    first, second = (
        lm.chat_ids([opening, {"role": "user", "content": asked}])
        for asked in ("What is the capital of France?", "What is the capital of Italy, and which river is there?")
    )
    cache = PrefixCache(block=16)
    with torch.no_grad():
        cache.insert(first, read(lm, first)[1])
        found = cache.lookup(second)
        assert len(second) / 2 < found.tokens == cache.hit_tokens < len(second) == cache.asked_tokens
        settings = {"max_new_tokens": 12, "do_sample": False}
        plain = lm.model.generate(second[None], **settings)
        assert lm.model.generate(second[None], past_key_values=found, **settings).tolist() == plain.tolist()


# The store against brute force

TOKENS = st.lists(st.integers(0, 2), max_size=9)
WORK = st.lists(st.tuples(st.booleans(), TOKENS), max_size=25)


@settings(deadline=None)
@given(WORK, st.integers(1, 4))
def test_without_a_bound_a_lookup_finds_every_prefix_that_was_inserted(work, block):
    cache, known = PrefixCache(block, capacity=None), {()}
    asked = hit = 0
    for insert, ids in work:
        if insert:
            new = {tuple(ids[:end]) for end in range(block, len(ids) + 1, block)} - known
            assert cache.insert(ids, fake(ids)) == len(new)
            known |= new
        else:
            found = cache.lookup(ids)
            longest = max(end for end in range(max(len(ids), 1)) if tuple(ids[:end]) in known)
            assert found.tokens == found.get_seq_length() == longest
            assert longest == 0 or holds(found, ids)
            asked, hit = asked + len(ids), hit + longest
        assert (cache.asked_tokens, cache.hit_tokens) == (asked, hit)
        assert cache.hit_ratio == (hit / asked if asked else 0.0)
        assert len(cache) == len(known) - 1
        check(cache)


@settings(deadline=None)
@given(WORK, st.integers(1, 2), st.integers(1, 5), st.sampled_from([16, 0]))
def test_with_few_blocks_it_stays_within_them_keeps_parents_and_never_serves_wrong_tensors(
    work, block, capacity, digest
):
    """Also where half of all hashes collide."""
    with pytest.MonkeyPatch.context() as patch:
        if not digest:
            patch.setattr(prefix, "_hash", lambda data: bytes([sum(data) % 2]))
        cache = PrefixCache(block, capacity)
        for insert, ids in work:
            if insert:
                stored = cache.insert(ids, fake(ids))
                if digest:  # up to the capacity it is there now
                    whole = cache.lookup([*ids, 0]).tokens
                    assert whole == min(len(ids) // block, capacity) * block
                    assert stored <= whole // block
            else:
                found = cache.lookup(ids)
                assert found.tokens == 0 or holds(found, ids)
            check(cache)


def test_the_least_recently_used_leaves_go_first():
    cache = PrefixCache(block=1, capacity=5)

    def stored(*prompts):  # without using them
        return [len(cache._find(list(prefix._chain(ids, 1)))) for ids in prompts]

    for ids in ([1, 2, 3], [5], [6]):
        cache.insert(ids, fake(ids))
    cache.lookup([1, 2, 9])  # uses 1 and 2, not 3
    cache.insert([5], fake([5]))
    for new, left in ((7, [2, 1, 1]), (8, [2, 1, 0]), (9, [1, 1, 0]), (10, [0, 1, 0]), (11, [0, 0, 0])):
        cache.insert([new], fake([new]))
        assert stored([1, 2, 3], [5], [6]) == left
        check(cache)
    assert cache.evicted_blocks == 5 and stored([7], [8], [9], [10], [11]) == [1] * 5


def test_a_prompt_longer_than_the_capacity_is_stored_from_its_beginning():
    cache, ids = PrefixCache(block=2, capacity=3), list(range(20))
    assert cache.insert(ids, fake(ids)) == 3
    assert cache.lookup(ids).tokens == 6
    assert cache.insert(ids, fake(ids)) == 0


def test_equal_tokens_after_different_prefixes_are_different_blocks():
    cache = PrefixCache(block=2)
    for ids in ([1, 1, 7, 7], [2, 2, 7, 7]):
        assert cache.insert(ids, fake(ids)) == 2
        assert cache.lookup([*ids, 0]).tokens == 4 and holds(cache.lookup([*ids, 0]), ids)
    assert cache.lookup([7, 7, 7, 7]).tokens == 0
    assert len(cache) == 4
    hashes = [block_hashes(ids, 2) for ids in ([1, 1, 7, 7, 3], [2, 2, 7, 7])]
    assert [len(each) for each in hashes] == [2, 2] and not set(hashes[0]) & set(hashes[1])
    assert block_hashes(torch.tensor([1, 1, 7, 7]), 2) == hashes[0]


# Nobody's tensors are anyone else's


def scribble(cache):
    for layer in cache.layers:
        layer.keys.fill_(7)
        layer.values.fill_(7)


def test_what_is_done_to_a_cache_before_or_after_does_not_reach_the_store():
    cache, ids = PrefixCache(block=4), list(range(8))
    given = fake(ids)
    cache.insert(ids, given)
    scribble(given)
    for length in (8, 9, 5):  # two blocks, and a single one
        found = cache.lookup([*ids, 8][:length])
        assert holds(found, ids)
        scribble(found)
        copied = copy.deepcopy(found)
        assert copied.tokens == found.tokens
    assert holds(cache.lookup([*ids, 8]), ids)


def test_a_cache_that_was_handed_out_outlives_its_blocks():
    cache, ids = PrefixCache(block=4, capacity=2), list(range(8))
    cache.insert(ids, fake(ids))
    found = cache.lookup([*ids, 8])
    cache.insert([50] * 8, fake([50] * 8))
    assert cache.lookup([*ids, 8]).tokens == 0 and cache.evicted_blocks == 2
    assert found.tokens == 8 and holds(found, ids)


def test_bytes_are_those_of_the_tensors():
    cache, ids = PrefixCache(block=4), list(range(11))
    cache.insert(ids, fake(ids))
    assert cache.nbytes == 2 * 2 * 2 * 8 * 3 * 4  # layers, keys and values, heads, tokens, d, bytes
    assert cache.lookup(ids).copied_nbytes == cache.nbytes
    assert cache.lookup(ids[:5]).copied_nbytes == cache.nbytes / 2
    assert cache.lookup([9]).copied_nbytes == 0
    for each in cache._blocks.values():
        for tensor in (tensor for layer in each.layers for tensor in layer):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes  # it does not keep the prompt's memory alive
    assert repr(cache) == "PrefixCache(block=4, capacity=1024, 2 blocks, 768 bytes, 12 of 17 tokens hit)"
    cache.clear()
    assert (len(cache), cache.nbytes, cache.asked_tokens, cache.hit_tokens, cache.hit_ratio) == (0, 0, 0, 0, 0.0)
    assert cache.insert(ids, fake(ids, heads=1)) == 2


# What is refused


@pytest.mark.parametrize("wrong", [{"block": 0}, {"block": 2.0}, {"capacity": 0}, {"capacity": True}, {"capacity": -1}])
def test_sizes_are_checked(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        PrefixCache(**wrong)


@pytest.mark.parametrize("other", [{"layers": 3}, {"heads": 1}, {"d": 4}, {"dtype": torch.float16}])
def test_another_models_blocks_are_refused(other):
    cache = PrefixCache(block=2)
    cache.insert([1, 2, 3], fake([1, 2, 3]))
    with pytest.raises(ValueError, match="this one holds 2 layers with 2 KV heads of 3 and 3, float32 on cpu"):
        cache.insert([4, 5], fake([4, 5], **other))
    assert len(cache) == 1


def test_another_model_of_the_same_shape_is_found_out_where_they_share_a_prefix():
    cache = PrefixCache(block=8)
    cache.insert(TEXT[:20], read(fm.tiny(seed=0), TEXT[:20])[1])
    with pytest.raises(ValueError, match="the first 16 ids are stored with other keys"):
        cache.insert(TEXT, read(fm.tiny(seed=1), TEXT)[1])
    with pytest.raises(ValueError, match="does not hold these ids"):
        cache.insert(TEXT[:20], read(fm.tiny(seed=0), TEXT[20:40])[1])
    assert cache.insert(TEXT, read(fm.tiny(seed=0), TEXT)[1]) == 8


def test_a_half_precision_model_agrees_with_itself():
    lm, cache = fm.tiny(), PrefixCache(block=8)
    lm.model.to(torch.bfloat16)
    cache.insert(TEXT[:40], read(lm, TEXT[:40])[1])
    found = cache.lookup(TEXT)
    assert cache.insert(TEXT, read(lm, TEXT[40:], found)[1]) == 5
    assert cache.insert(TEXT, read(lm, TEXT)[1]) == 0
    for layer in found.layers:
        layer.keys = layer.keys * 1.01  # what rounding may do
    assert cache.insert(TEXT[:40], found) == 0


def test_caches_that_do_not_hold_every_token_are_refused():
    cache, lm = PrefixCache(block=8), fm.tiny()
    sliding = fm.tiny("mistral", sliding_window=16)
    with pytest.raises(ValueError, match="layer 0 is a DynamicSlidingWindowLayer"):
        cache.insert(TEXT, read(sliding, TEXT, DynamicCache(config=sliding.model.config))[1])
    with fm.finite(lm.model, fm.policies.SinkWindow(), budget=100) as finite:
        read(lm, TEXT, finite)
    with pytest.raises(ValueError, match="FiniteCache may not hold every token"):
        cache.insert(TEXT, finite)
    static = StaticCache(lm.model.config, max_cache_len=100)
    with pytest.raises(ValueError, match="StaticCache may not hold every token"):
        cache.insert(TEXT, read(lm, TEXT, static)[1])
    assert len(cache) == 0


def test_a_cache_of_too_few_tokens_or_of_several_sequences_is_refused():
    cache = PrefixCache(block=2)
    with pytest.raises(ValueError, match=r"layer 0 holds 3 tokens, fewer than the 4 ids.*get_seq_length"):
        cache.insert([1, 2, 3, 4], fake([1, 2, 3]))
    with pytest.raises(ValueError, match="the cache is empty"):
        cache.insert([1], DynamicCache())
    cropped = fake([1, 2, 3, 4])
    cropped.layers[1].keys = cropped.layers[1].keys[..., :3, :]
    with pytest.raises(ValueError, match="layer 1 holds 3 tokens"):
        cache.insert([1, 2, 3, 4], cropped)
    double = fake([1, 2, 3])
    double.batch_repeat_interleave(2)
    with pytest.raises(ValueError, match="layer 0 holds a batch of 2"):
        cache.insert([1, 2, 3], double)
    with pytest.raises(ValueError, match=r"ids have shape \(1, 3\)"):
        cache.lookup(torch.ones(1, 3).long())
    assert (len(cache), cache.asked_tokens) == (0, 0)
    assert cache.insert([1, 2], fake([1, 2, 3])) == 1  # more than asked for is no harm
    assert cache.insert([], DynamicCache()) == cache.lookup([]).tokens == 0
