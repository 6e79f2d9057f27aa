"""Names that several adapters have: what changes something refuses them, what reads takes the newest and says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tinker

from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, serve


@pytest.fixture(scope="module")
def lab(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXLAB_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TINKER_TELEMETRY", "0")
        running = serve(str(tiny_llama))
        yield running
        running.stop()


@pytest.fixture(scope="module")
def probes(lab: Lab) -> Iterator[tuple[str, str]]:
    """Two clients, each with an adapter called ``probe``; the run ids, the older first."""
    services = [tinker.ServiceClient() for _ in range(2)]
    clients = [
        one.create_lora_training_client(lab.model, rank=4, user_metadata={"name": "probe"}).result(60)
        for one in services
    ]
    yield clients[0].model_id, clients[1].model_id
    for one in services:
        one.close("success").result(20)


def states(lab: Lab) -> dict[str, tuple[str, str, int]]:
    """Every adapter as it is."""
    return {one.model_id: (one.name, one.state, one.step) for one in lab.adapters}


CHANGES: dict[str, Callable[[Lab], object]] = {
    "pause": lambda lab: lab.pause("probe"),
    "resume": lambda lab: lab.resume("probe"),
    "stop_run": lambda lab: lab.stop_run("probe"),
    "rename": lambda lab: lab.rename("probe", "other"),
    "save": lambda lab: lab.save("probe"),
    "rewind": lambda lab: lab.rewind("probe"),
    "fork": lambda lab: lab.fork("probe", "other"),
    "unload": lambda lab: lab.unload("probe"),
    "training_client": lambda lab: lab.training_client("probe"),
}


@pytest.mark.parametrize("call", CHANGES)
def test_what_changes_something_refuses_a_name_that_two_have(lab: Lab, probes: tuple[str, str], call: str) -> None:
    before, kept = states(lab), len(lab.checkpoints())
    with pytest.raises(TxlabError, match="2 adapters are called 'probe'") as refused:
        CHANGES[call](lab)
    for model_id in probes:
        assert f"{model_id} (step 0, idle, made at " in str(refused.value)
    assert (states(lab), len(lab.checkpoints())) == (before, kept)


def test_a_run_id_says_which(lab: Lab, probes: tuple[str, str]) -> None:
    older, newer = probes
    lab.pause(older)
    assert [states(lab)[one][1] for one in (older, newer)] == ["paused", "idle"]
    lab.resume(older)


READS: dict[str, Callable[[Lab, str], object]] = {
    "sample": lambda lab, name: lab.sample("a b", name, max_tokens=2),
    "compare": lambda lab, name: lab.compare("a b", [name], max_tokens=2),
    "pins": lambda lab, name: lab.pins.remove(lab.pins.add("a b", [name], max_tokens=2)),
}


@pytest.mark.parametrize("call", READS)
def test_what_reads_takes_the_newest_and_says_so(lab: Lab, probes: tuple[str, str], call: str) -> None:
    for _ in range(2):  # each time, not once
        with pytest.warns(
            UserWarning, match=f"2 adapters are called 'probe': {probes[1]} .* This is the newest"
        ) as told:
            READS[call](lab, "probe")
        assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        READS[call](lab, probes[0])


def test_a_taken_name_is_refused_to_another(lab: Lab, probes: tuple[str, str]) -> None:
    older, newer = probes
    for taken in ("probe", newer, "base"):
        fork = lab.fork(older, "mine")
        before = states(lab)
        with pytest.raises(TxlabError, match=f"'{taken}' is taken by .*: choose another name"):
            lab.rename(fork, taken)
        assert states(lab) == before
        lab.rename(fork, "mine")  # its own
        lab.unload(fork)
    lab.rename(older, "probe 2")
    with pytest.raises(TxlabError, match=f"'probe 2' is taken by adapter {older}"):
        lab.rename(newer, "probe 2")
    with pytest.warns(UserWarning, match=f"Adapter {newer} is called 'probe' too: name this fork by its run id"):
        lab.unload(lab.fork(newer, "probe"))
    gone = lab.fork(newer, "gone")
    lab.unload(gone)
    lab.rename(newer, "gone")  # what was unloaded has no name any more
