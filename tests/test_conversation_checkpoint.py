import json
import os
from dataclasses import asdict, dataclass, fields

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fmlab as fm
from fmlab.conversation import Memory, checkpoint
from fmlab.conversation.checkpoint import CheckpointError
from fmlab.conversation.state import Stats, Stretch


class Newest(Memory):
    def score(self, spans, query):
        return np.arange(1.0, len(spans) + 1)


class Oldest(Memory):
    def score(self, spans, query):
        return np.arange(len(spans), 0.0, -1)


@dataclass(frozen=True)
class Everything:
    def select(self, spans, query=None):
        return list(spans)


LM = fm.tiny()


def talk(turns=3, lm=LM, memory=Newest(160), system="Be kind. 🙂"):  # noqa: B008, frozen
    chat = fm.ChatSession(lm, memory, system, max_new_tokens=5)
    for turn in range(turns):
        chat.send(f"Question {turn}, a little longer?")
    return chat


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=25).filter(str.strip), max_size=4),
    system=st.none() | st.text(max_size=9),
    at=st.integers(0, 4),
)
def test_saved_and_loaded_it_goes_on_as_if_it_had_not_been(tmp_path, texts, system, at):
    straight, travelled = (fm.ChatSession(LM, Newest(260), system, max_new_tokens=4) for _ in range(2))
    for turn, text in enumerate([*texts, "And the last?"]):
        if turn == at:
            before = travelled
            travelled.save(tmp_path / "chat.json")
            travelled = fm.ChatSession.load(tmp_path / "chat.json", LM, Newest(260))
            assert (travelled.system, travelled.max_new_tokens) == (system, 4)
            for name in ("messages", "stats", "kept", "stretches"):
                assert getattr(travelled, name) == getattr(before, name)
        assert travelled.send(text) == straight.send(text)
    assert (travelled.messages, travelled.kept) == (straight.messages, straight.kept)
    assert travelled.stretches == straight.stretches
    # Its figures are its own: the KV cache was left behind.
    assert (
        travelled.stats.kept_in_all
        == straight.stats.kept_in_all
        == sum(figure or 0 for figure in (travelled.stats.prefilled_in_all, travelled.stats.reused_in_all))
    )


def test_another_model_or_memory_may_go_on_and_that_is_told(tmp_path):
    path = tmp_path / "chat.json"
    chat = talk(2)
    chat.save(path)
    first = Stretch(4, "tiny llama", "random weights, seed 0", repr(Newest(160)))
    assert chat.stretches == (first,)
    other = fm.tiny("qwen3", seed=3)
    resumed = fm.ChatSession.load(path, other, Oldest(200))
    assert resumed.stretches == (first,)
    resumed.send("And now?")
    resumed.send("And then?")
    second = Stretch(4, "tiny qwen3", "random weights, seed 3", repr(Oldest(200)))
    assert resumed.stretches == (first, second) and len(resumed.messages) == 8
    resumed.memory = Newest(160)
    resumed.send("And at last?")
    resumed.save(path)
    assert [stretch.messages for stretch in fm.ChatSession.load(path, LM, Newest(160)).stretches] == [4, 4, 2]


def test_tokens_are_counted_anew_by_the_tokenizer_that_goes_on(tmp_path):
    path = tmp_path / "chat.json"
    talk(2).save(path)
    other = fm.tiny()
    other.tokenizer.chat_template = "{% for m in messages %}<<{{ m['role'] }}>>{{ m['content'] }}{% endfor %}"
    fresh, resumed = (
        fm.ChatSession(other, Everything(), "Be kind. 🙂"),
        fm.ChatSession.load(path, other, Everything()),
    )
    resumed.send("Well?")
    said = sum(len(f"<<{m['role']}>>{m['content']}".encode()) for m in resumed.messages)
    assert resumed.stats.seen == fresh._opening.tokens + said


def test_what_a_server_did_not_report_stays_unknown(tmp_path):
    path = tmp_path / "chat.json"
    talk(1).save(path)
    content = json.loads(path.read_text())
    content["stats"] |= dict.fromkeys(checkpoint.UNKNOWN)
    path.write_text(json.dumps(content))
    stats = fm.ChatSession.load(path, LM, Newest(160)).stats
    assert {name for name, value in asdict(stats).items() if value is None} == checkpoint.UNKNOWN


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "chat.json"
    talk(1).save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut short; give a file that ChatSession.save wrote"):
            checkpoint.read(path)
    path.write_bytes(whole)
    assert len(checkpoint.read(path).messages) == 2


