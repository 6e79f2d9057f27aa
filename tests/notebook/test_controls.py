"""Steering adapters from the lab while their clients wait in another thread, or in a cell of a kernel."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tinker
from tinker import types

from tests.notebook.kernels import Kernel
from txlab.engine.bus import AdapterView
from txlab.engine.requests import CopyAdapter
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, serve

TOKENS = [11, 45, 97, 23, 150, 61, 88, 12, 71]
ADAM = types.AdamParams(learning_rate=3e-3)


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
def service(lab: Lab) -> Iterator[tinker.ServiceClient]:
    service = tinker.ServiceClient()
    yield service
    service.close("success").result(timeout=20)


@pytest.fixture
def client(lab: Lab, service: tinker.ServiceClient, request: pytest.FixtureRequest) -> tinker.TrainingClient:
    """A fresh adapter, called as the test is."""
    about = {"name": request.node.name}
    return service.create_lora_training_client(lab.model, rank=4, seed=1, user_metadata=about).result(60)


@pytest.fixture
def name(client: tinker.TrainingClient, request: pytest.FixtureRequest) -> str:
    return request.node.name


def datum() -> types.Datum:
    inputs = {"target_tokens": TOKENS[1:], "weights": [1.0] * (len(TOKENS) - 1)}
    return types.Datum(model_input=types.ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs=inputs)


def train(client: tinker.TrainingClient, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(client.forward_backward([datum()], "cross_entropy").result(120).metrics["loss:sum"])
        client.optim_step(ADAM).result(120)
    return losses


def view(lab: Lab, model_id: str) -> AdapterView:
    return next(adapter for adapter in lab.status().view.adapters if adapter.model_id == model_id)


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ------------------------------------------------------------------------------------- pause and stop


def test_a_paused_client_waits_and_goes_on(lab: Lab, client: tinker.TrainingClient, name: str) -> None:
    lab.pause(name)
    with ThreadPoolExecutor(1) as thread:
        losses = thread.submit(train, client, 2)
        until(lambda: lab._bus.view().adapters and lab._serving().engine._scheduler.queued(client.model_id))
        assert view(lab, client.model_id).state == "paused"
        assert not losses.done()
        lab.resume(name)
        assert len(losses.result(60)) == 2
    until(lambda: view(lab, client.model_id).state == "idle")


def test_a_stopped_client_is_told_at_once_and_may_go_on(lab: Lab, client: tinker.TrainingClient, name: str) -> None:
    lab.pause(name)
    futures = [client.forward_backward([datum()], "cross_entropy"), client.optim_step(ADAM), client.save_state("never")]
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(future.result, 120) for future in futures]
        until(lambda: lab._serving().engine._scheduler.queued(client.model_id) == 3)
        lab.stop_run(name)
        for one in waiting:
            error = one.exception(20)
            assert isinstance(error, tinker.RequestFailedError)
            assert f"stopped from the lab: the run of adapter {name!r} was ended by its user" in str(error)
            assert error.category == types.RequestErrorCategory.User
    lab.resume(name)
    assert len(train(client, 2)) == 2
    assert view(lab, client.model_id).step == 2


def test_a_stop_never_misses_a_live_loop(lab: Lab, client: tinker.TrainingClient, name: str) -> None:
    """However it falls: while a request runs, while one waits, or between a result and the next request."""
    given_up = threading.Event()

    def loop() -> None:
        while not given_up.is_set():
            train(client, 1)

    with ThreadPoolExecutor(1) as thread:
        for number in range(36):
            steps = view(lab, client.model_id).step + number % 3
            running = thread.submit(loop)
            until(lambda steps=steps: view(lab, client.model_id).step > steps)
            time.sleep(number / 36 * 0.02)  # another moment of the loop each time
            stopped = lab.stop_run(name)
            if not wait([running], 20).done:
                given_up.set()
            error = running.exception(60)
            assert isinstance(error, tinker.RequestFailedError), f"call {number} missed"
            assert f"lab.resume({name!r})" in str(error)
            assert (stopped.name, stopped.model_id) == (name, client.model_id)
            assert view(lab, client.model_id).state == "stopped"
            lab.resume(name)
    assert len(train(client, 1)) == 1


def test_a_stopped_run_says_what_ended_and_how_it_goes_on(
    lab: Lab, service: tinker.ServiceClient, client: tinker.TrainingClient, name: str
) -> None:
    assert repr(lab.stop_run(name)) == (
        f"{name} is stopped. Ended: nothing, it was idle. Its clients' requests are refused until lab.resume({name!r})."
    )
    lab.resume(name)
    client.forward_backward([datum()], "cross_entropy").result(60)
    lab.pause(name)
    client.forward_backward([datum()], "cross_entropy")
    until(lambda: lab._serving().engine._scheduler.queued(client.model_id))
    assert "Ended: 1 training request, the gradient of 1 forward_backward. " in repr(lab.stop_run(name))
    lab.stop_run(name)  # once more: no effect
    for refused in (client.forward_backward([datum()], "cross_entropy"), client.optim_step(ADAM)):
        with pytest.raises(tinker.RequestFailedError, match=r"a new training client, .* is free to train"):
            refused.result(60)
    assert lab.save(name).endswith("lab-step-0000")
    assert lab.fork(name, "of a stopped one")
    assert len(train(lab.training_client("of a stopped one"), 1)) == 1
    fresh = service.create_lora_training_client(lab.model, rank=4, seed=1).result(60)
    assert len(train(fresh, 1)) == 1
    lab.resume(name)
    again = lab.training_client(lab.fork(name, "again"))
    assert train(client, 1) == train(again, 1)


def test_samples_of_a_stopped_run_end_too(lab: Lab, client: tinker.TrainingClient, name: str) -> None:
    sampler = client.save_weights_and_get_sampling_client().result(60)
    params = types.SamplingParams(max_tokens=450, temperature=1.0, stop=[])
    drawn = sampler.sample(types.ModelInput.from_ints(TOKENS), 8, params)
    until(lambda: any(one.model_id == client.model_id for one in lab.status().view.streaming))
    lab.stop_run(name)
    with pytest.raises(tinker.RequestFailedError, match="stopped from the lab"):
        drawn.result(60)
    params = types.SamplingParams(max_tokens=3, stop=[])
    with pytest.raises(tinker.RequestFailedError, match="stopped from the lab"):  # a loop that only samples, too
        sampler.sample(types.ModelInput.from_ints(TOKENS), 1, params).result(60)
    assert len(lab.sample("a text", name, max_tokens=3).texts) == 1, "the lab looks at it all the same"
    lab.resume(name)
    assert len(sampler.sample(types.ModelInput.from_ints(TOKENS), 1, params).result(60).sequences[0].tokens) == 3


# --------------------------------------------------------------------------------------- names and disk


def test_a_new_name_reaches_board_and_records(
    lab: Lab, service: tinker.ServiceClient, client: tinker.TrainingClient, name: str
) -> None:
    lab.rename(name, "  pirate & co ")
    assert view(lab, client.model_id).name == "pirate & co"
    run = tinker.RestClient(base_url=lab.url, api_key=lab.api_key).get_training_run(client.model_id).result(20)
    assert run.user_metadata == {"name": "pirate & co"}
    row = lab._serving().store.records.run(client.model_id)
    assert row is not None
    assert row.name == "pirate & co"
    lab.pause("pirate & co")
    lab.resume(client.model_id)
    with pytest.raises(TxlabError, match="step 9 of adapter 'pirate & co' is not kept"):
        lab.rewind("pirate & co", 9)


def test_names_of_all_kinds(lab: Lab, client: tinker.TrainingClient) -> None:
    for given in ("<b>&amp;</b>", "👩\u200d💻 🏳️\u200d🌈", "می\u200cخواهم", "two words", "x" * 100):
        lab.rename(client.model_id, given)
        assert view(lab, client.model_id).name == given
        with pytest.warns(UserWarning, match="is called"):
            fork_id = lab.fork(given, given)
        lab.unload(fork_id)
        lab.pause(given)
        assert view(lab, client.model_id).state == "paused"
        lab.resume(given)
    for wrong in ("", " ", "two\nlines", "x" * 101, "\u200d", "\u202eabc", "\ud800", None, 5):
        for call in (lab.rename, lab.fork):
            with pytest.raises(TxlabError, match="is no name"):
                call(client.model_id, wrong)  # type: ignore[arg-type]


def test_nobody_takes_the_place_of_another(lab: Lab, client: tinker.TrainingClient, name: str) -> None:
    """A run id is found, though a newer adapter calls itself so."""
    with pytest.warns(UserWarning, match="is called"):
        evil = lab.fork(name, client.model_id)
    lab.pause(client.model_id)
    assert (view(lab, client.model_id).state, view(lab, evil).state) == ("paused", "idle")
    assert lab.adapters[client.model_id].model_id == client.model_id
    lab.unload(evil)


def test_a_checkpoint_now(lab: Lab, service: tinker.ServiceClient, client: tinker.TrainingClient, name: str) -> None:
    train(client, 2)
    lab.pause(name)
    later = client.forward_backward([datum()], "cross_entropy")
    paths = [lab.save(name), lab.save(name), lab.save(client.model_id, "mine")]
    lab.resume(name)
    folder = f"tinker://{client.model_id}/weights"
    assert paths == [f"{folder}/lab-step-0002", f"{folder}/lab-step-0002-2", f"{folder}/mine"]
    rest = tinker.RestClient(base_url=lab.url, api_key=lab.api_key)
    listed = rest.list_checkpoints(client.model_id).result(20).checkpoints
    assert {one.tinker_path for one in listed} == set(paths)
    resumed = service.create_training_client_from_state_with_optimizer(paths[0]).result(60)
    assert train(resumed, 1)[0] == pytest.approx(later.result(60).metrics["loss:sum"], rel=1e-5)
    with pytest.raises(TxlabError, match=r"mine' exists: choose another name, or save with overwrite=True"):
        lab.save(name, "mine")
    client.optim_step(ADAM).result(60)
    assert lab.save(name, "mine", overwrite=True) == paths[2]
    assert [one.step for one in lab.checkpoints(client.model_id) if one.path == paths[2]] == [3]
    for wrong in ("a/b", "", "two words", "<b>", 5):
        with pytest.raises(TxlabError, match="no checkpoint name"):
            lab.save(name, wrong)  # type: ignore[arg-type]


def test_checkpoints_at_the_same_moment_are_all_written(lab: Lab, client: tinker.TrainingClient, name: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(lab.save, [name] * 8))
    assert len({*paths}) == 8
    assert {one.path for one in lab.checkpoints(client.model_id)} == {*paths}


# ------------------------------------------------------------------------------------ rewind and fork


def test_a_rewound_adapter_repeats_itself(lab: Lab, client: tinker.TrainingClient, name: str) -> None:
    losses = train(client, 4)
    assert view(lab, client.model_id).kept_steps == (0, 1, 2, 3)
    assert lab.rewind(name) == 3
    assert train(client, 1) == losses[3:]
    assert lab.rewind(name, steps=3) == 1
    assert train(client, 3) == losses[1:]
    assert lab.rewind(name, 2) == 2
    assert view(lab, client.model_id).step == 2
    with pytest.raises(TxlabError, match=r"step -3 of adapter .* is not kept. It is at step 2; kept steps: 0, 1, 2"):
        lab.rewind(name, steps=5)
    with pytest.raises(TxlabError, match="not both"):
        lab.rewind(name, 1, steps=1)
    with pytest.raises(TxlabError, match=r"^step is '1': it must be a whole number"):
        lab.rewind(name, "1")  # type: ignore[arg-type]
    with pytest.raises(TxlabError, match=r"^steps is -1: it must be a whole number"):
        lab.rewind(name, steps=-1)


def test_an_adapter_that_never_stepped(lab: Lab, client: tinker.TrainingClient, name: str) -> None:
    for call in (lab.pause, lab.pause, lab.resume, lab.resume, lab.stop_run, lab.resume):
        call(name)
    assert view(lab, client.model_id).state == "idle"
    assert lab.save(name).endswith("lab-step-0000")
    with pytest.raises(TxlabError, match=r"is not kept. It is at step 0; kept steps: none"):
        lab.rewind(name)
    assert lab.rewind(name, 0) == lab.rewind(name, steps=0) == 0
    again = lab.training_client(lab.fork(lab.fork(name, "fork"), "fork of fork"))
    assert train(again, 2) == train(client, 2)


def test_a_fork_is_trained_by_a_client_of_the_lab(
    lab: Lab, service: tinker.ServiceClient, client: tinker.TrainingClient, name: str
) -> None:
    losses = train(client, 3)
    fork_id = lab.fork(name, "forked", 1)
    fork = lab.training_client("forked")
    assert fork.model_id == fork_id != client.model_id
    assert lab.training_client(fork_id) is fork
    assert train(fork, 2) == losses[1:]
    assert fork.get_info().lora_rank == 4
    sampler = fork.save_weights_and_get_sampling_client().result(60)
    assert sampler.compute_logprobs(types.ModelInput.from_ints(TOKENS)).result(60)[1] < 0
    assert fork.save_state("saved").result(60).path == f"tinker://{fork_id}/weights/saved"
    run = tinker.RestClient(base_url=lab.url, api_key=lab.api_key).get_training_run(fork_id).result(20)
    assert run.user_metadata == {"name": "forked", "forked_from": client.model_id}
    assert view(lab, fork_id).owner != view(lab, client.model_id).owner
    again = lab.fork("forked", "forked again")
    assert train(lab.training_client(again), 1) == train(client, 1) == train(fork, 1)
    with pytest.raises(TxlabError, match="trained by the client that made it"):
        lab.training_client(name)
    with pytest.raises(TxlabError, match=r"step 9 .* is not kept. It is at step 4; kept steps: 0, 1, 2, 3\."):
        lab.fork(name, "nothing", 9)
    with pytest.raises(TxlabError, match=r"^step is 1\.5: it must be a whole number"):
        lab.fork(name, "nothing", 1.5)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- unload


def test_a_fork_is_freed_alone(lab: Lab, client: tinker.TrainingClient, name: str) -> None:
    train(client, 2)
    engine = lab._serving().engine
    before = engine._bank._adapters.keys() | set(engine._kept._states)
    fork_id = lab.fork(name, "freed")
    fork = lab.training_client("freed")
    train(fork, 1)
    sampler = fork.save_weights_and_get_sampling_client().result(60)
    path = lab.save("freed")
    lab.unload("freed")
    assert engine._bank._adapters.keys() | set(engine._kept._states) == before
    assert view(lab, fork_id).state == "unloaded"
    assert "freed" not in [one.name for one in lab.adapters]
    for call in (lab.unload, lab.pause, lab.training_client):
        with pytest.raises(TxlabError, match="There is no adapter 'freed'"):
            call("freed")
    with pytest.raises(tinker.NotFoundError, match="does not exist on this server, or was unloaded"):
        fork.forward_backward([datum()], "cross_entropy").result(60)
    params = types.SamplingParams(max_tokens=3, stop=[])
    assert len(sampler.sample(types.ModelInput.from_ints(TOKENS), 1, params).result(60).sequences[0].tokens) == 3
    assert [one.path for one in lab.checkpoints(fork_id)] == [path]
    assert lab.history(fork_id)["step"].tolist() == [3]
    assert not lab._serving().own_client._clients.keys() & {fork_id}
    assert len(train(client, 1)) == 1
    assert train(lab.training_client(lab.fork(name, "freed")), 1), "the next fork of that name is another one"


def test_a_client_whose_adapter_is_unloaded_is_told(lab: Lab, client: tinker.TrainingClient, name: str) -> None:
    lab.pause(name)
    futures = [client.forward_backward([datum()], "cross_entropy"), client.optim_step(ADAM)]
    until(lambda: lab._serving().engine._scheduler.queued(client.model_id) == 2)
    lab.unload(client.model_id)
    for future in futures:
        with pytest.raises(tinker.RequestFailedError, match="was unloaded") as error:
            future.result(60)
        assert error.value.category == types.RequestErrorCategory.User
    for later in (client.optim_step(ADAM), client.save_state("never")):
        with pytest.raises(tinker.NotFoundError, match="was unloaded"):
            later.result(60)


# ------------------------------------------------------------------------------------------ the edges


def test_what_is_not_there_cannot_be_steered(lab: Lab) -> None:
    stopped = Lab(lab.settings)
    for call in ("pause", "resume", "stop_run", "save", "rewind", "unload", "training_client"):
        with pytest.raises(TxlabError, match="no adapter 'nobody'"):
            getattr(lab, call)("nobody")
        with pytest.raises(TxlabError, match="stopped"):
            getattr(stopped, call)("nobody")
    for call in ("rename", "fork"):
        with pytest.raises(TxlabError, match="no adapter 'nobody'"):
            getattr(lab, call)("nobody", "x")


def test_an_adapter_of_no_client_has_no_checkpoints(lab: Lab) -> None:
    """Such as that of a profile, while it runs."""
    from txlab.engine.requests import CreateAdapter, UnloadAdapter
    from txlab.lora.state import LoraConfig

    engine = lab._serving().engine
    engine.ask(CreateAdapter("of nobody", LoraConfig(rank=2), "loose")).result(60)
    with pytest.raises(TxlabError, match="does not exist on this server"):
        lab.save("loose")
    engine.ask(UnloadAdapter("of nobody")).result(60)


def test_whose_client_has_gone_is_not_there(lab: Lab) -> None:
    service = tinker.ServiceClient()
    service.create_lora_training_client(lab.model, rank=4, user_metadata={"name": "orphan"}).result(60)
    lab.pause("orphan")
    service.close("success").result(timeout=20)
    until(lambda: "orphan" not in [one.name for one in lab.adapters])
    for call in (lab.pause, lab.resume, lab.stop_run, lab.save, lab.rewind, lab.unload):
        with pytest.raises(TxlabError, match="There is no adapter 'orphan'"):
            call("orphan")


def test_controls_leave_a_running_sample_alone(lab: Lab, client: tinker.TrainingClient, name: str) -> None:
    train(client, 2)
    sampler = client.save_weights_and_get_sampling_client().result(60)
    params = types.SamplingParams(max_tokens=400, temperature=1.0, seed=7, stop=[])
    alone = sampler.sample(types.ModelInput.from_ints(TOKENS), 2, params).result(60)
    drawn = sampler.sample(types.ModelInput.from_ints(TOKENS), 2, params)
    until(lambda: any(one.model_id == client.model_id for one in lab.status().view.streaming))
    lab.pause(name)
    lab.rename(name, "steered")
    lab.save("steered")
    lab.rewind("steered")
    lab.unload(lab.fork("steered", "let go"))
    lab.resume("steered")
    lab.unload("steered")
    assert [one.tokens for one in drawn.result(60).sequences] == [one.tokens for one in alone.sequences]
    assert view(lab, client.model_id).state == "unloaded"


def test_whatever_is_done_to_one_adapter_another_trains_on_bit_by_bit(
    lab: Lab, service: tinker.ServiceClient, client: tinker.TrainingClient, name: str
) -> None:
    """Two threads steer an adapter and its forks, while its client and that of another train."""
    about = {"name": "steered by two"}
    steered = service.create_lora_training_client(lab.model, rank=4, user_metadata=about).result(60)
    ended = threading.Event()

    def train_on() -> None:
        while not ended.is_set():
            with suppress(tinker.RequestFailedError):  # stopped
                train(steered, 1)

    def steer() -> None:
        target = steered.model_id
        for _ in range(4):
            lab.pause(target)
            lab.rename(target, "renamed")
            lab.save(target)
            with suppress(TxlabError):  # there may be no earlier step
                lab.rewind(target)
            lab.resume(target)
            lab.unload(lab.fork(target, "passing by"))
            lab.stop_run(target)
            lab.resume(target)

    with ThreadPoolExecutor(4) as threads:
        training, beside = threads.submit(train_on), threads.submit(train, client, 12)
        steering = [threads.submit(steer) for _ in range(2)]
        assert [one.result(120) for one in steering] == [None, None]
        losses = beside.result(120)
        ended.set()
        training.result(120)
    alone = service.create_lora_training_client(lab.model, rank=4, seed=1).result(60)
    assert losses == train(alone, 12)
    assert same_weights(lab, client.model_id, alone.model_id)
    assert len(train(steered, 1)) == 1
    lab.unload(steered.model_id)


def same_weights(lab: Lab, one: str, two: str) -> bool:
    """Whether weights and moments of two adapters are equal, bit by bit."""
    states = [lab._serving().engine.ask(CopyAdapter(model_id)).result(60) for model_id in (one, two)]
    groups = [(state.weights, state.first_moment, state.second_moment) for state in states]
    return all(np.array_equal(a[key], b[key]) for a, b in zip(*groups, strict=True) for key in a)


STEERED = """
import threading

