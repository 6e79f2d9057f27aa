"""The magics in a real kernel: their handles, their help, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.kernels import Kernel, open_kernel
from txlab.notebook.magics import LabMagics

LINE = sorted(LabMagics.magics["line"])
CELL = sorted(LabMagics.magics["cell"])


@pytest.fixture(scope="module")
def lab(lab_env: dict[str, str], tiny_llama: Path) -> Iterator[Kernel]:
    with open_kernel(lab_env) as kernel:
        kernel.ok(f"%load_ext txlab\nlab = %txserve {tiny_llama}")
        yield kernel


@pytest.mark.parametrize(
    ("magic", "kind"),
    [
        ("%txserve", "Lab"),
        ("%txstatus", "Status"),
        ("%txlogs", "Logs"),
        ("%txboard", "Board"),
        ("%txboard 'my reward' --x tokens --smoothing 0.5 --scale log --logprobs", "Board"),
        ("%txplay", "Playground"),
        ("%txprofile --rows 1 --length 16 --rank 2", "Text"),
        ("%txhelp", "Manual"),
    ],
)
def test_each_returns_a_handle(lab: Kernel, magic: str, kind: str) -> None:
    assert lab.ok(f"handle = {magic}\nprint(type(handle).__name__)").text.splitlines()[-1] == kind


def test_values_show_themselves(lab: Kernel) -> None:
    assert "txlab serves" in lab.ok("%txstatus").text
    assert "Started server process" in lab.ok("%txlogs -n 100").text
    assert "\\n" not in lab.ok("%txlogs -n 100").text
    assert "%%txsample" in lab.ok("%txhelp").text
    assert "--max-tokens" in lab.ok("%txhelp %%txsample").text


def test_the_board_begins_as_its_magic_says(lab: Kernel) -> None:
    magic = "%txboard 'my reward' --x tokens --smoothing 0.5 --scale log --logprobs"
    made = "BoardOptions('my reward', 'tokens', 0.5, log=True, logprobs=True)"
    lab.ok(f"from txlab.notebook.views.frame import BoardOptions\nboard = {magic}\nassert board._options == {made}")
    lab.ok("board = %txboard\nassert board._options == BoardOptions()")
    lab.ok(f"assert lab.board('my reward', x='tokens', smoothing=0.5, scale='log', logprobs=True)._options == {made}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("%txboard --x loss", "choose from 'step', 'tokens', 'time'"),
        ("%txboard --scale logarithmic", "choose from 'auto', 'linear', 'log'"),
        ("%txboard --smoothing a-lot", "invalid float value"),
        ("%txboard --smoothing 1", "smoothing is 1.0: expected a number from 0 to 0.99"),
        ("%txboard ''", "metric is '': expected the name of a curve, such as 'loss'"),
        ("lab.board(x='epoch')", "x is 'epoch': expected 'step', 'tokens' or 'time'"),
        ("lab.board(scale=True)", "scale is True: expected 'auto', 'linear' or 'log'"),
    ],
)
def test_what_a_board_cannot_show_is_said(lab: Kernel, line: str, said: str) -> None:
    cell = lab.run(line)
    assert cell.error_name == "TxlabError", cell.error
    assert said in cell.error


def test_stop_returns_the_lab_that_ran(lab_env: dict[str, str], tiny_llama: Path) -> None:
    with open_kernel(lab_env) as kernel:
        kernel.ok(f"%load_ext txlab\nlab = %txserve {tiny_llama}")
        assert kernel.ok("stopped = %txstop\nprint(stopped is lab, lab.running)").text.endswith("True False\n")
        assert kernel.ok("again = %txstop\nprint(again)").text.strip() == "None"


@pytest.mark.parametrize("name", LINE + CELL)
def test_each_explains_itself(kernel: Kernel, name: str) -> None:
    kernel.ok("%load_ext txlab")
    mark = "%" if name in LINE else "%%"
    shown = kernel.help(mark + name)
    assert f"%{name}" in shown
    assert "Example: " in shown
    assert shown.partition("Example: ")[2].count(mark + name) >= 1


@pytest.mark.parametrize(
    "line",
    [f"%{name} --nonsense" for name in LINE]
    + [f"%%{name} --nonsense\ntext" for name in CELL]
    + ["%txserve 'open", "%txstop now", "%txlogs -n many", "%txserve --loop turbo"],
)
def test_what_is_unknown_fails_the_cell(kernel: Kernel, line: str) -> None:
    kernel.ok("%load_ext txlab")
    cell = kernel.run(line)
    assert cell.error_name == "TxlabError", cell.error
    assert "? shows what there is" in cell.error


@pytest.mark.parametrize("name", sorted({*LINE} - {"txserve", "txstop", "txhelp"}))
def test_without_a_lab_the_fix_is_named(kernel: Kernel, name: str) -> None:
    kernel.ok("%load_ext txlab")
    cell = kernel.run(f"%{name}")
    assert cell.error_name == "TxlabError"
    assert "Start one with %txserve" in cell.error


def test_help_knows_only_the_magics(kernel: Kernel) -> None:
    kernel.ok("%load_ext txlab")
    cell = kernel.run("%txhelp txnone")
    assert cell.error_name == "TxlabError"
    assert "%%txsample" in cell.error
