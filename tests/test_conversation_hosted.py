import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import fmlab as fm
from fmlab.conversation import Hosted
from fmlab.conversation.hosted import HostedError
from fmlab.conversation.state import Stats
from fmlab.weights import fetch


@dataclass(frozen=True)
class Everything:
    def select(self, spans, query=None):
        return list(spans)


class Server:
    """Answers every request with the same bytes, piece by piece, and then hangs up or keeps silent."""

    def __init__(self, *pieces, then="hang up", pause=0.0):
        self.pieces, self.then, self.pause = pieces, then, pause
        self.requests, self.left = [], threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self.listening.getsockname()[1]}/v1"
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while not self.over.is_set():
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection:
                try:
                    self.requests.append(self.read(connection))
                    for piece in self.pieces:
                        connection.sendall(piece)
                        time.sleep(self.pause)
                    while self.then != "hang up" and not self.over.wait(0.02):
                        connection.sendall(self.then)
                except OSError:
                    self.left.set()

    def read(self, connection):
        text = b""
        while b"\r\n\r\n" not in text:
            text += connection.recv(65536)
        head, _, body = text.partition(b"\r\n\r\n")
        length = int(next(line for line in head.lower().split(b"\r\n") if b"content-length" in line).split()[1])
        while len(body) < length:
            body += connection.recv(65536)
        return head.decode(), json.loads(body)


@contextmanager
def served(*pieces, hosted=None, **how):
    """A session with a server of this sort, and the server."""
    server = Server(*pieces, **how)
    settings = {"timeout": 5.0, "retries": 0} | (hosted or {})
    model = Hosted("some-model", server.base_url, "a-secret", fm.tiny().tokenizer, **settings)
    try:
        yield fm.ChatSession(model, Everything(), max_new_tokens=7), server
    finally:
        server.over.set()
        server.listening.shutdown(socket.SHUT_RDWR)
        server.listening.close()
        server.thread.join(5)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
STREAM = HEAD + b"\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def event(text=None, finish=None, **more):
    delta = {} if text is None else {"content": text}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    content = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices} | more
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def chunk(content):
    return b"%x\r\n%s\r\n" % (len(content), content)


WHOLE = (event("Hel"), event("lo 🙂"), event(finish="stop"))
DONE = b"data: [DONE]\n\n"


def test_a_prompt_goes_to_the_server_and_its_answer_into_the_conversation():
    with served(STREAM, *WHOLE, DONE, hosted={"extra": {"temperature": None, "seed": 3}}) as (chat, server):
        assert list(chat.stream("Hi?")) == ["Hel", "lo 🙂"]
        chat.send("And?")
        (head, body), (_, second) = server.requests
    assert head.startswith("POST /v1/chat/completions") and "authorization: bearer a-secret" in head.lower()
    assert body == {
        "model": "some-model",
        "messages": [{"role": "user", "content": "Hi?"}],
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 3,
    }
    assert second["messages"] == [*chat.messages[:2], {"role": "user", "content": "And?"}]
    assert chat.messages[1] == {"role": "assistant", "content": "Hello 🙂"}
    # Nothing was reported: what can be counted here is, the rest is unknown.
    kept = sum(span.tokens for span in chat.kept)
    assert (chat.stats.turns, chat.stats.kept) == (2, kept)
    assert (chat.stats.prefilled, chat.stats.reused, chat.stats.said, chat.stats.reused_in_all) == (None,) * 4


@pytest.mark.parametrize("bytes_a_piece", [1, 7])
def test_characters_split_by_the_network_are_whole(bytes_a_piece):
    text = b"".join(WHOLE)
    cut = [text[at : at + bytes_a_piece] for at in range(0, len(text), bytes_a_piece)]
    with served(STREAM, *cut) as (chat, _):
        assert chat.send("Hi?") == "Hello 🙂"


def test_figures_are_those_that_the_server_reports():
    usage = {"prompt_tokens": 50, "completion_tokens": 4, "total_tokens": 54}
    cached = usage | {"prompt_tokens_details": {"cached_tokens": 48}}
    more = usage | {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 48}}  # than the whole prompt
    for reported, figures in (
        (cached, (50, 2, 48, 4)),
        (usage, (50, None, None, 4)),
        (more, (5, None, None, 4)),
    ):
        with served(STREAM, *WHOLE, event(choices=[], usage=reported), DONE) as (chat, _):
            chat.send("Hi?")
            stats = chat.stats
            assert (stats.kept, stats.prefilled, stats.reused, stats.said) == figures


