"""What every policy keeps of numbers drawn once: a change of behaviour shows here first."""

import pytest
import torch
from drawn import drawn

import fmlab as fm
from fmlab.policies import (
    CUR,
    H2O,
    TOVA,
    ChunkKV,
    CriticalKV,
    DuoAttention,
    ExpectedAttention,
    Finch,
    KeyDiff,
    KeyNorm,
    KVZip,
    LagKV,
    LeverageScore,
    NonCausalAttention,
    ObservedAttention,
    Pinned,
    Random,
    Scissorhands,
    SimLayerKV,
    SinkWindow,
    SlidingWindow,
    SnapKV,
    ValueWeighted,
)

# policy and budget: what the two heads of the second layer hold at the end, and a sum over all expiries
GOLDEN = {
    (SlidingWindow(), 5): ([[19, 20, 21, 22, 23], [19, 20, 21, 22, 23]], 85244),
    (SinkWindow(sinks=4), 7): ([[0, 1, 2, 3, 21, 22, 23], [0, 1, 2, 3, 21, 22, 23]], 87896),
    (Random(seed=0), 5): ([[0, 9, 17, 20, 22], [0, 1, 3, 7, 19]], 83423),
    (Random(seed=3), 5): ([[3, 10, 11, 14, 23], [5, 11, 12, 16, 20]], 83713),
    (KeyNorm(), 3): ([[12, 14, 16], [1, 2, 4]], 78905),
    (KeyNorm(), 8): ([[1, 2, 12, 14, 16, 18, 21, 23], [1, 2, 4, 6, 13, 15, 22, 23]], 90631),
    (H2O(recent=0.5), 4): ([[0, 1, 22, 23], [0, 3, 22, 23]], 81279),
    (H2O(recent=0.5), 9): ([[0, 1, 2, 4, 8, 20, 21, 22, 23], [0, 1, 2, 3, 5, 20, 21, 22, 23]], 92727),
    (TOVA(), 4): ([[18, 21, 22, 23], [18, 21, 22, 23]], 82378),
    (TOVA(), 9): ([[0, 3, 11, 13, 15, 20, 21, 22, 23], [0, 3, 11, 13, 15, 20, 21, 22, 23]], 93800),
    (SnapKV(window=3, kernel=3), 5): ([[4, 7, 21, 22, 23], [17, 18, 21, 22, 23]], 84652),
    (SnapKV(window=3, kernel=3), 9): ([[3, 4, 5, 7, 8, 9, 21, 22, 23], [4, 6, 7, 9, 17, 18, 21, 22, 23]], 93275),
    (ObservedAttention(), 5): ([[0, 4, 13, 20, 22], [0, 3, 14, 17, 23]], 83367),
    (ObservedAttention(), 9): ([[0, 1, 2, 3, 4, 8, 13, 20, 22], [0, 1, 2, 3, 5, 6, 7, 17, 23]], 91846),
    (Scissorhands(window=4, recent=2), 5): ([[19, 20, 21, 22, 23], [18, 20, 21, 22, 23]], 84959),
    (Scissorhands(window=4, recent=2), 9): (
        [[4, 13, 15, 18, 19, 20, 21, 22, 23], [11, 14, 17, 18, 19, 20, 21, 22, 23]],
        94345,
    ),
    (Finch(window=3), 5): ([[4, 13, 21, 22, 23], [7, 17, 21, 22, 23]], 84468),
    (Finch(window=3), 9): ([[0, 3, 4, 8, 13, 20, 21, 22, 23], [0, 3, 6, 7, 16, 17, 21, 22, 23]], 93319),
    (NonCausalAttention(chunk=5), 5): ([[5, 9, 12, 18, 19], [6, 7, 15, 16, 19]], 83469),
    (NonCausalAttention(chunk=256, kernel=1, scaled=True), 9): (
        [[0, 4, 8, 12, 16, 17, 18, 19, 22], [3, 7, 10, 12, 14, 15, 16, 18, 19]],
        92948,
    ),
    (KeyDiff(), 4): ([[0, 12, 13, 22], [0, 12, 14, 16]], 81332),
    (KeyDiff(), 9): ([[0, 1, 2, 4, 9, 10, 11, 16, 17], [0, 5, 6, 10, 14, 15, 17, 20, 22]], 92531),
    (LagKV(sinks=2, lag=3), 8): ([[0, 1, 16, 19, 20, 21, 22, 23], [0, 1, 16, 17, 20, 21, 22, 23]], 91413),
    (LagKV(sinks=1, lag=4), 12): (
        [[0, 4, 8, 9, 16, 17, 18, 19, 20, 21, 22, 23], [0, 3, 7, 11, 16, 17, 18, 19, 20, 21, 22, 23]],
        100633,
    ),
    (LeverageScore(), 4): ([[8, 13, 20, 22], [11, 17, 18, 19]], 81355),
    (LeverageScore(sketch=2), 9): ([[0, 3, 4, 5, 8, 11, 13, 17, 22], [3, 5, 10, 11, 14, 16, 17, 19, 21]], 92710),
    (CUR(), 6): ([[0, 1, 2, 3, 19, 22], [0, 1, 2, 3, 16, 19]], 84941),
    (CUR(leverage="mean", block=4, sinks=1, sketch=3, seed=2), 9): (
        [[0, 2, 5, 6, 8, 13, 17, 19, 22], [0, 3, 7, 9, 10, 14, 19, 22, 23]],
        92815,
    ),
    (ExpectedAttention(), 6): ([[0, 1, 2, 3, 18, 19], [0, 1, 2, 3, 16, 19]], 84981),
    (ExpectedAttention(horizon=16, sinks=0, covariance=False, window=4), 9): (
        [[0, 2, 8, 9, 10, 13, 19, 20, 22], [7, 10, 12, 14, 15, 16, 18, 19, 21]],
        92983,
    ),
    (KVZip(), 5): ([[7, 8, 11, 16, 18], [5, 14, 16, 17, 23]], 83594),
    (KVZip(), 9): ([[0, 7, 8, 9, 11, 14, 16, 18, 21], [3, 5, 8, 10, 14, 15, 16, 17, 23]], 92979),
    (ChunkKV(policy=SnapKV(window=3, kernel=3), chunk=4), 9): (
        [[12, 13, 14, 15, 19, 20, 21, 22, 23], [15, 16, 17, 18, 19, 20, 21, 22, 23]],
        94143,
    ),
    (ChunkKV(policy=TOVA(), chunk=3, shared=True), 7): (
        [[15, 16, 17, 18, 19, 20, 23], [15, 16, 17, 18, 19, 20, 23]],
        88786,
    ),
    (CriticalKV(policy=SnapKV(window=3, kernel=3)), 5): ([[8, 17, 21, 22, 23], [7, 14, 21, 22, 23]], 84671),
    (CriticalKV(policy=H2O(recent=0.5), share=0.25), 9): (
        [[0, 1, 2, 4, 8, 20, 21, 22, 23], [0, 1, 2, 3, 7, 20, 21, 22, 23]],
        92791,
    ),
    (ValueWeighted(), 5): ([[0, 2, 8, 22, 23], [0, 1, 3, 22, 23]], 83359),
    (ValueWeighted(policy=ObservedAttention(), order=2), 9): (
        [[0, 2, 4, 8, 9, 13, 17, 20, 22], [0, 1, 3, 6, 7, 10, 14, 17, 23]],
        91862,
    ),
    (Pinned(policy=KeyNorm(), sinks=1, recent=2), 5): ([[0, 14, 16, 22, 23], [0, 1, 4, 22, 23]], 83816),
    (Pinned(policy=KeyDiff(), sinks=2, recent=4), 9): (
        [[0, 1, 15, 16, 19, 20, 21, 22, 23], [0, 1, 15, 16, 18, 20, 21, 22, 23]],
        93641,
    ),
    (DuoAttention(policy=H2O(recent=0.5), sinks=2, recent=3), 5): ([[0, 1, 21, 22, 23], [0, 1, 3, 22, 23]], 83567),
    (DuoAttention(policy=ObservedAttention(), by="area", sinks=2, recent=3), 9): (
        [[0, 1, 2, 3, 4, 8, 13, 20, 22], [0, 1, 17, 18, 19, 20, 21, 22, 23]],
        92932,
    ),
    (SimLayerKV(policy=H2O(recent=0.5), threshold=0.5, sinks=2, recent=3), 5): (
        [[0, 1, 21, 22, 23], [0, 1, 21, 22, 23]],
        83892,
    ),
    (SimLayerKV(policy=KeyNorm(), threshold=0.6, recent=2), 9): (
        [[0, 1, 2, 3, 19, 20, 21, 22, 23], [0, 1, 2, 3, 19, 20, 21, 22, 23]],
        93044,
    ),
}


@pytest.mark.parametrize(("policy", "budget"), GOLDEN, ids=str)
def test_golden(policy, budget):
    expiry = fm.replay(drawn(), policy, budget, prefill=12)
    held = [row.nonzero().flatten().tolist() for row in (expiry[1] == 25)]
    assert (held, int(expiry.flatten() @ torch.arange(expiry.numel()))) == GOLDEN[policy, budget]