@pytest.mark.parametrize("foreign", [b"[]", b"{}", b'{"format": "other", "version": 2}', b"3"])
def test_a_foreign_file_is_refused(tmp_path, foreign):
    path = tmp_path / "chat.json"
    path.write_bytes(foreign)
    with pytest.raises(CheckpointError, match="is JSON, but no conversation of fmlab"):
        fm.ChatSession.load(path, LM, Newest(160))
    for no_json in (b"\x80\x04\x95pickle", b"[" * 100_000):
        path.write_bytes(no_json)
        with pytest.raises(CheckpointError, match="is no whole JSON"):
            fm.ChatSession.load(path, LM, Newest(160))
    with pytest.raises(FileNotFoundError):
        fm.ChatSession.load(tmp_path / "nothing", LM, Newest(160))


def as_version_1(content):
    """What the first version wrote of the same conversation."""
    (stretch,) = content.pop("stretches")
    return content | {"version": 1} | {name: stretch[name] for name in ("model", "source", "memory")}


def test_an_older_version_is_read_and_a_newer_one_refused(tmp_path):
    path = tmp_path / "chat.json"
    chat = talk(2)
    chat.save(path)
    content = json.loads(path.read_text())
    assert content["version"] == checkpoint.VERSION == 2
    path.write_text(json.dumps(as_version_1(dict(content))))
    old = fm.ChatSession.load(path, LM, Newest(160))
    for name in ("messages", "stats", "kept", "stretches", "system", "max_new_tokens"):
        assert getattr(old, name) == getattr(chat, name)
    assert old.send("Well?") == chat.send("Well?")
    path.write_text(json.dumps(content | {"version": 3}))
    with pytest.raises(CheckpointError, match="is of version 3, this fmlab reads 1 to 2; update fmlab"):
        fm.ChatSession.load(path, LM, Newest(160))
    for wrong in (0, -1, "2", None, True, 1.5):
        path.write_text(json.dumps(content | {"version": wrong}))
        with pytest.raises(CheckpointError, match="version is"):
            fm.ChatSession.load(path, LM, Newest(160))
    path.write_text(
        json.dumps({name: value for name, value in content.items() if name != "stretches"} | {"version": 1})
    )
    with pytest.raises(CheckpointError, match="model is missing"):
        fm.ChatSession.load(path, LM, Newest(160))


def test_every_field_is_checked_and_named(tmp_path):
    path = tmp_path / "chat.json"
    talk(1).save(path)
    whole = json.loads(path.read_text())
    names = [(name,) for name in whole if name not in ("format", "version")]
    names += [("stats", field.name) for field in fields(Stats)]
    names += [(each, 0, name) for each in ("messages", "kept", "stretches") for name in whole[each][0]]
    names += [("kept", 1, "sources", 0)]
    for *way, name in names:
        for wrong in (-1, True, {"x": 1}, 1.5):
            content = json.loads(json.dumps(whole))
            place = content
            for step in way:
                place = place[step]
            place[name] = wrong
            path.write_text(json.dumps(content))
            with pytest.raises(CheckpointError, match=str(name) if isinstance(name, str) else "sources"):
                checkpoint.read(path)
    whole["messages"][1]["role"] = "user"
    path.write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match=r"messages\[1\].role is 'user', out of turn"):
        checkpoint.read(path)
    whole["messages"].pop()
    path.write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match="stretches are not of the 1 messages"):
        checkpoint.read(path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_save_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "folder" / "chat.json"
    chat = talk(1)
    chat.save(path)
    before = path.read_bytes()
    chat.send("One more?")

    def fail(*args):
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(os, step, fail)
        with pytest.raises(OSError, match="the disk is full"):
            chat.save(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == ["chat.json"]
    chat.save(path)
    assert len(checkpoint.read(path).messages) == 4


def test_what_is_written_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    done = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)
        monkeypatch.setattr(os, step, lambda *args, step=step, real=real: done.append(step) or real(*args))
    (tmp_path / "real.json").write_text("")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    talk(1).save(tmp_path / "link.json")
    assert done[:2] == ["fsync", "replace"]
    assert (tmp_path / "link.json").is_symlink() and len(checkpoint.read(tmp_path / "real.json").messages) == 2


@pytest.mark.real
def test_the_real_model_goes_on_after_a_trip_to_the_disk(lm, tmp_path):
    straight = fm.ChatSession(lm, Newest(120), max_new_tokens=8)
    straight.send("My name is Ada. 🙂")
    straight.save(tmp_path / "chat.json")
    travelled = fm.ChatSession.load(tmp_path / "chat.json", lm, Newest(120))
    assert travelled.send("And yours?") == straight.send("And yours?")
    assert travelled.kept == straight.kept and travelled.messages == straight.messages
    assert travelled.stats.reused == 0 < straight.stats.reused
