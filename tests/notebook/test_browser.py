"""The board in a real notebook in headless Chromium: live, two at once, closed, and in the reopened notebook."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.notebook.browser import CHROMIUM, browser_page, jupyter

CELLS = (
    "%load_ext txlab\nlab = %txserve {model}",
    "import os, time, tinker\nfrom tinker import types\n"
    "client = tinker.ServiceClient().create_lora_training_client(base_model=lab.model, rank=4, seed=1,"
    " user_metadata={{'name': '<pupil>'}}).result()\nfirst = lab.board()",
    "second = lab.board()",
    "datum = types.Datum(\n"
    "    model_input=types.ModelInput.from_ints([5, 6, 7]), loss_fn_inputs={{'target_tokens': [6, 7, 8]}})\n"
    "while not os.path.exists('enough'):\n"
    "    client.forward_backward([datum], 'cross_entropy').result()\n"
    "    client.optim_step(types.AdamParams(learning_rate=1e-3)).result()\n"
    "    time.sleep(0.1)",
    "first.close()\nprint('closed', first._panel.alive, second._panel.alive)",
)
CHANGED = "before => document.querySelector('.txlab-alive .adapters').textContent !== before"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def needs_notebook(app: str) -> object:
    missing = importlib.util.find_spec("notebook") is None
    return pytest.param(app, marks=pytest.mark.skipif(missing, reason="Notebook 7 is not installed"))


@pytest.mark.parametrize("app", ["lab", needs_notebook("notebook")])
def test_boards_live_closed_and_reopened(app: str, tiny_llama: Path, lab_env: dict[str, str], tmp_path: Path):
    cells = [code.format(model=tiny_llama) for code in CELLS]
    with (
        jupyter(tmp_path, lab_env, cells, app) as url,
        browser_page(url, tmp_path / "root" / "one.ipynb") as notebook,
    ):
        page = notebook.page
        boards = page.locator(".txlab-alive")
        pictures = page.locator('.jp-OutputArea-output img[src^="data:image/svg+xml"]')
        notebook.run_all()
        boards.nth(1).wait_for()
        before = boards.first.locator(".adapters").text_content()
        assert "<pupil>" in before, "names are text, not markup"
        page.wait_for_function(CHANGED, arg=before)
        assert page.get_by_text("[*]:").count() > 0, "the cell is still busy"
        assert pictures.filter(visible=True).count() == 0
        (tmp_path / "root" / "enough").touch()

        page.get_by_text("closed False True").wait_for()
        pictures.first.wait_for()
        assert boards.count() == 1, "the other one lives on"
        saved = notebook.save()
        assert [o for cell in saved.cells for o in cell.get("outputs", []) if o.output_type == "error"] == []
        notebook.shut_down()
        pictures.nth(1).wait_for()  # in the open notebook as well

        notebook.open()
        page.get_by_text("Error displaying widget").wait_for(state="attached")
        pictures.nth(1).wait_for()
        assert page.get_by_text("Error displaying widget").filter(visible=True).count() == 0
        assert pictures.first.evaluate("image => image.naturalWidth") > 500