def wait_for_a_pass():
    while lab._serving().engine._scheduler.queued(client.model_id) != 1:
        time.sleep(0.01)

def steer():
    wait_for_a_pass()
    report["paused"] = not first.future().done()
    report["saved"] = lab.save("steered").rsplit("/", 1)[1]
    report["forked"] = lab.fork("steered", "forked") != client.model_id
    lab.resume("steered")
    paused_again.wait()
    wait_for_a_pass()
    lab.stop_run("steered")

report, paused_again = {}, threading.Event()
lab.rename(client.model_id, "steered")
lab.pause("steered")
first = client.forward_backward([datum], "cross_entropy")
thread = threading.Thread(target=steer)
thread.start()
report["first"] = first.result(60).metrics["loss:sum"] > 0
lab.pause("steered")
second = client.forward_backward([datum], "cross_entropy")
paused_again.set()
try:
    second.result(60)
except tinker.RequestFailedError as error:
    report["second"] = "stopped from the lab" in str(error)
thread.join()
lab.resume("steered")
report["third"] = client.forward_backward([datum], "cross_entropy").result().metrics["loss:sum"] > 0
expected = {"paused", "saved", "forked", "first", "second", "third"}
print(sorted(expected - set(report)), all(report.values()), report["saved"])
"""


def test_controls_act_while_a_cell_blocks(serving: Kernel) -> None:
    """On every loop that may carry the server: the cell waits in ``.result()``, and a thread steers."""
    assert serving.ok(STEERED).text.split() == ["[]", "True", "lab-step-0000"]


def test_a_cell_steers_too(serving: Kernel) -> None:
    cell = serving.ok("""
lab.fork(client.model_id, "from a cell")
trained = lab.training_client("from a cell").forward_backward([datum], "cross_entropy").result()
print(trained.metrics["loss:sum"] > 0, lab.save("from a cell", "kept").endswith("/kept"))
""")
    assert cell.text.split() == ["True", "True"]
