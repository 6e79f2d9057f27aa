"""The board in a real JupyterLab in headless Chromium: live, finished, and in the reopened notebook."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from tests.notebook.conftest import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
CELLS = (
    "%load_ext txlab\nlab = %txserve {model}",
    "import time, tinker\nfrom tinker import types\n"
    "client = tinker.ServiceClient().create_lora_training_client(base_model=lab.model, rank=4, seed=1,"
    " user_metadata={{'name': '<pupil>'}}).result()\nboard = lab.board()",
    "datum = types.Datum(\n"
    "    model_input=types.ModelInput.from_ints([5, 6, 7]), loss_fn_inputs={{'target_tokens': [6, 7, 8]}})\n"
    "for _ in range(60):\n"
    "    client.forward_backward([datum], 'cross_entropy').result()\n"
    "    client.optim_step(types.AdamParams(learning_rate=1e-3)).result()\n"
    "    time.sleep(0.1)",
    "board.close()",
)
IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
BOARD = ".jp-OutputArea-output svg.txlab"
CHANGED = "([board, before]) => document.querySelector(board)?.textContent !== before"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture
def jupyterlab(tiny_llama: Path, lab_env: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """Address of a JupyterLab that has the notebook ``one.ipynb``."""
    cells = [nbformat.v4.new_code_cell(code.format(model=tiny_llama)) for code in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    root = tmp_path / "root"
    root.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "one.ipynb")
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false"}))
    own = {"JUPYTERLAB_SETTINGS_DIR": settings.parent.parent, "JUPYTERLAB_WORKSPACES_DIR": tmp_path / "workspaces"}
    own |= {"JUPYTER_CONFIG_DIR": tmp_path / "config", "JUPYTER_RUNTIME_DIR": tmp_path / "runtime"}
    port, token = free_port(), secrets.token_hex(8)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--expose-app-in-browser", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
    with (tmp_path / "log").open("w") as log:
        env = lab_env | {name: str(folder) for name, folder in own.items()}
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api/status?token={token}")
            yield f"http://127.0.0.1:{port}/lab/tree/one.ipynb?token={token}&reset"
        finally:
            server.terminate()
            server.wait(30)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            assert time.monotonic() < deadline, "JupyterLab did not start"
            time.sleep(0.2)


def test_the_board_live_finished_and_reopened(jupyterlab: str, tmp_path: Path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        page.set_default_timeout(120_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(jupyterlab)
        page.wait_for_function(IDLE)
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells'); 0")

        live = page.locator(BOARD)
        live.get_by_text("training", exact=True).or_(live.get_by_text("queued", exact=True)).first.wait_for()
        before = live.text_content()
        assert "<pupil>" in before, "names are text, not markup"
        page.wait_for_function(CHANGED, arg=[BOARD, before])
        assert page.get_by_text("[*]:").count() > 0, "the cell is still busy"

        picture = page.locator('.jp-OutputArea-output img[src^="data:image/svg+xml"]')
        picture.wait_for()
        page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
        page.wait_for_timeout(1500)
        page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        page.goto(jupyterlab)
        picture.wait_for()
        assert picture.evaluate("image => image.naturalWidth") > 500
        assert page.get_by_text("Error displaying widget").count() == 0
        browser.close()
    assert errors == []
    saved = nbformat.read(tmp_path / "root" / "one.ipynb", 4)
    assert [o for cell in saved.cells for o in cell.outputs if o.output_type == "error"] == []
