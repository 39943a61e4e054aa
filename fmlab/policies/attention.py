"""Policies that look at attention: of all queries, of the last one, of a window of them, or of a chunk in both ways."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from ..core import Policy, Stats, View
from .nesting import remembered


@dataclass(frozen=True)
class H2O(Policy):
    """Heavy-hitter oracle (arXiv:2306.14048, algorithm 1): keep what has received most attention so far, and the newest.

    `recent` is the share of the budget that is pinned to the newest entries, a half in the paper; the rest goes to the
    largest sums of attention over all queries, updated at every decode step. A sum favours old entries: they have been
    looked at more often.
    """

    recent: float = 0.5

    def __post_init__(self):
        if not 0 <= self.recent <= 1:
            raise ValueError(f"recent={self.recent}; give a share of the budget from 0 to 1")

    def observe(self, view: View, stats: Stats) -> Stats:
        received = view.received()
        return {"received": stats["received"] + received if "received" in stats else received}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        newest = (view.budget * self.recent).long()
        return torch.where(view.age < newest[:, None], torch.inf, stats["received"])


@dataclass(frozen=True)
class ObservedAttention(Policy):
    """Keep what has received most attention a query: H2O's sum (arXiv:2306.14048) over the queries that saw the entry.

    The mean does not favour old entries as the sum does, but the newest have been looked at by few queries, themselves
    among them, so theirs is noisy. Nothing is pinned; `Pinned(ObservedAttention(), recent=...)` spares the newest. Every
    query counts, in prefill chunks and at one-token decode alike.
    """

    def observe(self, view: View, stats: Stats) -> Stats:
        received = view.received()
        return {"received": stats["received"] + received if "received" in stats else received}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        seen_by = view.age + 1
        if view.window is not None:  # behind the model's own window nobody looks any more
            seen_by = torch.minimum(seen_by, view.window[:, None])
        return stats["received"] / seen_by


@dataclass(frozen=True)
class Scissorhands(Policy):
    """Scissorhands (arXiv:2305.17118, algorithm 2): drop what the last `window` queries most often pay little.

    Little is less than an equal share, 1 / t where a query sees t entries. The `recent` newest entries are pinned. The
    paper drops half of the memory at a time; here the host drops what exceeds the budget, one entry a decode step. Calls
    of m < window queries, such as one-token decode, move the share of low marks by m / window, a running mean over about
    `window` queries; what a query did not see yet is not marked.
    """

    window: int = 32
    recent: int = 10

    def __post_init__(self):
        _check_window(self.window)
        if self.recent < 0:
            raise ValueError(f"recent={self.recent}; give 0 or more")

    def observe(self, view: View, stats: Stats) -> Stats:
        queries = min(self.window, view.new)
        hidden = view.hidden(view.new - queries, view.new)
        low = (view.weights(queries) * _visible(hidden)[:, None] < 1) & ~hidden[:, None]
        return _moved(stats, "low", low.float().mean((1, 2)), queries / self.window)

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return torch.where(view.age < self.recent, torch.inf, -stats["low"])


@dataclass(frozen=True)
class Finch(Policy):
    """Finch (TACL 2024, 10.1162/tacl_a_00716): keep what the question looks at, each of its queries weighted by what it sees.

    The question is taken to be the last `window` queries, which are pinned; attention thins out as a query sees more
    entries, so each row is multiplied by their number. Where nothing is asked yet (`view.query_aware` is False) these are
    simply the last tokens, as in SnapKV. Calls of m < window queries, such as one-token decode, move the mean by
    m / window. Positions stay the original ones; the paper numbers the kept keys anew.
    """

    window: int = 32

    def __post_init__(self):
        _check_window(self.window)

    def observe(self, view: View, stats: Stats) -> Stats:
        queries = min(self.window, view.new)
        seen = _visible(view.hidden(view.new - queries, view.new))
        return _moved(stats, "asked", (view.attention(last=queries) * seen).mean(1), queries / self.window)

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return torch.where(view.age < self.window, torch.inf, stats["asked"])


@dataclass(frozen=True)
class NonCausalAttention(Policy):
    """The attention of Compactor (arXiv:2507.08143): what an entry receives from its whole chunk, later queries or earlier.

    A call is cut into chunks of `chunk` tokens; in each every query attends to every key of the chunk, and what a key
    receives is summed, multiplied by the L2 norm of its value and averaged over `kernel` neighbours of the same call. The
    logits are q.k as in the authors' code, or times the model's own scaling with `scaled`. An entry is judged once, as
    it arrives. The mean over a chunk is 1 whatever its length, so a short last chunk is not inflated, and a token that
    comes alone, as in one-token decode, is worth the norm of its value. Nothing is pinned. The z-score of the paper
    changes no order within a head and is left out.
    """

    chunk: int = 256
    kernel: int = 3
    scaled: bool = False

    def __post_init__(self):
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}; give 1 or more tokens")
        _check_kernel(self.kernel)

    def observe(self, view: View, stats: Stats) -> Stats:
        worth = torch.linalg.vector_norm(view.new_values, dim=-1, dtype=torch.float32)
        if view.new > 1:
            keys, queries = view.new_keys.float(), view.queries.float()
            queries = queries.view(len(keys), -1, *queries.shape[1:]) * (view.scaling if self.scaled else 1)
            chunks = zip(queries.split(self.chunk, 2), keys.split(self.chunk, 1), strict=True)
            worth = worth * torch.cat([(q @ k[:, None].mT).softmax(-1).sum(2).mean(1) for q, k in chunks], -1)
            worth = avg_pool1d(worth, self.kernel, 1, self.kernel // 2, count_include_pad=False)
        return {"worth": remembered(view, stats.get("worth"), worth)}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return stats["worth"]


@dataclass(frozen=True)
class TOVA(Policy):
    """Token omission via attention (arXiv:2401.06104): drop what the last query looks at least.

    The attention is averaged over the heads of a layer, so they all keep the same tokens. The newest is pinned.
    """

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return torch.where(view.age == 0, torch.inf, view.mean_over_layer(view.attention(last=1)[:, 0]))


@dataclass(frozen=True)
class SnapKV(Policy):
    """SnapKV (arXiv:2404.14469): keep what the last `window` queries look at, smoothed over neighbours, and the window.

    The attention of these queries, causal inside the window, is averaged, average-pooled over `kernel` neighbours among
    the entries held before the window (zeros beyond the edge), and the window itself is pinned. The paper scores the
    prompt once. Here every call counts: one of at least `window` queries sets the average anew, as in the paper; one of
    m < window queries moves it by the share m / window. So a one-token decode step moves it by 1 / window, a running
    mean over about `window` steps.
    """

    window: int = 32
    kernel: int = 5

    def __post_init__(self):
        _check_window(self.window)
        _check_kernel(self.kernel)

    def observe(self, view: View, stats: Stats) -> Stats:
        queries = min(self.window, view.new)
        return _moved(stats, "looked_at", view.attention(last=queries).mean(1), queries / self.window)

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        in_window = view.age < self.window
        prefix = stats["looked_at"].masked_fill(in_window, 0)  # as zeros beyond the edge
        in_order = torch.empty_like(prefix).scatter_(-1, view.rank, prefix)
        around = pad(in_order, (self.kernel // 2, self.kernel // 2)).unfold(-1, in_order.shape[-1], 1)
        pooled = around.sum(-2) / self.kernel
        return pooled.gather(-1, view.rank).masked_fill(in_window, torch.inf)


def _moved(stats: Stats, name: str, mean: Tensor, share: float) -> Stats:
    """The column of that name moved towards `mean` by this share of the way, from zero where it is new."""
    return {name: stats[name].lerp(mean, share) if name in stats else mean * share}


def _visible(hidden: Tensor) -> Tensor:
    """How many entries each query sees, (heads, queries, 1)."""
    return hidden.shape[-1] - hidden.sum(-1, keepdim=True)


def _check_window(window: int) -> None:
    if window < 1:
        raise ValueError(f"window={window}; give 1 or more queries")


def _check_kernel(kernel: int) -> None:
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}; give an odd number of neighbours, 1 for no pooling")
