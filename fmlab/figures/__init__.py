"""Charts of a table, one function each: a data frame in, a plotly Figure out, and nothing is measured on the way."""

from .beside import ours_and_theirs
from .eight import attention_and_evictions
from .foretold import overlap_by_layer, replay_gap
from .grid import bytes_frontier, footprint_against_quality, quality_by_budget
from .hits import hit_ratio_by_capacity
from .look import COLOURS, CONFIG, DASHES, FULL, GRID, MARKERS, NEUTRAL, TEMPLATE, Style, styles
from .quality import (
    bytes_against_quality,
    mass_recall_by_budget,
    needle_heatmap,
    nll_by_budget,
    retention_by_depth,
)  # fmt: skip
from .recall import evidence_by_share, kept_by_third
from .regret import lost_by_depth, lost_tokens, regret_bars
from .sparsity import sparsity_pareto
from .speedups import speedup_by_size, speedups, waterfall

__all__ = [
    "COLOURS", "CONFIG", "DASHES", "FULL", "GRID", "MARKERS", "NEUTRAL", "TEMPLATE", "Style",
    "attention_and_evictions", "bytes_against_quality", "bytes_frontier", "evidence_by_share", "footprint_against_quality",
    "hit_ratio_by_capacity", "kept_by_third", "lost_by_depth", "lost_tokens", "mass_recall_by_budget",
    "needle_heatmap", "nll_by_budget", "ours_and_theirs", "overlap_by_layer",
    "quality_by_budget", "regret_bars", "replay_gap", "retention_by_depth", "sparsity_pareto",
    "speedup_by_size", "speedups", "styles", "waterfall",
]  # fmt: skip
