"""Request traces: what is read, what is refused and how it is named, larger blocks, and chats of our own making."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fmlab as fm
from fmlab.caches.chats import ChatTraffic
from fmlab.caches.requests import accesses, coarser, load_requests

GOOD = {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [7, 8, 9]}


def test_accesses_are_numbered_by_first_appearance():
    trace = accesses(
        [{"hash_ids": [9, "a"], "input_length": 700}, {"hash_ids": np.array([9, 4]), "input_length": 2000}]
    )
    assert (trace.ids, trace.distinct, trace.starts, trace.tokens) == ([0, 1, 0, 2], 3, [0, 2, 4], [700, 2000])
    assert repr(trace) == "Accesses(2 requests, 4 accesses to 3 blocks of 512)"


def test_a_file_is_read_with_all_its_fields(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"hash_ids": [7, 8]}) + "\n")
    assert load_requests(path) == (GOOD, GOOD | {"hash_ids": [7, 8]})  # the partly filled block may have no id


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is no JSON"),
        ("[" * 100_000, "line 2 is no JSON"),
        (json.dumps(GOOD).replace("1100", "1" * 5000), "line 2 is no JSON (Exceeds the limit"),
        ("[1]", "line 2 is [1], not a mapping with hash_ids and input_length"),
        ('{"input_length": 3}', "line 2 has no 'hash_ids'; it has input_length"),
        (json.dumps(GOOD | {"hash_ids": 3}), "line 2: 'hash_ids' is 3, not a list"),
        (json.dumps(GOOD | {"hash_ids": "abc"}), "line 2: 'hash_ids' is 'abc', not a list"),
        (json.dumps(GOOD | {"hash_ids": [1, 2.5, 3]}), "line 2: hash_ids[1] is 2.5, not a whole number"),
        (json.dumps(GOOD | {"hash_ids": [1, None, 3]}), "line 2: hash_ids[1] is None, not a whole number"),
        (json.dumps(GOOD | {"input_length": True}), "line 2: 'input_length' is True, not a whole number"),
        (json.dumps(GOOD | {"input_length": "1100"}), "line 2: 'input_length' is '1100', not a whole number"),
        (json.dumps(GOOD | {"input_length": 0, "hash_ids": []}), "line 2: 'input_length' is 0, too few"),
        (
            json.dumps(GOOD | {"input_length": 2}),
            "line 2: 'input_length' is 2, too few tokens for a prompt of 3 blocks",
        ),
        (
            json.dumps(GOOD | {"input_length": 48}),
            "line 2: 3 hash_ids for input_length 48, which fills 0.09 blocks of 512",
        ),
    ],
)
def test_what_is_malformed_is_named_by_line_and_field(tmp_path, line, says):
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(says)):
        load_requests(path)


def test_in_memory_the_place_is_named():
    with pytest.raises(ValueError, match=re.escape("requests[1]: 'input_length' is None, not a whole number")):
        accesses([GOOD, GOOD | {"input_length": None}])


def test_empty_traces_and_block_sizes_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no request"):
        load_requests(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="0 requests access no block"):
        accesses([])
    with pytest.raises(ValueError, match="1 requests access no block"):
        accesses([{"hash_ids": [], "input_length": 10}])
    with pytest.raises(ValueError, match="block=0"):
        accesses([GOOD], 0)
    finer = {"hash_ids": list(range(64)), "input_length": 1024}  # blocks of 16 tokens
    with pytest.raises(
        ValueError, match=r"requests\[1\] has 64 blocks for 1024 tokens, more than blocks of 512 tokens make"
    ):
        accesses([GOOD, finer])
    assert len(accesses([finer], 16).ids) == 64
    with pytest.raises(ValueError, match="factor=0"):
        coarser([GOOD], 0)
    with pytest.raises(FileNotFoundError):
        load_requests(tmp_path / "nowhere.jsonl")


def test_larger_blocks_are_those_that_the_chats_would_have_had():
    chats = ChatTraffic(chats=60, system_tokens=700)
    for factor in (2, 8):
        merged, direct = (
            accesses(coarser(chats.requests(3, block=64), factor), 64 * factor),
            accesses(chats.requests(3, block=64 * factor), 64 * factor),
        )
        assert merged.ids == direct.ids and merged.starts == direct.starts and merged.tokens == direct.tokens


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40, unique=True), st.integers(1, 9))
def test_a_larger_block_keeps_the_last_id_of_each(ids, factor):
    [merged] = coarser([{"hash_ids": ids, "input_length": 1000, "note": "x"}], factor)
    assert merged["hash_ids"] == [ids[min(k + factor, len(ids)) - 1] for k in range(0, len(ids), factor)]
    assert (merged["input_length"], merged["note"]) == (1000, "x")


def test_made_up_chats_are_a_trace_like_any_other(tmp_path):
    chats = ChatTraffic(chats=80)
    requests = chats.requests(seed=1)
    assert requests == chats.requests(seed=1) != chats.requests(seed=2)
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    assert load_requests(path) == requests
    times = [request["timestamp"] for request in requests]
    assert times == sorted(times) and len(requests) > 80
    assert all(len(set(request["hash_ids"])) == len(request["hash_ids"]) for request in requests)
    full = [ids[: request["input_length"] // 512] for request in requests for ids in [request["hash_ids"]]]
    before: dict[int, int] = {}
    for ids in full:  # an id stands for everything before it
        for parent, block in zip([-1, *ids], ids, strict=False):
            assert before.setdefault(block, parent) == parent
    assert fm.caches.simulate(requests, fm.caches.LRU(), None).token > 0.5


def test_a_chat_that_goes_on_finds_its_own_beginning():
    alone = ChatTraffic(chats=1, turns=1e6, pasted_every=10**9, context_tokens=20_000).requests()
    assert len(alone) > 20
    trace = accesses(alone)
    found = fm.caches.simulate(trace, fm.caches.LRU(), None)
    whole = sum(min(a["input_length"] // 512 * 512, b["input_length"]) for a, b in zip(alone, alone[1:], strict=False))
    assert found.token == whole / found.tokens


@pytest.mark.parametrize("field", [{"chats": 0}, {"turns": 0.5}, {"system_tokens": -1}, {"arrival_seconds": 0.0}])
def test_chats_that_cannot_be_are_refused(field):
    [[name, value]] = field.items()
    with pytest.raises(ValueError, match=f"{name}={value}; give"):
        ChatTraffic(**field)
    with pytest.raises(ValueError, match="block=0"):
        ChatTraffic(chats=1).requests(block=0)
