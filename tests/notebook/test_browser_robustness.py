"""Boards that are treated as people treat them: interrupted, reloaded while a cell runs, shown twice, restarted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.notebook.browser import CHROMIUM, Page, browser_page, jupyter

CELLS = (
    """
%load_ext txlab
lab = %txserve {model}
import time, tinker
from tinker import types
client = tinker.ServiceClient().create_lora_training_client(
    base_model=lab.model, rank=4, seed=1, user_metadata={{"name": "pupil"}}).result()
""",
    "board = lab.board()",
    """
datum = types.Datum(
    model_input=types.ModelInput.from_ints([5, 6, 7]), loss_fn_inputs={"target_tokens": [6, 7, 8]})
try:
    while True:
        client.forward_backward([datum], "cross_entropy").result()
        client.optim_step(types.AdamParams(learning_rate=1e-3)).result()
except KeyboardInterrupt:  # an error would end the cells that wait as well
    print("interrupted")
""",
    "print('adapters:', *(adapter.name for adapter in lab.adapters))",
)
BUSY = "[...document.querySelectorAll('.jp-InputPrompt')].some((prompt) => prompt.textContent.includes('*'))"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def use(page: Any, action: str, said: str) -> None:
    """Click a control of the only row, and wait for what the board says then."""
    board = page.locator(".txlab-alive").filter(visible=True)
    board.locator(f"tr [data-action={action}]").first.click()
    board.locator("[role=status]", has_text=said).wait_for()


def test_a_board_outlives_interrupts_reloads_second_runs_and_restarts(
    tiny_llama: Path, lab_env: dict[str, str], tmp_path: Path
):
    cells = [CELLS[0].format(model=tiny_llama).strip(), *(cell.strip() for cell in CELLS[1:])]
    with (
        jupyter(tmp_path, lab_env, cells) as url,
        browser_page(url, tmp_path / "root" / "one.ipynb") as notebook,
    ):
        page, boards = notebook.page, notebook.page.locator(".txlab-alive").filter(visible=True)
        picture = page.locator('.jp-OutputArea-output img[src^="data:image/svg+xml"]').filter(visible=True)
        for cell in range(3):
            run(notebook, cell)
        boards.wait_for()
        page.wait_for_function(BUSY)
        notebook.command("notebook:interrupt-kernel")
        page.get_by_text("interrupted", exact=True).first.wait_for()
        use(page, "save", "saved as tinker://")

        run(notebook, 2)
        page.wait_for_function(BUSY)
        notebook.save()
        page.reload()
        boards.wait_for()  # while the cell goes on
        assert picture.count() == 0
        before = boards.locator(".adapters").text_content()
        page.wait_for_function("before => document.querySelector('.adapters').textContent !== before", arg=before)
        use(page, "pause", "paused")
        notebook.command("notebook:interrupt-kernel")

        old = boards.element_handle()
        run(notebook, 1)  # once more: a new board in place of the old one
        old.wait_for_element_state("hidden")
        use(page, "resume", "goes on")
        assert boards.count() == 1
        run(notebook, 3)
        page.get_by_text("adapters: pupil", exact=True).wait_for()

        restart(notebook)
        picture.wait_for()
        run(notebook, 0)
        run(notebook, 1)
        boards.wait_for()
        use(page, "pause", "paused")


def run(notebook: Page, cell: int) -> None:
    """Start one cell, as Ctrl+Enter does; returns at once."""
    notebook.page.evaluate(f"window.jupyterapp.shell.currentWidget.content.activeCellIndex = {cell}")
    notebook.command("notebook:run-cell")


def restart(notebook: Page) -> None:
    """A new kernel, as the button in the toolbar makes it."""
    notebook.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.restartKernel(); 0")
