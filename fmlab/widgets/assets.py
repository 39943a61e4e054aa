"""The JavaScript and the style sheet of the widgets, joined from their parts; nothing is fetched from a network."""

from pathlib import Path

STATIC = Path(__file__).parent / "static"
VIEW = ("dom", "raster", "map", "text", "view")


def script(*parts: str) -> str:
    """One ES module of the named files of static/, in that order; the last one holds the `export` or the start."""
    return "\n".join((STATIC / f"{part}.js").read_text(encoding="utf-8") for part in parts)


def style(*parts: str) -> str:
    """The named style sheets of static/, joined."""
    return "\n".join((STATIC / f"{part}.css").read_text(encoding="utf-8") for part in parts)
