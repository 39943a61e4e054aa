"""All pairs: those of the claims first, then what this lab relies on."""

from . import (
    batched_forks,
    block_sparse_kernel,
    boundary_table,
    embedding_by_length,
    embedding_misses,
    kv_carry_over,
    lazy_evaluation,
    lazy_import,
    mask_bool,
    mask_construction,
    mask_coo,
    mask_csr,
    mask_naive,
    prefix_cache,
    sentence_boundaries,
    sentence_boundaries_list,
    shared_prefill,
    sliding_eviction,
    slot_overwriting,
    token_decoding,
    vectorised_replay,
    windowed_attention,
)

ALL = tuple(
    module.PAIR
    for module in (
        sentence_boundaries,
        sentence_boundaries_list,
        sliding_eviction,
        mask_construction,
        mask_bool,
        mask_naive,
        mask_coo,
        mask_csr,
        token_decoding,
        embedding_misses,
        lazy_evaluation,
        boundary_table,
        embedding_by_length,
        kv_carry_over,
        prefix_cache,
        shared_prefill,
        batched_forks,
        slot_overwriting,
        windowed_attention,
        vectorised_replay,
        block_sparse_kernel,
        lazy_import,
    )
)