CUT = "7 characters in 2 pieces of the answer had come"


@pytest.mark.parametrize(
    ("pieces", "how", "message"),
    [
        ((CHUNKED, chunk(WHOLE[0]), chunk(WHOLE[1])), {}, CUT),
        ((CHUNKED, chunk(WHOLE[0]), chunk(WHOLE[1])[:-9]), {}, "some-model at http://127.0.0.1"),
        ((STREAM, *WHOLE[:2]), {}, f"the connection ended before the answer; {CUT}"),
        ((STREAM, *WHOLE[:2], DONE), {}, f"the connection ended before the answer; {CUT}"),
        ((STREAM, *WHOLE[:2], b'data: {"error": "out of memory"}\n\n'), {}, "out of memory.*7 characters"),
        ((STREAM, *WHOLE[:2], b"data: {cut\n\n"), {}, f"what it sent is no JSON .*{CUT}"),
        ((STREAM, *WHOLE[:2], b'data: {"x": "\xff"}\n\n'), {}, f"what it sent cannot be read .*{CUT}"),
        ((STREAM, *WHOLE[:2], event(choices=5)), {}, rf"what it sent cannot be read \(choices: 5\); {CUT}"),
        ((STREAM, *WHOLE[:2], event(5)), {}, rf"what it sent cannot be read \(content: 5\); {CUT}"),
        ((STREAM, *WHOLE[:2], event(["a"])), {}, rf"what it sent cannot be read \(content: \['a'\]\); {CUT}"),
        (
            (STREAM, *WHOLE[:2], event("?").replace(b"?", b"\\ud83d")),
            {},
            rf"what it sent cannot be read \(content: '\\ud83d'\); {CUT}",
        ),
        (
            (STREAM, event(""), event(finish="length"), event(choices=[]), DONE),
            {},
            "its answer has no text .finish_reason 'length'.; nothing of the answer had come",
        ),
        ((STREAM, event(finish="content_filter")), {}, "no text .finish_reason 'content_filter'."),
        ((STREAM, *WHOLE[:2]), {"then": b"", "hosted": {"timeout": 0.3}}, f"silent for 0.3 s; {CUT}"),
        ((STREAM, *WHOLE[:2]), {"then": b": ping\n\n", "hosted": {"limit": 0.4}}, f"not done within 0.4 s; {CUT}"),
        ((STREAM,), {"then": event("x"), "hosted": {"limit": 0.4}}, "not done within 0.4 s; .* characters in"),
        ((), {"then": b"", "hosted": {"timeout": 0.3}}, "silent for 0.3 s; nothing of the answer had come"),
        ((), {}, "nothing of the answer had come"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>",), {}, "nothing of the answer had come"),
        ((b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",), {}, "401"),
    ],
)
def test_an_answer_that_does_not_come_or_breaks_off_says_how_much_had_come(pieces, how, message):
    with served(*pieces, **how) as (chat, server):
        start = time.monotonic()
        with pytest.raises(HostedError, match=message):
            chat.send("Hi?")
        assert time.monotonic() - start < 4
        assert (chat.messages, chat.stats, chat.kept) == ([], Stats(), ())
        assert len(server.requests) == 1


def test_a_server_that_fails_is_asked_again_as_often_as_was_said():
    failing = b'HTTP/1.1 500 Oh\r\nContent-Length: 20\r\nConnection: close\r\n\r\n{"error": "no room"}'
    with served(failing, hosted={"retries": 1}) as (chat, server):
        with pytest.raises(HostedError, match="500.*no room.*nothing of the answer had come"):
            chat.send("Hi?")
        assert len(server.requests) == 2 and chat.messages == []


def test_a_server_that_is_not_there_is_no_endless_wait():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    model = Hosted("m", f"http://127.0.0.1:{port}/v1", "key", fm.tiny().tokenizer, retries=0)
    with pytest.raises(HostedError, match="Connection error.*nothing of the answer had come"):
        fm.ChatSession(model, Everything()).send("Hi?")


def test_a_stream_left_before_its_end_hangs_up():
    with served(STREAM, *WHOLE[:2], then=b": ping\n\n") as (chat, server):
        stream = chat.stream("Hi?")
        assert next(stream) == "Hel"
        stream.close()
        assert server.left.wait(5) and chat.messages == []


def test_a_turn_after_one_that_broke_off_is_as_if_it_had_not_been():
    with served(STREAM, *WHOLE) as (chat, server):
        chat.send("Hi?")
        before = (chat.messages, chat.stats, chat.kept)
        server.pieces = (STREAM, *WHOLE[:1])
        with pytest.raises(HostedError, match="3 characters in 1 pieces"):
            chat.send("Still there?")
        assert (chat.messages, chat.stats, chat.kept) == before
        server.pieces = (STREAM, *WHOLE[2:], DONE)
        with pytest.raises(HostedError, match="no text .finish_reason 'stop'."):
            chat.send("Still there?")
        assert (chat.messages, chat.stats, chat.kept) == before
        server.pieces = (STREAM, *WHOLE)
        assert chat.send("Still there?") == "Hello 🙂" and len(chat.messages) == 4


def test_keys_and_passwords_are_not_shown(tmp_path):
    for address in ("https://me:hidden@host/v1", "https://host/v1?key=hidden"):
        with pytest.raises(ValueError, match="base_url= of host holds a name or a query; .* as api_key") as refused:
            Hosted("m", address, "a-secret", fm.tiny().tokenizer)
        assert "hidden" not in str(refused.value)
    model = Hosted("m", "https://host:8443/v1", "a-secret", fm.tiny().tokenizer)
    assert (model.name, model.source) == ("m", "https://host:8443/v1")
    chat = fm.ChatSession(model, Everything())
    chat.save(tmp_path / "chat.json")
    for shown in (repr(model), repr(chat), (tmp_path / "chat.json").read_text()):
        assert "secret" not in shown


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": float("inf")},
        {"limit": -1},
        {"retries": -1},
        {"base_url": "localhost:80"},
        {"base_url": "http://"},
    ],
)
def test_settings_are_checked(wrong):
    model = Hosted("m", "http://localhost/v1", "key", fm.tiny().tokenizer)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        replace(model, **wrong)


def test_without_openai_the_line_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r'pip install "fmlab\[hosted\]"'):
        Hosted("m", "http://localhost/v1", "key", fm.tiny().tokenizer)


