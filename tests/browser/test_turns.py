"""The Turns widget in a real JupyterLab, in a real Chromium: what a reader sees and does."""

import harness
import pytest

OPENING = "import fmlab as fm\nfrom fmlab.widgets import Turns\nC = fm.conversation\n"
SMALL = (
    OPENING
    + """
lm = fm.tiny()
said = ["The shed has a <script>document.title = 'broken'</script> sign.", "Noted.", "My key is number 42.", "Fine.",
        "The pump is green.", "Good.", "Rain again.", "Yes.", "Bye.", "Bye!"]
messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]
questions = [C.Question("What number is the key?", "42", (), "fact", (2,)), C.Question("Which colour?", "green", (), "fact", (4,))]
memories = {"Sliding": C.Sliding(1), "Random": C.Random(1), "BM25": C.BM25(1)}
view = Turns(C.spans(messages, lm.tokenizer), memories, questions, lm=lm, max_new_tokens=6)
view
"""
)
DIALOGUE = (
    OPENING
    + """
lm = fm.load("smollm2-135m")
dialogue = C.dialogues()[0]
encoder = fm.caches.EmbeddingCache(C.TokenEmbeddings(lm))
memories = {"Sliding": C.Sliding(1), "BM25": C.BM25(1), "Random": C.Random(1), "Semantic": C.Semantic(1, encoder)}
view = Turns(C.spans(dialogue.messages, lm.tokenizer), memories, dialogue.questions, lm=lm)
view
"""
)
SLOW = (
    OPENING
    + """
import threading
from dataclasses import dataclass
home = threading.Event()
@dataclass(frozen=True)
class Snail(C.Memory):
    def score(self, spans, query):
        home.wait()
        return fm.conversation.Random(1).score(spans, query)
lm = fm.tiny()
spans = C.spans([{"role": "user", "content": f"Turn {at}."} for at in range(12)], lm.tokenizer)
view = Turns(spans, {"Sliding": C.Sliding(1), "Snail": Snail(1)})
view
"""
)


def dropped(page, side: str) -> list[int]:
    """The places of the turns that are struck through."""
    return page.locator(f".fm-turns[data-side='{side}'] .fm-turn").evaluate_all(
        "(turns) => turns.flatMap((turn, at) => turn.classList.contains('fm-turn-gone') ? [at] : [])"
    )


def figures(page, side: str) -> str:
    return page.locator(f".fm-turn-column[data-side='{side}'] .fm-turn-figures").inner_text()


def await_state(page, side: str, state: str = "ready") -> None:
    page.locator(f".fm-turn-column[data-side='{side}'][data-state='{state}']").wait_for(timeout=30_000)


def await_all_stops(page) -> None:
    harness.execute(page, "view.wait()")
    for side in "ab":
        await_state(page, side)


def expected(page, side: int) -> list[int]:
    """What the kernel says is dropped."""
    code = f"print([at for at, span in enumerate(view.selections.spans) if span not in view.kept[{side}]])"
    return [int(at) for at in harness.execute(page, code).strip("[]\n ").split(",") if at]


def silent(page) -> list[str]:
    """The errors of the page's console from now on."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    return said


def test_the_slider_the_memory_and_the_question_change_what_is_kept(notebook):
    page = notebook(SMALL)
    console = silent(page)
    await_all_stops(page)
    assert "<script>" in page.locator(".fm-turn-text").first.inner_text()
    assert page.title() != "broken" and page.locator(".fm-turns script").count() == 0
    before = dropped(page, "a")
    assert len(before) > 5 and "query-blind" in figures(page, "a")
    page.locator(".fm-budget").focus()
    for _ in range(16):
        page.keyboard.press("ArrowRight")
    after = dropped(page, "a")
    assert len(after) < len(before)
    page.wait_for_timeout(400)
    assert harness.execute(page, "print(view.choice['stop'])").strip() == "20"
    assert after == expected(page, 0) and dropped(page, "b") == expected(page, 1)

    page.locator(".fm-memory-b").select_option(label="BM25")
    page.wait_for_function("() => document.querySelectorAll('.fm-turn-figures')[1].textContent.includes('query-aware')")
    assert 2 not in dropped(page, "b") and "evidence: 1 of 1 kept" in figures(page, "b")
    evidence = "(turns) => turns.flatMap((turn, at) => turn.classList.contains('fm-turn-evidence') ? [at] : [])"
    assert page.locator(".fm-turns[data-side='b'] .fm-turn").evaluate_all(evidence) == [2]
    page.locator(".fm-asked-question").select_option(value="Which colour?")
    assert page.locator(".fm-turns[data-side='b'] .fm-turn").evaluate_all(evidence) == [4]

    page.locator(".fm-aware").uncheck()
    await_state(page, "b", "error")
    assert "BM25 needs a query" in page.locator(".fm-turn-column[data-side='b'] .fm-error").inner_text()
    assert dropped(page, "b") == list(range(10))  # what it kept before is not what it keeps now
    await_state(page, "a")
    page.locator(".fm-aware").check()
    page.locator(".fm-asked-question").select_option(label="in your own words …")
    page.locator("input.fm-question").fill("Is there a sign on the shed?")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    await_all_stops(page)
    assert 0 not in dropped(page, "b") and dropped(page, "b") == expected(page, 1)
    assert page.locator(".fm-turn-evidence").count() == 0

    page.locator(".fm-ask-button").click()
    page.locator(".fm-answer").nth(1).wait_for(timeout=60_000)
    assert "no answer is on record" in page.locator(".fm-asked").inner_text()
    assert page.locator(".fm-verdict").count() == 0
    assert console == []


def test_a_slow_memory_shows_that_it_is_busy_and_holds_nothing_up(notebook):
    page = notebook(SLOW)
    await_state(page, "a")
    await_state(page, "b", "busy")
    assert figures(page, "b") == "choosing the turns …"
    before = dropped(page, "a")
    page.locator(".fm-budget").focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    assert "50%" in page.locator(".fm-value").inner_text()  # the slider has moved, and the page says so
    await_state(page, "b", "busy")
    while harness.execute(page, "print(view.choice['stop'])").strip() != "16":  # half of 32; it is told when idle
        page.wait_for_timeout(50)
    harness.execute(page, "home.set()")
    await_all_stops(page)
    assert dropped(page, "b") == expected(page, 1)
    assert len(dropped(page, "a")) < len(before)


@pytest.mark.real
def test_the_model_answers_from_what_each_memory_keeps(notebook, screenshot):
    page = notebook(DIALOGUE)
    console = silent(page)
    await_all_stops(page)
    screenshot(page, "turns")
    page.locator(".fm-ask-button").click()
    page.wait_for_function("() => document.querySelector('.fm-ask-button').disabled")
    page.locator(".fm-verdict").nth(1).wait_for(timeout=120_000)
    assert page.locator(".fm-answer-text").count() == 2
    assert all(page.locator(".fm-answer-text").all_inner_texts())
    page.locator(".fmlab").scroll_into_view_if_needed()
    screenshot(page, "turns-answered")
    assert console == []
