"""The notebook's face: the Explorer, the map alone or as HTML for a page, the turns of a conversation, curves of hit ratios, a bench."""

from .bench import Bench
from .explorer import Explorer, explore
from .export import Drawn, map_fragment, page
from .hits import HitCurves
from .map import RetentionMap
from .turns import Turns

__all__ = ["Bench", "Drawn", "Explorer", "HitCurves", "RetentionMap", "Turns", "explore", "map_fragment", "page"]
