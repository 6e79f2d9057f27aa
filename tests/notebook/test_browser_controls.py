"""Every control of the board, used in a real JupyterLab while a cell blocks; what happened is asked of the engine."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.notebook.browser import CHROMIUM, Page, browser_page, jupyter

CELLS = (
    "%load_ext txlab\nlab = %txserve {model}",
    """
import threading, time, tinker
from tinker import types
service = tinker.ServiceClient()
one, two = (
    service.create_lora_training_client(base_model=lab.model, rank=4, seed=1, user_metadata={{"name": name}}).result()
    for name in ("one", "two")
)
datum = types.Datum(
    model_input=types.ModelInput.from_ints([5, 6, 7]), loss_fn_inputs={{"target_tokens": [6, 7, 8]}})
for _ in range(3):
    one.forward_backward([datum], "cross_entropy").result()
    one.optim_step(types.AdamParams(learning_rate=1e-3)).result()
lab.pins.add("Hello", ["base"], max_tokens=2)
board = lab.board()
""",
    """
def adapter(name):
    return next((a for a in lab.status().view.adapters if a.name == name), None)

def tick():
    for number in range(10_000):
        lab.log("one", tick=number) if adapter("one") else None
        time.sleep(0.2)
threading.Thread(target=tick, daemon=True).start()  # the board is redrawn all the time

while adapter("two").state != "paused":
    pass  # computes
try:
    waiting = two.forward_backward([datum], "cross_entropy")
    time.sleep(2)  # it is on its way
    open("waiting", "w").close()
    waiting.result()  # blocks
    stopped = False
except Exception:
    stopped = True
while adapter("end") is None:
    time.sleep(0.05)
""",
    """
board.close()
end, fork = adapter("end"), adapter("a fork")
print("TOLD", dict(stopped=stopped, step=end.step, fork_step=fork.step, pins=len(lab.pins.view()),
    saved=len(lab.checkpoints('end')), state=adapter("two").state, options=repr(board._options)))
""",
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture
def notebook(tiny_llama: Path, lab_env: dict[str, str], tmp_path: Path) -> Iterator[Page]:
    cells = [code.format(model=tiny_llama) if i < 2 else code for i, code in enumerate(CELLS)]
    with (
        jupyter(tmp_path, lab_env, cells) as url,
        browser_page(url, tmp_path / "root" / "one.ipynb") as opened,
    ):
        yield opened


class Controls:
    """What a user does on the board."""

    def __init__(self, page: Any):
        self.page = page
        self.board = page.locator(".txlab-alive")

    def row(self, name: str) -> Any:
        """The row of an adapter."""
        return self.board.locator("tr", has=self.page.locator(".name", has_text=name))

    def use(self, row: Any, action: str, said: str) -> None:
        """Click a button in a row, and wait for what the board says then."""
        row.locator(f"[data-action={action}]").click()
        self.told(said)

    def told(self, said: str) -> None:
        """Wait for a notice."""
        self.board.locator("[role=status]", has_text=said).wait_for()

    def focused(self) -> str:
        """Action of the element that has the focus."""
        return self.page.evaluate("document.activeElement.dataset.action ?? document.activeElement.name")


def test_every_control_acts_while_a_cell_blocks(notebook: Page):
    page = notebook.page
    user = Controls(page)
    notebook.run_all()
    user.board.wait_for()
    one, two = user.row("one"), user.row("two")

    user.use(two, "pause", "two: paused")  # the cell computes
    user.board.locator("[data-action=metric]").select_option("tick")  # a curve that grows all the time
    two.locator(".pill", has_text="paused").wait_for()
    while not (notebook.path.parent / "waiting").exists():
        page.wait_for_timeout(50)
    user.use(two, "stop", "two: stopped")  # the cell waits for a result
    user.use(one, "pause", "one: paused")
    user.use(one, "resume", "one: goes on")
    user.use(one, "save", "one: saved as tinker://")

    one.locator("[data-action=more]").click()
    forms = user.board.locator("tr.forms").first
    forms.locator("form[data-action=fork] [name=name]").fill("a fork")
    tick = page.locator(".txlab-chart").text_content()
    page.wait_for_function("before => document.querySelector('.txlab-chart').textContent !== before", arg=tick)
    assert forms.locator("form[data-action=fork] [name=name]").input_value() == "a fork"
    assert user.focused() == "name"
    page.keyboard.press("Enter")
    user.told("one: forked as a fork")
    forms.locator("[name=step]").first.select_option("1")
    forms.locator("button[data-action=rewind], form[data-action=rewind] button").first.click()
    user.told("one: is back at step 1")
    one.locator("[data-action=more][aria-expanded=true]").wait_for()  # what was opened stays open

    settings = user.board.locator(".settings")
    settings.locator("[data-action=metric]").select_option("grad_norm")
    settings.locator("[data-action=x]").select_option("tokens")
    settings.locator("[data-action=log]").select_option("linear")
    settings.locator("[data-action=smoothing]").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    settings.locator("output", has_text="0.05").wait_for()
    assert user.focused() == "smoothing"
    user.board.locator("button[data-action=logprobs]").click()
    user.board.locator("button[data-action=logprobs][aria-pressed=true]").wait_for()
    one.locator("[data-action=hide]").focus()
    page.keyboard.press("Space")
    one.locator("[data-action=hide][aria-pressed=false]").wait_for()
    user.board.locator("[data-action=unpin]").click()
    user.told("Unpinned prompt 1.")

    forms.locator("form[data-action=rename] [name=name]").fill("end")
    page.keyboard.press("Enter")  # the cell ends

    page.get_by_text("TOLD").last.wait_for()
    told = ast.literal_eval(page.locator(".jp-OutputArea-output pre", has_text="TOLD").text_content().split(" ", 1)[1])
    options = told.pop("options")
    assert told == {"stopped": True, "step": 1, "fork_step": 3, "pins": 0, "saved": 1, "state": "stopped"}
    for part in ("metric='grad_norm'", "x='tokens'", "smoothing=0.05", "log=False", "logprobs=True"):
        assert part in options
    assert "hidden=frozenset()" not in options
    page.locator('.jp-OutputArea-output img[src^="data:image/svg+xml"]').wait_for()
    assert user.board.count() == 0, "the picture alone is left"
