"""A notebook in a real JupyterLab (or Notebook 7), on a page of headless Chromium."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from tests.notebook.conftest import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
NOTEBOOKS_OWN = "reading 'schema'"  # a page error of Notebook 7, with any notebook
IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
LAB_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false"},
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells that are out of sight are there all the same
}


@dataclass
class Page:
    """The notebook on a page; ``page`` is Playwright's."""

    page: Any
    url: str
    path: Path  # of the notebook
    errors: list[str] = field(default_factory=list)  # of scripts on the page

    def open(self) -> None:
        """Load the page anew, and wait for its kernel."""
        self.page.goto(self.url)
        self.page.wait_for_function(IDLE)

    def command(self, name: str) -> None:
        """Start one of JupyterLab's commands."""
        self.page.evaluate(f"window.jupyterapp.commands.execute({name!r}); 0")

    def run_all(self) -> None:
        """Start all cells; returns at once."""
        self.command("notebook:run-all-cells")

    def save(self) -> nbformat.NotebookNode:
        """Write the notebook as it is seen; returns it."""
        self.page.evaluate("window.jupyterapp.commands.execute('docmanager:save').then(() => 0)")
        return nbformat.read(self.path, 4)

    def shut_down(self) -> None:
        """End the kernel."""
        self.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")


@contextmanager
def jupyter(folder: Path, env: dict[str, str], cells: Sequence[str], app: str = "lab") -> Iterator[str]:
    """Address of a notebook of these cells in a server of its own; ``app`` is lab or notebook."""
    root = folder / "root"
    root.mkdir(parents=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells], metadata=kernel)
    nbformat.write(notebook, root / "one.ipynb")
    for name, settings in LAB_SETTINGS.items() if app == "lab" else ():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    own = {"JUPYTERLAB_SETTINGS_DIR": folder / "settings", "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces"}
    own |= {"JUPYTER_CONFIG_DIR": folder / "config", "JUPYTER_RUNTIME_DIR": folder / "runtime"}
    port, token = free_port(), secrets.token_hex(8)
    command = [sys.executable, "-m", f"jupyter{app}" if app == "lab" else app, "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--expose-app-in-browser", f"--IdentityProvider.token={token}", "--LabApp.news_url="]
    with (folder / "log").open("w") as log:
        env = env | {name: str(path) for name, path in own.items()}
        server = subprocess.Popen([*command, f"--ServerApp.root_dir={root}"], env=env, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api/status?token={token}")
            place = "lab/tree" if app == "lab" else "notebooks"
            yield f"http://127.0.0.1:{port}/{place}/one.ipynb?token={token}&reset"
        finally:
            server.terminate()
            server.wait(30)


@contextmanager
def browser_page(url: str, path: Path, **options: Any) -> Iterator[Page]:
    """A page of the notebook at ``url``; its errors fail the test at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1600}, **options)
        page.set_default_timeout(120_000)
        opened = Page(page, url, path)
        page.on("pageerror", lambda error: NOTEBOOKS_OWN in str(error) or opened.errors.append(str(error)))
        opened.open()
        yield opened
        browser.close()
    assert not opened.errors, opened.errors


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            assert time.monotonic() < deadline, "the Jupyter server did not start"
            time.sleep(0.2)
