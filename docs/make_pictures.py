"""Draws docs/pictures: the board in a real JupyterLab, with 1, 8 and 64 adapters, live, finished and reopened.

Needs Chromium, Pillow and some minutes: the adapters really train. ``python docs/make_pictures.py [1 8 64]``
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.notebook.browser import Page, browser_page, jupyter  # noqa: E402

PICTURES = Path(__file__).with_name("pictures")
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
SIZE = {"width": 1080, "height": 2200}  # of the page: a whole board fits
COLORS = 256  # of a palette, the most frequent: a picture takes some tens of kilobytes, and its areas stay as they are
ROUNDS = {1: 40, 8: 16, 64: 5}  # of optimizer steps
LIVE_AFTER = 0.67  # of the rounds

START = """
%load_ext txlab
lab = %txserve
"""
MAKE = """
import numpy as np, tinker
from tinker import types

PHRASES = {{"banana split": "anana-bay plit-say", "donut shop": "onut-day op-shay", "rubber duck": "ubber-ray uck-day"}}
NAMES = ["pig latin", "low rank", "small steps", "large steps", "attention only", "all layers", "one example", "late"]
service = tinker.ServiceClient()
clients = {{}}
for n in range({count}):
    name = NAMES[n] if n < len(NAMES) else f"sweep {{n:02d}}"
    rank = 32 if n == 0 else (4, 8, 16)[n % 3]
    asked = dict(rank=rank, seed=n, train_mlp=n != 4, user_metadata={{"name": name}})
    clients[name] = service.create_lora_training_client(base_model=lab.model, **asked).result()
tokenizer = clients["pig latin"].get_tokenizer()

def datum_of(english, answer):
    prompt, learned = tokenizer.encode(f"English: {{english}}\\nPig Latin:"), tokenizer.encode(f" {{answer}}\\n")
    tokens, weights = prompt + learned, [0.0] * (len(prompt) - 1) + [1.0] * len(learned)
    return types.Datum(types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs={{
        "target_tokens": np.array(tokens[1:]), "weights": np.array(weights, np.float32)}})

data = [datum_of(*phrase) for phrase in PHRASES.items()]
"""
BOARD = "board = lab.board()"
TRAIN = """
prompt = "English: coffee break\\nPig Latin:"
pin = lab.pins.add(prompt, adapters=["pig latin"], every=max(1, {rounds} // 4), max_tokens=10, stop=["\\n"])
for n in range({rounds}):
    sent = []
    for k, client in enumerate(clients.values()):
        rate = (1e-3, 1e-3, 2e-4, 4e-3, 1e-3, 1e-3)[k % 6]
        client.forward_backward(data[:1] if k == 6 else data, "cross_entropy")
        sent.append(client.optim_step(types.AdamParams(learning_rate=rate)))
    for future in sent:
        future.result()
    if n % 4 == 3:
        lab.sample(prompt, list(clients)[n // 4 % len(clients)], max_tokens=16, temperature=0.0, stop=["\\n"])
    if n == int({rounds} * {share}):
        print("two thirds")
"""
CLOSE = "board.close()"
ENDED = "![...document.querySelectorAll('.jp-InputPrompt')].some((prompt) => prompt.textContent.includes('*'))"


def main(counts: list[int]) -> None:
    PICTURES.mkdir(exist_ok=True)
    for count in counts:
        rounds = ROUNDS[count]
        train = TRAIN.format(rounds=rounds, share=LIVE_AFTER)
        cells = [START, MAKE.format(count=count), BOARD, train, CLOSE]
        with tempfile.TemporaryDirectory() as folder:
            env = os.environ | {"TXLAB_HOME": f"{folder}/home", "TINKER_TELEMETRY": "0"}
            with (
                jupyter(Path(folder) / "jupyter", env, [cell.strip() for cell in cells]) as url,
                browser_page(url, Path(folder) / "jupyter" / "root" / "one.ipynb") as page,
            ):
                for phase in phases(page):
                    shoot(page, f"{count}-{phase}")


def phases(page: Page) -> Iterator[str]:
    """Names of what is on the page, one after the other."""
    page.page.set_default_timeout(1_200_000)
    page.page.set_viewport_size(SIZE)
    page.command("application:toggle-left-area")
    page.run_all()
    page.page.get_by_text("two thirds", exact=True).first.wait_for()
    yield "live"
    page.page.wait_for_function(ENDED)
    time.sleep(2)
    yield "finished"
    page.save()
    page.shut_down()
    page.open()
    yield "reopened"


def shoot(page: Page, name: str) -> None:
    """The board's output, in each theme."""
    for theme, title in THEMES.items():
        page.page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: {title!r}}})")
        time.sleep(1.5)
        board = page.page.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea").first
        save(board.screenshot(), PICTURES / f"board-{name}-{theme}.png")


def save(png: bytes, path: Path) -> None:
    """Write a picture with a palette."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    frequent = sorted(image.getcolors(image.width * image.height), reverse=True)[:COLORS]
    palette = Image.new("P", (1, 1))
    palette.putpalette([level for _, color in frequent for level in color])
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path.name, f"{path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or list(ROUNDS))
