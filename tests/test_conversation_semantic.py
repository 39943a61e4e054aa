import math
from dataclasses import dataclass

import numpy as np
import pytest

import fmlab as fm
from fmlab.caches import EmbeddingCache
from fmlab.conversation import Random, Semantic, Sliding, Span, TokenEmbeddings
from fmlab.conversation.semantic import _turns


def talk(*texts):
    return [Span(text, 1, "user", (turn,)) for turn, text in enumerate(texts)]


@dataclass(frozen=True)
class Angles:
    """Texts are angles in degrees, so that closeness is what one sees."""

    def encode(self, texts):
        radians = np.radians([float(text or 0) for text in texts])
        return np.stack([np.cos(radians), np.sin(radians)], axis=1) * 7


# three topics, of 5, 4 and 3 turns
TOPICS = talk("0", "90", "4", "200", "6", "92", "210", "8", "97", "220", "12", "101")


def angles(selected):
    return [int(span.text) for span in selected]


def test_every_topic_is_represented_before_any_is_twice():
    memory = lambda budget: Semantic(budget, Angles(), clusters=3, recency=0.0)  # noqa: E731
    assert angles(memory(1).select(TOPICS)) == [6]
    assert angles(memory(2).select(TOPICS)) == [6, 97], "the largest topic first"
    assert angles(memory(3).select(TOPICS)) == [6, 210, 97]
    topics = [round(angle / 100) for angle in angles(memory(6).select(TOPICS))]
    assert [topics.count(topic) for topic in (0, 1, 2)] == [3, 2, 1], "and then by size"


def test_recency_chooses_among_the_close():
    assert angles(Semantic(3, Angles(), clusters=3, recency=5.0).select(TOPICS)) == [220, 12, 101]


def test_with_a_query_it_keeps_what_is_closest_to_it():
    assert angles(Semantic(3, Angles(), clusters=3).select(TOPICS, "94")) == [90, 92, 97]
    assert angles(Semantic(2, Angles(), recency=9.0).select(TOPICS, "204")) == [200, 210]


@dataclass(frozen=True)
class Noisy:
    """Vectors whose last bits depend on the place in the batch, as those of a padded batch do."""

    def encode(self, texts):
        place = np.arange(len(texts))[:, None]
        return Angles().encode(texts) * (1 + 1e-7 * np.array([[1, -1]]) * (place % 3 - 1))


def test_equal_texts_score_equally_and_the_noise_of_a_batch_decides_nothing():
    spans = talk("30", "50", "30", "30.000001", "30", "70", "30", "30")
    scores = Semantic(3, Noisy()).score(spans, "0")
    assert len(set(scores)) == 3 and scores.tolist() == Semantic(3, Angles()).score(spans, "0").tolist()
    kept = Semantic(3, Noisy()).select(spans, "0")
    assert [span.sources for span in kept] == [(4,), (6,), (7,)], "of equal ones the latest"


def test_it_is_neither_sliding_nor_random():
    spans = talk(*(f"{name} said {what}" for name in ("Ann", "Bo", "Cy") for what in ("yes", "no", "12.50", "ok then")))
    kept = Semantic(4, TokenEmbeddings(fm.tiny())).select(spans)
    assert kept != Sliding(4).select(spans) and kept != Random(4).select(spans)
    assert angles(Semantic(3, Angles()).select(TOPICS)) != angles(Sliding(3).select(TOPICS))


def test_the_best_of_each_label_then_in_proportion_to_their_sizes():
    labels = np.array([0, 1, 1, 0, 1, 2, 1])
    worth = np.array([0.1, 0.5, 0.9, 0.1, 0.7, 0.3, 0.5])
    # firsts: 1/8 of label 1, 1/4 of 0, 1/2 of 2; then label 1 at 3/8 and 5/8, label 0 at 3/4, label 1 at 7/8
    assert _turns(labels, worth).tolist() == [2, 3, 5, 4, 6, 0, 1]


def test_the_number_of_clusters_is_by_the_spans_and_never_beyond_what_differs():
    for texts, wanted, number in [
        (["5"], None, 1),
        (["5", "7"], 9, 2),
        (["5"] * 20, None, 1),
        (["5", "70"] * 20, None, 2),
        ([str(3 * n) for n in range(100)], None, math.ceil(math.sqrt(50))),
        ([""] * 4, None, 1),
    ]:
        labels, centres = Semantic(1, Angles(), clusters=wanted)._clustered(Angles().encode(texts))
        assert len(centres) == number == len(set(labels.tolist()))


def test_vectors_of_zeros_are_no_obstacle():
    class Silent:
        def encode(self, texts):
            return np.zeros((len(texts), 3))

    assert len(Semantic(2, Silent()).select(TOPICS)) == len(Semantic(2, Silent()).select(TOPICS, "x")) == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"clusters": 0}, "clusters=0"), ({"recency": -1.0}, "recency=-1.0"), ({"recency": float("nan")}, "recency=nan")],
)
def test_parameters_are_checked(wrong, said):
    with pytest.raises(ValueError, match=said):
        Semantic(5, Angles(), **wrong)


def test_what_is_no_encoder_is_refused():
    with pytest.raises(TypeError, match="'minilm' is no encoder; give an object with encode"):
        Semantic(5, "minilm")


def test_a_chat_with_a_cached_encoder_is_one_stretch():
    lm = fm.tiny()
    chat = fm.ChatSession(lm, Semantic(200, EmbeddingCache(TokenEmbeddings(lm))), max_new_tokens=4)
    for turn in range(3):
        chat.send(f"Question {turn}?")
    assert chat.memory.encoder.misses > 0
    assert [stretch.messages for stretch in chat.stretches] == [6]
    assert chat.stretches[0].memory == repr(chat.memory)
