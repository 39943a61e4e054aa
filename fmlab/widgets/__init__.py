"""The notebook's face: the Explorer, its map alone or as HTML, a conversation's turns, hit ratios, a bench, attention by blocks."""

from .bench import Bench
from .explorer import Explorer, explore
from .export import Drawn, map_fragment, page
from .hits import HitCurves
from .map import RetentionMap
from .sparsity import Sparsity
from .turns import Turns

__all__ = [
    "Bench",
    "Drawn",
    "Explorer",
    "HitCurves",
    "RetentionMap",
    "Sparsity",
    "Turns",
    "explore",
    "map_fragment",
    "page",
]
