"""What a process that is forked from a serving kernel takes with it, and what ``!`` prints there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.conftest import free_port
from tests.notebook.kernels import Kernel, open_kernel

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="is about forks")

SERVE = """
%load_ext txlab
import multiprocessing, os, select, signal, time, warnings, txlab
lab = %txserve {model} --port {port}
def notes():
    from jupyter_core.paths import jupyter_runtime_dir
    return [name for name in os.listdir(jupyter_runtime_dir()) if name == f"txlab-{{os.getpid()}}.json"]
"""


@pytest.fixture(scope="module")
def served(
    tiny_llama: Path, lab_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Kernel, int]]:
    """A kernel that serves, with a runtime folder of its own, and its port."""
    port = free_port()
    with open_kernel(lab_env | {"JUPYTER_RUNTIME_DIR": str(tmp_path_factory.mktemp("runtime"))}) as kernel:
        kernel.ok(SERVE.format(model=tiny_llama, port=port))
        yield kernel, port


# A child that stops the lab, within the seconds that it is given.
LEAVE = """
def leave(seconds):
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        try:
            lab.stop()
        finally:
            os._exit(0 if txlab.Lab.current is None and not lab.running else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_a_child_cannot_stop_the_lab(served: tuple[Kernel, int]) -> None:
    kernel, _ = served
    kernel.ok(LEAVE)
    assert kernel.ok("print(notes() != [], lab.running)").text.split() == ["True", "True"]
    assert kernel.ok("print('exit', leave(5))").text.startswith("exit 0")
    assert kernel.ok("print(notes() != [], lab.running)").text.split() == ["True", "True"]
    kernel.ok(
        "import httpx; from txlab.proxy import announced\n"
        "assert announced() == [lab.url] and httpx.get(lab.url + '/api/v1/healthz').status_code == 200\n"
        "assert os.environ['TINKER_BASE_URL'] == lab.url"
    )


def test_a_child_knows_that_the_lab_is_not_its_own(served: tuple[Kernel, int]) -> None:
    kernel, _ = served
    cell = kernel.ok(
        "def told(pipe):\n"
        "    try:\n"
        "        lab.board()\n"
        "    except txlab.TxlabError as error:\n"
        "        pipe.send(str(error))\n"
        "receiving, sending = multiprocessing.Pipe(False)\n"
        "child = multiprocessing.get_context('fork').Process(target=told, args=(sending,)); child.start()\n"
        "print(receiving.recv() if receiving.poll(20) else 'nothing')\n"
        "child.kill(); child.join()"
    )
    assert "This lab is stopped" in cell.text


def test_a_child_holds_neither_the_port_nor_a_connection(served: tuple[Kernel, int]) -> None:
    kernel, port = served
    kernel.ok(
        f"import http.client; talk = http.client.HTTPConnection('127.0.0.1', {port}, timeout=20)\n"
        "talk.request('GET', '/api/v1/healthz'); talk.getresponse().read(); client = talk.sock\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,)); child.start()"
    )
    try:
        kernel.ok("%txstop --free-port")
        ended = kernel.ok("print(client.recv(1) == b'' if select.select([client], [], [], 5)[0] else 'open')")
        assert ended.text.strip() == "True"
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
            again.listen()
        kernel.ok(f"lab = txlab.serve(lab.model, port={port})")
        assert kernel.ok("print(child.is_alive())").text.strip() == "True"
    finally:
        kernel.ok("child.kill(); child.join(); client.close()")


def test_commands_of_the_shell_do_not_warn_of_forks(served: tuple[Kernel, int]) -> None:
    kernel, _ = served
    cell = kernel.ok(
        "warnings.simplefilter('always')\n"
        "def expands():\n    inner = 'of a function'\n    !echo {inner}\n"
        "name = 'of the cell'\n!echo $name\nexpands()\n%system echo one\n%sx echo two\nlines = !echo three\n"
        "print(_exit_code, lines)"
    )
    assert "os.fork" not in cell.text
    assert "of the cell" in cell.text
    assert "of a function" in cell.text
    assert cell.text.rstrip().endswith("0 ['three']")


def test_forks_of_the_users_own_still_warn(served: tuple[Kernel, int]) -> None:
    kernel, _ = served
    cell = kernel.ok(
        "warnings.simplefilter('always')\n!true\n"
        "child = multiprocessing.get_context('fork').Process(target=time.time); child.start(); child.join()"
    )
    assert "os.fork() was called" in cell.text


SCRIPT = """
import os, sys, txlab
lab = txlab.serve(sys.argv[1])
pid = os.fork()
if pid == 0:
    sys.exit(0)
print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
from txlab.proxy import announced
print("announced", announced() == [lab.url])
"""


def test_a_child_of_a_script_that_exits_as_scripts_do(
    tiny_llama: Path, lab_env: dict[str, str], tmp_path: Path
) -> None:
    env = lab_env | {"JUPYTER_RUNTIME_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", SCRIPT, str(tiny_llama)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-2:] == ["child 0", "announced True"], done.stderr
