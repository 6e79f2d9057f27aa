"""The playground in a real JupyterLab in headless Chromium: used while a cell trains, finished, and reopened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.tiny import make_tiny
from tests.notebook.browser import CHROMIUM, browser_page, jupyter

CELLS = (
    "%load_ext txlab\nlab = %txserve {model}",
    """
import tinker
from pathlib import Path
from tinker import types
service = tinker.ServiceClient()
pupils = [
    service.create_lora_training_client(base_model=lab.model, rank=4, user_metadata={{"name": name}}).result()
    for name in ("<pirate>", "poet")
]
playground = lab.playground()
""",
    """
datum = types.Datum(
    model_input=types.ModelInput.from_ints([5, 6, 7]), loss_fn_inputs={{"target_tokens": [6, 7, 8]}})
while not Path("enough").exists():
    for pupil in pupils:
        pupil.forward_backward([datum], "cross_entropy").result()
        pupil.optim_step(types.AdamParams(learning_rate=0.0)).result()
""",
    "playground.close()\nprint('pinned', [pin.prompt for pin in lab.pins.view()])",
)
GROWN = "seen => document.querySelector('.txlab .answers .caret')?.textContent.length > seen"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def test_prompts_while_a_cell_trains(lab_env: dict[str, str], tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model", max_position_embeddings=8192)  # long answers, which can be stopped in time
    cells = [cell.format(model=model).strip() for cell in CELLS]
    root = tmp_path / "jupyter"
    with jupyter(root, lab_env, cells) as url, browser_page(url, root / "root" / "one.ipynb") as opened:
        page = opened.page
        page.set_default_timeout(120_000)
        opened.run_all()
        panel = page.locator(".txlab-panel.txlab")
        prompt, base = panel.get_by_role("textbox", name="Prompt"), panel.get_by_label("base", exact=True)
        prompt.fill("one two")
        base.uncheck()
        panel.get_by_label("Max tokens").fill("8000")
        panel.locator("[name=stop]").fill("§")  # in place of the model's own end, which may come early
        prompt.press("End")
        prompt.press("Enter")
        assert prompt.input_value() == "one two\n", "Enter begins a line, and sends nothing"
        assert panel.locator(".answers").count() == 0
        prompt.fill("one two")
        prompt.press("Control+Enter")

        page.wait_for_function(GROWN, arg=0)
        before = page.locator(".txlab .answers .caret").first.text_content()
        page.wait_for_function(GROWN, arg=len(before))
        answers = panel.locator(".answers > section")
        names = [answer.get_attribute("aria-label") for answer in answers.all()]
        assert names == ["Answer of <pirate>", "Answer of poet"]
        assert page.get_by_text("[*]:").count() > 0, "the cell is still busy"
        panel.get_by_role("button", name="Stop", exact=True).click()
        answers.get_by_text("stopped").nth(1).wait_for()
        panel.get_by_label("Shade by probability").check()
        answers.locator("span[title]").first.wait_for()

        panel.get_by_label("Max tokens").fill("3")
        panel.get_by_role("button", name="Pin to board").click()
        panel.get_by_text("Pinned as number 1").wait_for()

        prompt.fill("three")
        base.check()
        panel.get_by_role("button", name="Generate").click()
        answers.nth(2).wait_for()
        prompt.fill("four")
        prompt.press("Meta+Enter")
        panel.get_by_role("button", name="four").wait_for()
        panel.get_by_role("button", name="one two").click()
        answers.get_by_text("stopped").nth(1).wait_for()
        assert prompt.input_value() == "one two"
        assert not base.is_checked()
        assert page.get_by_text("[*]:").count() > 0, "the cell was busy all the time"

        (root / "root" / "enough").touch()
        page.get_by_text("pinned ['one two']").wait_for()
        picture = page.get_by_label("playground", exact=True)
        picture.get_by_text("stopped").first.wait_for()
        opened.save()
        opened.shut_down()
        opened.open()
        picture.get_by_text("Earlier prompts (2)").click()
        picture.get_by_label("Answer of poet").nth(1).wait_for()
        saved = opened.save()
    assert [cell.execution_count for cell in saved.cells] == [1, 2, 3, 4], "no key ran a cell again"
    assert [o for cell in saved.cells for o in cell.outputs if o.output_type == "error"] == []
