"""What Tab offers in the lines of the magics: in a shell, and over a kernel's protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.process import arg_split

import txlab
from tests.notebook.kernels import Kernel
from txlab.engine.bus import AdapterView
from txlab.lora.state import LoraConfig
from txlab.notebook.completion import quote, split_line
from txlab.notebook.lab import Lab
from txlab.notebook.magics import _unquoted


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InteractiveShell]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        made = InteractiveShell.instance()
        made.run_line_magic("load_ext", "txlab")
        yield made
        made.run_line_magic("unload_ext", "txlab")
        InteractiveShell.clear_instance()


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lab with adapters of these names, the oldest first."""
    names = ["poet", "pirate", "the second pirate", "pirate", "it's", ""]
    curves = {"reward": np.zeros((1, 4)), "loss": np.zeros((1, 4)), "my KL": np.zeros((1, 4))}
    views = [AdapterView(f"id{i}", name, LoraConfig(8), 0, curves=curves) for i, name in enumerate(names)]
    views.append(AdapterView("id9", "pilot", LoraConfig(8), 0, state="unloaded"))  # type: ignore[arg-type]
    status = SimpleNamespace(view=SimpleNamespace(adapters=views))
    monkeypatch.setattr(Lab, "current", SimpleNamespace(status=lambda: status, stop=lambda: None))


def complete(shell: InteractiveShell, code: str) -> list[str]:
    """The whole codes that Tab offers at the end of ``code``."""
    with provisionalcompleter():
        return [code[: one.start] + one.text for one in shell.Completer.completions(code, len(code))]


@pytest.mark.parametrize(
    ("code", "offered"),
    [
        ("%txserve --lo", ["%txserve --loop"]),
        ("lab = %txserve --re", ["lab = %txserve --restart"]),
        ("%txserve --loop ", [f"%txserve --loop {loop}" for loop in ("auto", "control", "main", "thread")]),
        ("%txserve --loop ma", ["%txserve --loop main"]),
        ("%txserve --loop=ma", ["%txserve --loop=main"]),
        ("board = %txboard --x to", ["board = %txboard --x tokens"]),
        ("%txboard --scale ", [f"%txboard --scale {scale}" for scale in ("auto", "linear", "log")]),
        ("%txboard reward --lo", ["%txboard reward --logprobs"]),
        ("%txlogs -", ["%txlogs -n", "%txlogs --lines"]),
        ("%txhelp txse", ["%txhelp txserve"]),
        ("%%txsample --top", ["%%txsample --top-k", "%%txsample --top-p"]),
        ("\n%%txsample --se", ["\n%%txsample --seed"]),
        ("%%txsample bas", ["%%txsample base"]),
    ],
)
def test_options_and_their_choices(shell: InteractiveShell, code: str, offered: list[str]) -> None:
    assert complete(shell, code) == offered


def test_adapters_the_newest_first(shell: InteractiveShell, adapters: None) -> None:
    names = ("id5", "it's", "pirate", "'the second pirate'", "poet", "base")
    ids = ("id3", "id1")  # of the two pirates
    assert complete(shell, "%%txsample ")[:9] == [f"%%txsample {name}" for name in (*names, *ids, "--samples")]
    assert complete(shell, "%%txsample p") == ["%%txsample pirate", "%%txsample poet"]
    assert complete(shell, "%%txsample -n 2 --chat pi") == ["%%txsample -n 2 --chat pirate"]
    assert complete(shell, "%%txsample th") == ["%%txsample 'the second pirate'"]
    assert complete(shell, "%%txsample 'the sec") == ["%%txsample 'the second pirate'"]


@pytest.mark.parametrize(
    "code", ["%%txsample pirate pi", "%%txsample --seed pi", "%%txsample\npi", "x = 1\n%%txsample pi", "%time pi"]
)
def test_no_adapters_where_none_belong(shell: InteractiveShell, adapters: None, code: str) -> None:
    assert not any("pirate" in one[len(code) - 2 :] for one in complete(shell, code))


def test_metrics_of_the_adapters_and_those_that_all_have(shell: InteractiveShell, adapters: None) -> None:
    offered = complete(shell, "%txboard ")
    assert offered[:6] == [
        f"%txboard {name}" for name in ("loss", "grad_norm", "learning_rate", "'my KL'", "reward", "--x")
    ]
    assert complete(shell, "%txboard 'my") == ["%txboard 'my KL'"]
    assert complete(shell, "%txboard --x time re") == ["%txboard --x time reward"]


def test_metrics_before_there_is_a_lab(shell: InteractiveShell) -> None:
    assert complete(shell, "%txboard l") == ["%txboard loss", "%txboard learning_rate"]


@pytest.mark.parametrize("code", ["impor", "get_ipyth", "%tim"])
def test_other_code_is_completed_as_before(shell: InteractiveShell, code: str) -> None:
    assert complete(shell, code)


def test_words_are_split_as_the_magics_split_them() -> None:
    assert split_line("'a b' -n 2 ") == (["'a b'", "-n", "2"], "")
    assert split_line('x "a b') == (["x"], '"a b')
    assert split_line("") == ([], "")


@pytest.mark.parametrize("name", ["pirate", "two words", "it's", "it's two", '"so"', "-x", "ü"])
def test_a_quoted_name_is_read_back(name: str) -> None:
    assert split_line(quote(name) + " ")[0] == arg_split(quote(name)) == [quote(name)]
    assert _unquoted(quote(name)) == name


def test_unloaded_again_nothing_is_offered() -> None:
    shell = InteractiveShell()
    before = [*shell.Completer.custom_matchers]
    txlab.load_ipython_extension(shell)
    txlab.load_ipython_extension(shell)
    assert len(shell.Completer.custom_matchers) == len(before) + 1
    txlab.unload_ipython_extension(shell)
    assert shell.Completer.custom_matchers == before


NAMED = """
%load_ext txlab
lab = %txserve {model}
import tinker
service = tinker.ServiceClient()
client = service.create_lora_training_client(lab.model, rank=4, user_metadata={{"name": "my pirate"}}).result()
name = lab.status().view.adapters[0].name
"""


def test_over_the_protocol(kernel: Kernel, tiny_llama: Path) -> None:
    kernel.ok(NAMED.format(model=tiny_llama))
    name = kernel.ok("print(name)").text.strip()
    assert kernel.complete(f"%%txsample {name[:2]}") == [f"%%txsample {quote(name)}"]
    assert kernel.complete("%txserve --loop c") == ["%txserve --loop control"]
