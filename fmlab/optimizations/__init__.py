"""What each optimisation is really worth: pairs of a plain and a fast way, proved equal and timed in turn."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(__name__, {"Floor": "pair", "Pair": "pair"})
