"""A still of the map as PNG, for places where widgets do not run; written with the standard library alone."""

import struct
import zlib
from collections.abc import Sequence

from .wire import Run

GONE = (227, 227, 227)
SIDES = {"a": (0, 114, 178), "b": (213, 94, 0), "o": (0, 158, 115)}  # Okabe and Ito's blue, vermilion, green
GAP_PIXELS = 16


def still(runs: Sequence[Run], side_pixels: int = 360, sides: str = "abo") -> bytes:
    """The maps of some runs side by side, each in the colour of its side: rows are tokens, columns steps, white where not read yet."""
    panels = [
        _panel(run, colour, side_pixels) for run, colour in zip(runs, (SIDES[side] for side in sides), strict=False)
    ]
    gap = b"\xff" * 3 * GAP_PIXELS
    lines = [gap.join(bytes(panel[y].flatten().tolist()) for panel in panels) for y in range(side_pixels)]
    return png(lines)


def _panel(run: Run, colour: tuple[int, int, int], side: int):
    """(side, side, 3) colours from 0 to 255: the held share of what has been read, at every pixel's token and step."""
    heads, tokens = run.expiry.shape
    at = run.expiry.new_tensor(range(side)) * tokens // side  # the token of a row of pixels, the step of a column
    ends = run.expiry[:, at]  # (heads, rows of pixels)
    share = sum((end[:, None] > at).float() for end in ends) / heads
    read = at[:, None] <= at
    gone, held = share.new_tensor(GONE), share.new_tensor(colour)
    mixed = gone + (held - gone) * share[..., None]
    return mixed.masked_fill(~read[..., None], 255).round().int()


def png(lines: Sequence[bytes]) -> bytes:
    """Lines of 8-bit red, green, blue as a PNG file."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", len(lines[0]) // 3, len(lines), 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\x00" + line for line in lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
