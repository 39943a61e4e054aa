"""A record of some layers of the real model over real prose, of any number of tokens from 0 on."""

from dataclasses import replace

import torch

from ..record import record
from ..trace import Trace
from . import real


def recorded(tokens: int, layers: list[int], seed: int) -> Trace:
    """What these layers' attention was given in a stretch of prose that the seed draws, in float32.

    A model cannot read nothing, so a record of 0 tokens is one of 1 token, cut.
    """
    trace = record(real.lm(), real.text_ids(max(tokens, 1), seed), layers=layers, dtype=torch.float32)
    if tokens:
        return trace
    names = ("queries", "keys", "values", *(name for name, column in trace.columns.items() if column is not None))
    columns = {name: getattr(trace, name)[:, :, :0] for name in names}
    return replace(trace, ids=trace.ids[:0], tokens=(), **columns)
