import pytest
import torch

import fmlab as fm
from fmlab.core import Policy
from fmlab.policies import H2O, TOVA, KeyNorm, Random, SinkWindow, SnapKV
from fmlab.together import Together

IDS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(5))


class Fickle(Policy):
    """Looks at attention, from token 25 on at keys, and from token 32 on at positions alone."""

    def __init__(self):
        self.rows = []

    def score(self, view, stats):
        self.rows.append(len(view.layer))
        newest = int(view.positions.max())
        if newest < 25:
            return view.attention(1)[:, 0].masked_fill(view.age == 0, torch.inf)
        return view.keys.norm(dim=-1) if newest < 32 else -view.age.float()


def run(model, policy, ids, budget=8, first=12):
    logits = []
    with fm.finite(model, policy, budget) as cache:
        for part in (ids[:, :first], *ids[:, first:].split(1, 1)):
            logits.append(model(input_ids=part, past_key_values=cache).logits)
    return cache, torch.cat(logits, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    "policy", [SinkWindow(), Random(), KeyNorm(), H2O(), TOVA(), SnapKV(4, 3), Fickle()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("batch", [1, 2])
def test_all_layers_at_once_are_the_layers_one_by_one(policy, batch, monkeypatch):
    model, ids = fm.tiny().model, IDS[:batch]
    cache, logits = run(model, policy, ids)
    monkeypatch.setattr(Together, "worth", False)
    alone, expected = run(model, policy, ids)
    assert torch.equal(cache.expiry, alone.expiry)
    torch.testing.assert_close(logits, expected)
    assert (cache.nbytes, cache.overhead_nbytes) == (alone.nbytes, alone.overhead_nbytes)


@torch.no_grad()
def test_a_policy_is_asked_once_a_token_unless_it_reads_every_key():
    model, policy = fm.tiny().model, Fickle()
    run(model, policy, IDS[:1])
    layers, heads = model.config.num_hidden_layers, model.config.num_key_value_heads
    apart, together = [heads] * layers, [heads * layers]
    prefill, weights = apart, together * 13  # tokens 12 to 24
    keys = together + apart * 6  # the first time nobody could know
    positions = apart + together * 7
    assert policy.rows == prefill + weights + keys + positions
