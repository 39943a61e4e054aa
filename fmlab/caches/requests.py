"""Request traces: read from a file and checked, and laid out as the block accesses that a cache sees."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import index
from os import PathLike
from typing import Any

from ..lines import json_lines

BLOCK = 512  # tokens, as in Mooncake's traces


@dataclass(frozen=True, eq=False)
class Accesses:
    """The block accesses of a trace, one after the other, as every cache of the lab reads them.

    `ids` holds the blocks of all requests in order, renumbered 0, 1, 2, … by first appearance; `distinct` counts them.
    Request r accesses ids[starts[r]:starts[r + 1]] and has `tokens[r]` tokens, `block` to a block, the last of which
    may be partly filled. Lay a trace out once with `accesses` to simulate it many times.
    """

    ids: list[int]
    distinct: int
    starts: list[int]
    tokens: list[int]
    block: int

    def __repr__(self) -> str:
        return (
            f"Accesses({len(self.tokens)} requests, {len(self.ids)} accesses to {self.distinct} blocks of {self.block})"
        )


def load_requests(path: str | PathLike[str], block: int = BLOCK) -> tuple[dict[str, Any], ...]:
    """The requests of a file with one JSON object a line, in Mooncake's format (FAST'25, arXiv:2407.00079).

    `hash_ids` name the blocks of `block` tokens that the prompt of `input_length` tokens fills: an id stands for a
    block and everything before it, so equal ids mean equal prefixes. Other fields (`timestamp`, `output_length`) are
    handed on. Raises FileNotFoundError, and ValueError for what is malformed, naming the line and the field: among it a
    number of ids that blocks of this size cannot have (a last, partly filled block may have an id or none).
    """
    _check_block(block)
    requests = []
    for where, request in json_lines(path, "a request"):
        ids, tokens = _fields(request, where)
        if not tokens // block <= len(ids) <= -(-tokens // block):
            raise ValueError(
                f"{where}: {len(ids)} hash_ids for input_length {tokens}, which fills {tokens / block:.2f} blocks of "
                f"{block}; name the trace's own block size with block=…, here and where it is simulated"
            )
        requests.append(request)
    if not requests:
        raise ValueError(f"{path} holds no request; give a file with one a line")
    return tuple(requests)


def accesses(requests: Iterable[Mapping[str, Any]], block: int = BLOCK) -> Accesses:
    """The accesses of requests: mappings with `hash_ids` (ints or strings) and `input_length` (tokens).

    Raises ValueError for a malformed request, naming its place and the field, for more blocks than its tokens fill, and
    where nothing is accessed.
    """
    _check_block(block)
    prompts, tokens = [], []
    for place, request in enumerate(requests):
        ids, length = _fields(request, f"requests[{place}]")
        if len(ids) > -(-length // block):
            raise ValueError(
                f"requests[{place}] has {len(ids)} blocks for {length} tokens, more than blocks of {block} tokens make; give "
                "block= as the trace has it"
            )
        prompts.append(ids)
        tokens.append(length)
    if not any(prompts):
        raise ValueError(f"{len(prompts)} requests access no block; give at least one request with hash_ids")
    number: dict[Any, int] = {}
    ids = [number.setdefault(name, len(number)) for name in chain.from_iterable(prompts)]
    return Accesses(ids, len(number), [0, *accumulate(map(len, prompts))], tokens, block)


def coarser(requests: Iterable[Mapping[str, Any]], factor: int) -> tuple[dict[str, Any], ...]:
    """The same requests in blocks `factor` times as large.

    An id stands for everything before it too, so a large block has the id of the last small one in it; one that the
    prompt fills partly has another id than one that is full. Raises ValueError for a factor below 1.
    """
    if factor < 1:
        raise ValueError(f"factor={factor}; give 1 or more small blocks to a large one")
    made = []
    for place, request in enumerate(requests):
        ids, tokens = _fields(request, f"requests[{place}]")
        full, rest = divmod(len(ids), factor)
        merged = [*ids[factor - 1 :: factor], *([ids[-1]] if rest else [])]
        made.append({**request, "hash_ids": merged, "input_length": tokens})
    return tuple(made)


def _fields(request: Any, where: str) -> tuple[list[Any], int]:
    """The two fields that count, checked."""
    if not isinstance(request, Mapping):
        raise ValueError(f"{where} is {request!r:.60}, not a mapping with hash_ids and input_length")
    if missing := [name for name in ("hash_ids", "input_length") if name not in request]:
        raise ValueError(f"{where} has no {', '.join(map(repr, missing))}; it has {', '.join(map(str, request))}")
    ids, tokens = request["hash_ids"], request["input_length"]
    if not isinstance(ids, list):  # the common case is taken as it is
        if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
            raise ValueError(f"{where}: 'hash_ids' is {ids!r:.60}, not a list of block ids")
        ids = list(ids)
    if not set(map(type, ids)) <= {int}:  # the common case at once, whatever else one by one
        ids = [_block_id(name, f"{where}: hash_ids[{at}]") for at, name in enumerate(ids)]
    tokens = _whole(tokens, f"{where}: 'input_length'")
    if tokens < max(len(ids), 1):
        raise ValueError(f"{where}: 'input_length' is {tokens}, too few tokens for a prompt of {len(ids)} blocks")
    return ids, tokens


def _block_id(name: Any, where: str) -> int | str:
    return name if isinstance(name, str) else _whole(name, where)


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{where} is {value!r:.60}, not a whole number")
    return index(value)


def _check_block(block: int) -> None:
    if isinstance(block, bool) or not hasattr(block, "__index__") or block < 1:
        raise ValueError(f"block={block!r}; give a whole number of tokens, 1 or more")
