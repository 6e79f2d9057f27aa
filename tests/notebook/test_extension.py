"""``%load_ext txlab`` and ``import txlab`` in kernels, terminals and scripts."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

import txlab
from tests.notebook.conftest import free_port
from tests.notebook.kernels import Kernel, open_kernel

TRAIN = """
import tinker
from tinker import types
client = tinker.ServiceClient().create_lora_training_client(base_model=lab.model, rank=4).result()
inputs = {"target_tokens": [6, 7], "weights": [1.0, 1.0]}
datum = types.Datum(model_input=types.ModelInput.from_ints([5, 6]), loss_fn_inputs=inputs)
print("loss", client.forward_backward([datum], "cross_entropy").result().metrics["loss:sum"])
"""
AWAIT = 'print("awaited", (await client.forward([datum], "cross_entropy")).metrics["loss:sum"])\n'


def python(*arguments: str, env: dict[str, str], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=120)


def test_import_does_no_work(lab_env: dict[str, str]) -> None:
    heavy = "{'jax', 'numpy', 'IPython', 'fastapi', 'transformers', 'tinker'}"
    done = python("-c", f"import sys, txlab; dir(txlab); print({heavy} & set(sys.modules))", env=lab_env)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("name", txlab.__all__)
def test_public_names(name: str) -> None:
    assert getattr(txlab, name).__module__.startswith("txlab.")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = txlab.nonsense


def test_plain_script(tiny_llama: Path, lab_env: dict[str, str]) -> None:
    script = f"import txlab\nlab = txlab.serve({str(tiny_llama)!r})\nassert lab.loop == 'thread'\n{TRAIN}"
    done = python("-c", script, env=lab_env)
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout


def test_plain_ipython(tiny_llama: Path, lab_env: dict[str, str]) -> None:
    session = f"%load_ext txlab\nlab = %txserve {tiny_llama}\n{TRAIN}{AWAIT}board = lab.board()\n%txstatus\n%txstop\n"
    done = python("-m", "IPython", "--simple-prompt", "--no-banner", env=lab_env, stdin=session)
    assert "loss" in done.stdout
    assert "awaited" in done.stdout
    assert "thread loop" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_magics_explain_themselves(kernel: Kernel) -> None:
    kernel.ok("%load_ext txlab")
    cell = kernel.ok("print(get_ipython().find_line_magic('txserve').__doc__)")
    assert "--restart" in cell.text
    assert "--loop" in cell.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%txserve nobody/nothing", "txlab fetch nobody/nothing"),
        ("%txserve", "while online"),
        ("%txserve --api-key mine", "tml-"),
        ("%txserve --port 70000", "port 0"),
        ("%txstatus", "%txserve"),
    ],
)
def test_what_goes_wrong_is_one_readable_exception(kernel: Kernel, line: str, message: str) -> None:
    kernel.ok("import os; os.environ['PIP_NO_INDEX'] = '1'\n%load_ext txlab")
    cell = kernel.run(line)
    assert cell.error_name == "TxlabError"
    assert message in cell.error
    assert "Traceback" not in cell.error
    assert "File" not in cell.error


def test_port_in_use_raises_in_the_cell(kernel: Kernel) -> None:
    kernel.ok("%load_ext txlab")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cell = kernel.run(f"%txserve --port {taken.getsockname()[1]}")
    assert cell.error_name == "TxlabError"
    assert "is in use" in cell.error


@pytest.mark.parametrize("line", ["%txserve --loop turbo", "%txserve --fast", "%txlogs -n many"])
def test_wrong_options_fail_the_cell(kernel: Kernel, line: str) -> None:
    kernel.ok("%load_ext txlab")
    cell = kernel.run(line)
    assert cell.error_name == "TxlabError"
    assert f"{line.split()[0]}? shows" in cell.error


def test_loaded_twice_reloaded_and_unloaded(kernel: Kernel) -> None:
    kernel.ok("%load_ext txlab\n%load_ext txlab\n%reload_ext txlab\n%reload_ext txlab")
    assert kernel.complete("%txserve --lo") == ["%txserve --loop"]
    kernel.ok("%unload_ext txlab")
    for gone in ("%txstatus", "%%txsample\ntext"):
        cell = kernel.run(gone)
        assert "not found" in cell.text + cell.error
    assert "%txserve --loop" not in kernel.complete("%txserve --lo")
    kernel.ok("%load_ext txlab\n%txhelp")


def test_the_lab_outlives_the_extension_until_it_is_stopped(lab_env: dict[str, str], tiny_llama: Path) -> None:
    with open_kernel(lab_env) as kernel:
        shown = kernel.ok(f"%load_ext txlab\nlab = %txserve {tiny_llama}\nlab").text
        kernel.ok(f"import os, time\n{TRAIN}")
        kernel.ok("%load_ext txlab\n%reload_ext txlab\n%unload_ext txlab\n%load_ext txlab")
        assert "loss:sum" in kernel.ok("print(client.forward([datum], 'cross_entropy').result().metrics)").text
        kernel.ok("assert os.environ['TINKER_BASE_URL'] == lab.url")
        kernel.ok("again = %txserve\nassert again is lab and lab.status().view.adapters")
        shown += kernel.ok("stopped = %txstop").text
        assert "make a new tinker.ServiceClient()" in shown
        assert "nothing leaves this machine" in shown
        raised = kernel.ok(
            "started = time.monotonic()\n"
            "try: tinker.ServiceClient().create_sampling_client(base_model=lab.model)\n"
            "except Exception as error: print(error, time.monotonic() - started < 1)"
        )
        assert "no lab runs here: start one with %txserve" in raised.text
        assert raised.text.endswith("True\n")
        assert "was stopped" in kernel.run("client.forward([datum], 'cross_entropy').result(20)").error
        shown += kernel.ok(f"%txserve {tiny_llama}").text
        assert "no lab runs" not in kernel.ok(TRAIN).text
        assert kernel.ok("lab = %txserve\nprint(lab.api_key)").text.splitlines()[-1] not in shown


def test_a_restarted_kernel_serves_on_the_same_port(lab_env: dict[str, str], tiny_llama: Path) -> None:
    serve = f"%load_ext txlab\nlab = %txserve {tiny_llama} --port {free_port()}"
    with open_kernel(lab_env) as kernel:
        kernel.ok(serve)
        kernel.restart()
        assert kernel.run("lab").error_name == "NameError"
        kernel.ok(serve)
