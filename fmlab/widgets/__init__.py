"""The notebook's face: the Explorer, the map alone or as HTML for a page, the turns of a conversation, curves of hit ratios."""

from .explorer import Explorer, explore
from .export import Drawn, map_fragment, page
from .hits import HitCurves
from .map import RetentionMap
from .turns import Turns

__all__ = ["Drawn", "Explorer", "HitCurves", "RetentionMap", "Turns", "explore", "map_fragment", "page"]
