"""Interrupted cells: what they had sent goes on, is told, and marks the next step."""

from __future__ import annotations

import pytest

from tests.notebook.kernels import Kernel
from txlab.engine.requests import UnsteppedPasses
from txlab.notebook.interrupted_cells import describe

PASS = """
lab.rename(client.model_id, "pirate")
lab.pause("pirate")  # as if the device were busy for long
waiting = client.forward_backward([datum], "cross_entropy")
"""
STEP = """
lab.resume("pirate")
step = client.optim_step(types.AdamParams()).result().metrics["step"]
print(lab.history("pirate").marks[-1:] == ((int(step), "includes passes sent before an interrupt"),))
"""
WHOLE = 'client.forward_backward([datum], "cross_entropy").result()\n'
TOLD = (
    "txlab: interrupted, but what was sent before goes on: 1 forward_backward of 'pirate' (1 waiting), whose gradients "
    "enter its next optim_step (lab.stop_run('pirate') ends that).\n"
)


@pytest.mark.parametrize("how", ["waiting.result()", "await waiting"])
def test_an_interrupted_cell_is_told_what_goes_on(serving: Kernel, how: str) -> None:
    cell = serving.run(PASS + how, interrupt_after=4.0)
    assert cell.status == "error"
    assert TOLD in cell.text
    assert cell.text.count("txlab:") == 1
    assert serving.ok(STEP).text.strip() == "True"
    assert serving.ok(WHOLE + STEP).text.strip() == "False", "the next pair is whole"


def test_a_client_without_a_session_is_passed_over(serving: Kernel) -> None:
    serving.ok("rest = tinker.RestClient()\nrest.get_server_capabilities().result()")
    assert TOLD in serving.run(PASS + "waiting.result()", interrupt_after=2.0).text
    assert serving.ok(STEP).text.strip() == "True"


def test_other_cells_are_told_nothing(serving: Kernel) -> None:
    pair = WHOLE + "client.optim_step(types.AdamParams()).result()\n"
    assert "txlab:" not in serving.run(pair + "time.sleep(60)", interrupt_after=3.0).text, "nothing of it goes on"
    assert "txlab:" not in serving.run(pair + "1 / 0").text
    serving.ok(WHOLE)
    assert "txlab:" not in serving.run("time.sleep(60)", interrupt_after=1.0).text, "sent by an earlier cell"
    serving.ok("client.optim_step(types.AdamParams()).result()")


def test_the_line() -> None:
    runs = [UnsteppedPasses("a", "one", 1, 2, False), UnsteppedPasses("b", "two", 1, 0, True)]
    assert describe(runs) == (
        "txlab: interrupted, but what was sent before goes on: 3 forward_backward of 'one' (1 waiting), whose "
        "gradients enter its next optim_step (lab.stop_run('one') ends that); 1 forward_backward of 'two' (1 waiting), "
        "with the optim_step behind (lab.stop_run('two') ends that)."
    )
    assert describe([]) == ""
