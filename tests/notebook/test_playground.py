"""The playground, driven as its page drives it: what is asked of the engine, what is shown, and what stays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.notebook.parts import SECONDS, Parts, running, watch_batches
from txlab.engine.requests import UnloadAdapter
from txlab.notebook import playground as playground_module
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, serve
from txlab.notebook.panel import Action, Bundle
from txlab.notebook.pins import Pins
from txlab.notebook.playground import Playground
from txlab.notebook.views.playground_html import DEFAULTS


class Panel:
    """Stands for a panel on a page: keeps what is shown, and says when something came."""

    def __init__(self, label: str, regions: tuple[str, ...], on_action: Callable, on_look: Callable) -> None:
        self.act = on_action
        self.alive = self.greeted = True
        self.html: dict[str, str] = {}
        self.versions: list[str] = []  # of the answers
        self.pictures: list[Bundle] = []
        self.notice = ""
        self.closed = False
        self.changed = threading.Condition()

    def show(self, picture: Bundle, **html: str) -> None:
        self.pictures.append(picture)
        self.update(**html)

    def update(self, **html: str) -> int:
        with self.changed:
            self.html |= html
            self.versions.append(html["answers"])
            self.changed.notify_all()
        return 0

    def draw(self, picture: Bundle) -> None:
        with self.changed:
            self.pictures.append(picture)
            self.changed.notify_all()

    def notify(self, text: str) -> None:
        self.notice = text

    def close(self, picture: Bundle) -> None:
        self.draw(picture)
        self.closed = True

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(is_so, SECONDS), self.html


@pytest.fixture(autouse=True)
def in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground_module, "Panel", Panel)
    monkeypatch.setattr(playground_module, "running_kernel", lambda: object())
    monkeypatch.setattr(playground_module, "FRAME_SECONDS", 0.001)


@pytest.fixture(scope="module")
def parts(tiny_llama: Path) -> Iterator[Parts]:
    with running(tiny_llama) as parts:
        parts.adapter("run-1", "pirate").learn(5)
        parts.adapter("run-2", "poet").learn(5, rate=0.02)
        yield parts


@pytest.fixture
def shown(parts: Parts) -> Iterator[Playground]:
    playground = Playground(parts.serving, parts.bus, Pins(parts.bus, parts.engine))
    playground.show()
    yield playground
    playground.close()
    playground._pins.close()


def generate(
    playground: Playground, prompt: str = "one two", sources: tuple[str, ...] = ("base",), **fields: str
) -> None:
    """Fill the form in and send it; without a stop of its own, a text ends at its limit."""
    typed = {**DEFAULTS, "prompt": prompt, "stop": "none", **fields, "sources": list(sources)}
    playground._panel.act(Action("generate", fields=typed))


def act(playground: Playground, name: str, value: str | None = None, target: str | None = None, **fields) -> None:
    playground._panel.act(Action(name, value, target, {**DEFAULTS, **fields}))


def finished(playground: Playground, tokens: int) -> str:
    """The answers, once there are so many tokens in all."""
    panel = playground._panel
    panel.wait_until(lambda: f'status">{tokens} tokens<' in panel.html["answers"])
    return panel.html["answers"]


def test_all_that_are_chosen_answer_in_one_batch(
    shown: Playground, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = watch_batches(monkeypatch)
    generate(shown, sources=("base", "run-1", "run-2"), max_tokens="40", samples="2")
    html = finished(shown, 240)
    assert {None, "run-1", "run-2"} in batches
    assert [html.count(f'Answer of {name}"') for name in ("base", "pirate", "poet")] == [1, 1, 1]
    assert html.count("40 tokens · length") == 6
    assert "<mark>" in html, "adapters say what the base does not"
    assert not parts.engine._bank._snapshots


def test_answers_stream_while_adapters_train(shown: Playground, parts: Parts) -> None:
    pupil = parts.adapter("run-3", "pupil")
    enough = threading.Event()

    def train() -> None:
        while not enough.is_set():
            pupil.learn(1)

    training = threading.Thread(target=train)
    training.start()
    generate(shown, sources=("base", "run-3"), max_tokens="60")
    finished(shown, 120)
    enough.set()
    training.join()
    grown = [html for html in shown._panel.versions if "caret" in html]
    assert len(set(grown)) > 2, "it was seen to grow"
    parts.engine.ask(UnloadAdapter("run-3")).result(SECONDS)


def test_stop_keeps_what_there_is(shown: Playground) -> None:
    generate(shown, sources=("base", "run-1"), max_tokens="400")
    panel = shown._panel
    panel.wait_until(lambda: panel.html["answers"].count('caret"><') == 0 and "caret" in panel.html["answers"])
    act(shown, "stop")
    panel.wait_until(lambda: panel.html["answers"].count("· stopped") == 2)
    assert 'data-action="stop"' not in panel.html["answers"]


def test_the_next_prompt_ends_the_one_before(shown: Playground) -> None:
    generate(shown, "first", max_tokens="400")
    generate(shown, "second", max_tokens="3")
    finished(shown, 3)
    first, second = shown._rounds
    assert [draft.cancelled for draft in (*first.drafts, *second.drafts)] == [True, False]


def test_marks_and_shades_are_turned_on_and_off(shown: Playground) -> None:
    generate(shown, sources=("base", "run-1"), max_tokens="12", seed="1")
    panel = shown._panel
    assert "<mark>" in finished(shown, 24)
    act(shown, "logprobs", "true")
    panel.wait_until(lambda: 'class="lp' in panel.html["answers"])
    act(shown, "diff", "false")
    panel.wait_until(lambda: "<mark>" not in panel.html["answers"])
    act(shown, "logprobs", "false")
    panel.wait_until(lambda: 'class="lp' not in panel.html["answers"])


def test_adapters_come_and_go(shown: Playground, parts: Parts) -> None:
    panel = shown._panel
    assert panel.html["ask"].count(" checked>") == 3
    parts.adapter("run-4", "guest")
    panel.wait_until(lambda: 'value="run-4" checked>' in panel.html["ask"])
    parts.adapter("run-5", "fifth")
    panel.wait_until(lambda: 'value="run-5">' in panel.html["ask"])
    for model_id in ("run-4", "run-5"):
        parts.engine.ask(UnloadAdapter(model_id)).result(SECONDS)
    panel.wait_until(lambda: "run-4" not in panel.html["ask"] and "run-5" not in panel.html["ask"])
    generate(shown, sources=("base", "run-4"), max_tokens="2")
    assert "guest" not in finished(shown, 2)


def test_an_earlier_prompt_comes_back_with_its_answers(shown: Playground) -> None:
    panel = shown._panel
    generate(shown, "first <b>", ("run-1",), max_tokens="3", temperature="0.4")
    finished(shown, 3)
    generate(shown, "second", max_tokens="5")
    finished(shown, 5)
    act(shown, "recall", target="1")
    panel.wait_until(lambda: 'data-key="turn-1"' in panel.html["answers"])
    assert "Answer of pirate" in panel.html["answers"]
    assert 'data-key="ask-1"' in panel.html["ask"], "a new form: what was typed makes way"
    assert ">first &lt;b&gt;</textarea>" in panel.html["ask"]
    assert 'value="run-1" checked>' in panel.html["ask"]
    assert "<output>0.4</output>" in panel.html["ask"]
    assert panel.html["history"].count("<li") == 2
    act(shown, "recall", target="99")  # a page may be behind: nothing happens
    assert "Answer of pirate" in panel.html["answers"]


def test_the_history_is_bounded(shown: Playground) -> None:
    for i in range(playground_module.KEPT_ROUNDS + 3):
        generate(shown, f"prompt {i}", max_tokens="1")
    panel = shown._panel
    panel.wait_until(lambda: f"prompt {playground_module.KEPT_ROUNDS + 2}<" in panel.html["history"])
    assert panel.html["history"].count("<li") == playground_module.KEPT_ROUNDS
    assert "prompt 2<" not in panel.html["history"]


def test_a_slider_shows_its_value(shown: Playground) -> None:
    act(shown, "slide", "0.35", temperature="0.35", prompt="half typed")
    shown._panel.wait_until(lambda: "<output>0.35</output>" in shown._panel.html["ask"])
    assert "half typed" not in shown._panel.html["ask"], "the page keeps what is being typed"


def test_a_prompt_is_pinned(shown: Playground) -> None:
    act(shown, "pin", prompt="one two", sources=["run-1", "base"], every="5", max_tokens="4")
    assert shown._panel.notice.startswith("Pinned as number 1.")
    (pin,) = shown._pins._pins.values()
    assert (pin.prompt, pin.every, pin.only) == ("one two", 5, {"run-1", None})
    assert pin.request.params.temperature == 0
    act(shown, "pin", prompt="three", sources=["run-1"], seed="3", temperature="0.7", max_tokens="4")
    assert shown._pins._pins[2].request.params.temperature == 0.7
    assert shown._pins._pins[2].request.params.seed == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"max_tokens": "600"}, "context of this model is 512"),
        ({"max_tokens": "many"}, "Max tokens is 'many': expected a whole number"),
        ({"sources": ()}, "Nobody is asked: choose the base, or an adapter"),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(shown: Playground, fields: dict, said: str) -> None:
    with pytest.raises(TxlabError, match=said):  # a panel shows it
        generate(shown, **fields)


def test_one_that_fails_leaves_the_others_alone(
    shown: Playground, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.adapter("run-6", "late")
    choices = shown._choices()
    parts.engine.ask(UnloadAdapter("run-6")).result(SECONDS)
    monkeypatch.setattr(shown, "_choices", lambda: choices)  # as of before
    generate(shown, sources=("base", "run-6"), max_tokens="5")
    assert "model &#x27;run-6&#x27; is not there" in finished(shown, 5)
    assert "5 tokens · length" in shown._panel.html["answers"]


def test_quiet_it_leaves_a_picture_and_so_it_does_at_the_end(
    shown: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playground_module, "QUIET_SECONDS", 0.05)
    panel = shown._panel
    generate(shown, max_tokens="5")
    panel.wait_until(lambda: "5 tokens · length" in panel.pictures[-1]["text/html"])
    assert "base · 5 tokens · length" in panel.pictures[-1]["text/plain"]
    generate(shown, "another", max_tokens="400")
    shown.close()
    assert panel.closed
    assert "another" in panel.pictures[-1]["text/html"]
    assert "· sampling" not in panel.pictures[-1]["text/html"]
    assert repr(shown).startswith("another")
    count = len(panel.pictures)
    shown.close()
    assert len(panel.pictures) == count


def test_one_that_cannot_draw_harms_nobody(shown: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown._panel, "update", lambda **_: 1 / 0)
    generate(shown, max_tokens="5")
    (draft,) = shown._shown.drafts
    assert len(draft.result().sequences[0].tokens) == 5
    assert shown._thread.is_alive()


def test_a_terminal_is_told_what_to_use(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(playground_module, "running_kernel", lambda: None)
    playground = Playground(parts.serving, parts.bus, Pins(parts.bus, parts.engine))
    playground.show()
    playground.close()
    assert "lab.compare(prompt)" in capsys.readouterr().out


def test_a_lab_that_stops_ends_its_playground_and_pins(tiny_llama: Path, tmp_path: Path) -> None:
    lab = serve(str(tiny_llama), root=tmp_path)
    try:
        first = lab.playground()
        second = lab.playground()
        assert first._panel.closed, "an older one keeps its answers"
        assert not second._panel.closed
        lab.pins.add("one two", max_tokens=400, stop=[])
        generate(second, max_tokens="400")
    finally:
        lab.stop()
    assert second._panel.closed
    assert lab.pins._engine is None
    assert "· stopped" in second._panel.pictures[-1]["text/html"]
    with pytest.raises(TxlabError, match="stopped"):
        lab.playground()
    with pytest.raises(TxlabError, match="stopped"):
        _ = Lab(lab.settings).pins