@pytest.fixture
def real_server(lm, tmp_path):
    """transformers' own server with the default model: its address and the model's name there."""
    folder, log = str(fetch()), tmp_path / "server.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    for _ in range(5):  # a port that was free may be another's by the time the server asks for it
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        line = [str(Path(sys.executable).with_name("transformers")), "serve", folder, "--host", "127.0.0.1"]
        with log.open("w") as out:
            process = subprocess.Popen(
                [*line, "--port", str(port), "--device", "cpu", "--dtype", "float32"],
                env=environment, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            if not answers(process, port):
                assert "address already in use" in log.read_text(), log.read_text()
                continue
            yield f"http://127.0.0.1:{port}/v1", folder
            return
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    pytest.fail("five ports that were free were taken when the server asked for them")


def answers(process: subprocess.Popen, port: int) -> bool:
    """Whether a server that is starting comes to answer; it ends where its port is taken."""
    end = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return process.poll() is None
        except OSError:
            time.sleep(0.2)
    return False


@pytest.mark.real
def test_a_real_server_answers_as_the_same_model_here(lm, real_server):
    address, name = real_server
    hosted = fm.ChatSession(Hosted(name, address, "none", lm.tokenizer), Everything(), "You are terse.", 10)
    local = fm.ChatSession(lm, Everything(), "You are terse.", 10)
    for text in ("Hello 🙂, who are you?", "What is two and three?"):
        pieces = list(hosted.stream(text))
        assert len(pieces) > 3 and "".join(pieces) == local.send(text)
        assert hosted.kept == local.kept and hosted.messages == local.messages
        # The server counts the tokens that were counted here; of cached ones it says nothing.
        assert (hosted.stats.kept, hosted.stats.said) == (local.stats.kept, local.stats.said)
        assert (hosted.stats.reused, hosted.stats.prefilled) == (None, None)
    with pytest.raises(HostedError, match="400"):
        fm.ChatSession(Hosted("another", address, "none", lm.tokenizer, retries=0), Everything()).send("Hi?")
