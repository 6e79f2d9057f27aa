"""Figures of runs: logged by the user, kept with the run, told after a rewind, a stop and a restart."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tinker
from tinker import types

from tests.notebook.views.html import Page
from txlab.engine.bus import AdapterView, EventBus
from txlab.engine.events import AdapterCreated, AdapterRewound, MetricsLogged, PassCompleted, StepCompleted
from txlab.lora.state import LoraConfig
from txlab.notebook.errors import TxlabError
from txlab.notebook.history import (
    FIXED,
    History,
    as_metrics,
    as_number,
    as_step,
    keep_history,
    read_history,
    to_columns,
)
from txlab.notebook.lab import Lab, serve
from txlab.store.store import Store

DATUM = types.Datum(types.ModelInput.from_ints([5, 6, 7]), {"target_tokens": [6, 7, 8], "weights": [1.0] * 3})


@pytest.fixture
def lab(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("TXLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    running = serve(str(tiny_llama))
    yield running
    running.stop()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def bus(store: Store) -> EventBus:
    """A bus whose points are kept, with an adapter."""
    bus = EventBus()
    keep_history(bus, store.records)
    bus.publish(AdapterCreated("m", "one", LoraConfig(8), 100))
    return bus


def step(bus: EventBus, number: int, loss: float) -> None:
    bus.publish(PassCompleted("m", 10 * loss, 10.0, tokens=20, seconds=0.1, backward=True))
    bus.publish(StepCompleted("m", number, 1e-3, 2.0, 400))


def agrees(history: History, **columns: list[float]) -> None:
    for name, column in columns.items():
        np.testing.assert_allclose(history[name], column, err_msg=name)


# ------------------------------------------------------------------------------------- a real lab


def train(lab: Lab, name: str, steps: int) -> tinker.ServiceClient:
    service = tinker.ServiceClient()
    client = service.create_lora_training_client(base_model=lab.model, rank=4, user_metadata={"name": name}).result()
    for number in range(1, steps + 1):
        client.forward_backward([DATUM], "cross_entropy").result(timeout=120)
        client.optim_step(types.AdamParams(learning_rate=0.01)).result(timeout=60)
        lab.log(name, number, reward=number / 2)
    return service


def seen(lab: Lab, name: str) -> AdapterView:
    return next(adapter for adapter in lab.status().view.adapters if adapter.name == name)


def check(history: History, view: AdapterView) -> None:
    """A run's history is what its curves were."""
    assert (history.name, history.model_id) == (view.name, view.model_id)
    own = ("reward", "note")
    assert [*history] == [*FIXED, *own, *(name for name in view.curves if name not in own)]
    loss = view.curves["loss"]  # (n, 4)
    agrees(
        history, step=loss[:, 0], tokens=loss[:, 1], **{name: view.curves[name][:, 3] for name in ("loss", "reward")}
    )
    np.testing.assert_allclose(history["seconds"], loss[:, 2], atol=5)
    assert (np.diff(history["seconds"]) > 0).all()
    began = np.datetime64(round(view.created * 1000), "ms")
    np.testing.assert_allclose((history["time"] - began).astype(float) / 1000, history["seconds"], atol=5)
    np.testing.assert_array_equal(history["note"], [math.nan, math.nan, 7.0])


def test_a_runs_history_is_what_was_seen_and_outlives_the_lab(lab: Lab) -> None:
    service = train(lab, "pirate", 3)
    lab.log("pirate", note=jnp.float32(7))
    view = seen(lab, "pirate")
    check(lab.history("pirate"), view)
    check(lab.history(view.model_id), view)
    service.close("success").result(timeout=20)
    lab.stop()
    check(lab.history("pirate"), view)
    with pytest.raises(TxlabError, match="stopped"):
        lab.log("pirate", reward=1)
    lab.start()
    check(lab.history("pirate"), view)
    with pytest.raises(TxlabError, match="no adapter 'pirate'"):
        lab.log("pirate", reward=1)
    train(lab, "pirate", 1).close("success").result(timeout=20)
    assert lab.history("pirate").rows == 1, "the newest of that name"
    check(lab.history(view.model_id), view)
    with pytest.raises(TxlabError, match=r"no run 'nobody'.*'pirate', 'pirate'"):
        lab.history("nobody")


# ---------------------------------------------------------------------------- what a history holds


def test_every_step_that_was_ever_taken_is_there(bus: EventBus, store: Store) -> None:
    for number in (1, 2, 3):
        step(bus, number, 1 / number)
        bus.publish(MetricsLogged("m", {"reward": number}))
    bus.publish(AdapterRewound("m", 1))
    step(bus, 2, 5.0)
    bus.publish(MetricsLogged("m", {"reward": 9.0}))
    agrees(
        read_history(store.records, "m"),
        step=[1, 2, 3, 2],
        tokens=[20, 40, 60, 80],
        loss=[1, 1 / 2, 1 / 3, 5],
        reward=[1, 2, 3, 9],
    )
    assert read_history(store.records, "m")["seconds"][0] == 0, "nobody knows when it was made"


def test_metrics_of_a_step_share_its_row_whenever_they_are_logged(bus: EventBus, store: Store) -> None:
    bus.publish(MetricsLogged("m", {"before": 1.0}))
    bus.publish(MetricsLogged("m", {"early": 2.0}, 2))
    step(bus, 1, 1.0)
    step(bus, 2, 0.5)
    bus.publish(MetricsLogged("m", {"late": 3.0}, 1))
    nan = math.nan
    agrees(
        read_history(store.records, "m"),
        step=[0, 2, 1],
        tokens=[0, 40, 20],
        loss=[nan, 0.5, 1.0],
        before=[1, nan, nan],
        early=[nan, 2, nan],
        late=[nan, nan, 3],
    )


def test_what_is_logged_twice_for_a_step_is_there_twice(bus: EventBus, store: Store) -> None:
    step(bus, 1, 1.0)
    for reward in (1.0, 2.0):
        bus.publish(MetricsLogged("m", {"reward": reward}))
    agrees(read_history(store.records, "m"), step=[1, 1], loss=[1, math.nan], reward=[1, 2])


def test_a_losss_own_metrics_do_not_hide_the_columns_that_all_have() -> None:
    columns = to_columns([(1, 20, 100.0, {"tokens": 0.5})], began=90.0)
    assert (columns["tokens"].tolist(), columns["tokens (metric)"].tolist()) == ([20], [0.5])
    assert columns["seconds"].tolist() == [10]


def test_what_is_logged_later_for_a_step_does_not_move_it() -> None:
    own = {"learning_rate": 1e-3, "loss": 2.0}
    columns = to_columns([(1, 0, 95.0, {"early": 1.0}), (1, 20, 100.0, own), (1, 50, 160.0, {"late": 3.0})], began=90.0)
    assert (columns["tokens"].tolist(), columns["seconds"].tolist()) == ([20], [10])
    assert [columns[name].tolist() for name in ("early", "late")] == [[1], [3]]


def test_after_the_end_nothing_is_kept(store: Store) -> None:
    bus = EventBus()
    end = keep_history(bus, store.records)
    bus.publish(AdapterCreated("m", "one", LoraConfig(8), 100))
    step(bus, 1, 1.0)
    end()
    step(bus, 2, 0.5)
    assert read_history(store.records, "m").rows == 1


def test_without_any_run_that_is_said(store: Store) -> None:
    with pytest.raises(TxlabError, match=r"no run 'pirate'\. The newest runs: none yet\."):
        read_history(store.records, "pirate")


def test_a_run_without_steps_is_an_empty_table() -> None:
    history = History("one", "m", to_columns([], began=0.0))
    assert (history.rows, [*history]) == (0, [*FIXED])
    assert "0 rows" in repr(history)
    assert "0 rows" in history._repr_html_()


def test_a_history_is_a_table_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    points = [(n, 10 * n, 100.0 + n, {"loss": 1 / n} | ({"reward": 1.0} if n > 1 else {})) for n in (1, 2, 3)]
    frame = pandas.DataFrame(History("one", "m", to_columns(points, began=100.0)))
    assert {*frame.columns} == {*FIXED, "loss", "reward"}
    assert frame.step.tolist() == [1, 2, 3]
    assert frame.reward.isna().tolist() == [True, False, False]
    assert str(frame.time.iloc[0]) == "1970-01-01 00:01:41"


def test_without_pandas_it_is_a_dict_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    history = History("one", "m", to_columns([(1, 10, 101.0, {"loss": 2.0}), (2, 20, 102.0, {"own": 3.0})], 100.0))
    assert isinstance(history, dict)
    assert [str(column.dtype) for column in history.values()] == [
        *("int64", "int64", "float64", "datetime64[ms]", "float64", "float64")
    ]
    assert {column.shape for column in history.values()} == {(history.rows,)}
    assert repr(history).splitlines()[1:] == [
        "step  tokens  seconds   loss    own",
        "   1      10    1.000  2.000      –",
        "   2      20    2.000      –  3.000",
    ]


def test_a_wide_history_shows_the_users_own_metrics_first() -> None:
    of_losses = {f"ratio {n}": float(n) for n in range(12)}
    steps = [(n, 10 * n, 100.0 + n, {"loss": 1.0, "learning_rate": 0.1, **of_losses}) for n in (1, 2)]
    points = [steps[0], (1, 10, 101.5, {"reward": 0.25}), steps[1], (2, 20, 102.5, {"reward": 0.5, "length": 7.0})]
    history = History("one", "m", to_columns(points, began=100.0))
    assert [*history][len(FIXED) :][:3] == ["reward", "length", "loss"]
    title, heads, *rows = repr(history).splitlines()
    assert title.endswith("2 rows, 8 of 16 metrics")
    assert heads.split()[3:6] == ["reward", "length", "loss"]
    assert [row.split()[3:5] for row in rows] == [["0.2500", "–"], ["0.5000", "7.000"]]


def test_it_shows_its_first_and_last_rows() -> None:
    points = [(n, 1000 * n, 100.0 + n, {"<b>": float(n)}) for n in range(1, 1001)]
    history = History("<i>", "m", to_columns(points, began=100.0))
    text, html = repr(history), history._repr_html_()
    assert [line.split()[0] for line in text.splitlines()] == (
        ["<i>", "step", "1", "2", "3", "4", "5", "…", "996", "997", "998", "999", "1,000"]
    )
    assert "1,000,000" in text
    assert "1,000 rows" in text
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert html.count("<tr") == 12
    assert [e.text for e in Page(html).all("caption")] == ["<i> (m): 1,000 rows"]


def test_of_many_metrics_it_shows_a_few() -> None:
    points = [(1, 10, 100.0, {f"metric{n}": 1.0 for n in range(30)})]
    text = repr(History("one", "m", to_columns(points, began=100.0)))
    assert "8 of 30 metrics" in text
    assert "metric7" in text
    assert "metric8" not in text


# ---------------------------------------------------------------------------------- what is logged


@pytest.mark.parametrize(
    "value", [1, 0.5, True, np.float32(0.5), np.array(2), jnp.float32(0.5), jnp.array(3), math.nan, -math.inf]
)
def test_numbers_of_any_kind_are_numbers(value: object) -> None:
    number = as_number("x", value)
    assert type(number) is float
    np.testing.assert_equal(number, float(value))  # type: ignore[arg-type]


class Vector:
    """One number in one dimension, which torch and older NumPy convert all the same."""

    ndim = 1

    def __float__(self) -> float:
        return 1.0


@pytest.mark.parametrize("value", [Vector(), "0.5", None, [1.0], np.array([1.0]), jnp.zeros(1), 1j, {}, b"1", 10**400])
def test_anything_else_is_refused_by_name(value: object) -> None:
    with pytest.raises(TxlabError, match=r"^x is .*: log a number"):
        as_number("x", value)


@pytest.mark.parametrize("step", [-1, 1.0, "1", 2**60, np.float32(1), [1]])
def test_a_step_is_a_whole_number(step: object) -> None:
    with pytest.raises(TxlabError, match="it must be a whole number from 0 on"):
        as_step(step)
    with pytest.raises(TxlabError, match=r"^steps is"):
        as_step(step, "steps")
    assert [as_step(step) for step in (0, np.int32(7))] == [0, 7]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({}, "nothing to log"),
        ({"loss": 1.0}, "loss is what the lab itself keeps"),
        ({"step": 3}, "step is what the lab itself keeps"),
        ({"": 1.0}, "this one has 0"),
        ({"x" * 101: 1.0}, "this one has 101"),
        ({"good": 1.0, "bad": "no"}, "bad is 'no'"),
        ({"bad": "no" * 1000}, r"bad is 'nono.*\.\.\.: log"),
    ],
)
def test_what_cannot_be_logged_is_said(metrics: dict[str, object], message: str) -> None:
    with pytest.raises(TxlabError, match=message):
        as_metrics(metrics)


def test_it_may_be_logged_from_any_thread(lab: Lab) -> None:
    lab._bus.publish(AdapterCreated("m", "one", LoraConfig(8), 100))

    def log(number: int) -> None:
        for at in range(50):
            lab.log("one", at, **{f"metric{number}": at})

    threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = lab.history("m")
    assert sorted(history["step"].tolist()) == list(range(50))
    for number in range(4):
        np.testing.assert_array_equal(history[f"metric{number}"], history["step"])


# ----------------------------------------------------------------------------------- marks and origins


def test_marks_are_kept_and_shown(bus: EventBus, store: Store) -> None:
    marks = ("zero gradient: no forward_backward since the last step", "<b>")
    bus.publish(StepCompleted("m", 1, 1e-3, 2.0, 100))
    bus.publish(StepCompleted("m", 2, 1e-3, 0.0, 100, marks))
    history = read_history(store.records, "m")
    assert history.marks == tuple((2, mark) for mark in marks)
    assert "step 2: zero gradient: no forward_backward since the last step" in repr(history)
    assert "step 2: &lt;b&gt;" in history._repr_html_()
    assert "marks" not in history, "columns are numbers"


def test_a_folder_of_an_earlier_release_opens(tmp_path: Path) -> None:
    """Its database has neither marks nor origins."""
    from sqlalchemy import create_engine, text

    Store(tmp_path).close()
    with create_engine(f"sqlite:///{tmp_path / 'txlab.db'}").begin() as connection:
        for table in ("marks", "origins"):
            connection.execute(text(f"DROP TABLE {table}"))
    store = Store(tmp_path)
    bus = EventBus()
    keep_history(bus, store.records)
    bus.publish(AdapterCreated("m", "one", LoraConfig(8), 100))
    bus.publish(StepCompleted("m", 1, 1e-3, 0.0, 100, ("remarkable",)))
    assert read_history(store.records, "m").marks == ((1, "remarkable"),)
    store.close()


def steps_of(client: tinker.TrainingClient, steps: int) -> None:
    for _ in range(steps):
        client.forward_backward([DATUM], "cross_entropy")
        client.optim_step(types.AdamParams(learning_rate=1e-3)).result(60)


def test_a_resumed_adapter_is_called_after_its_checkpoint_and_goes_on_from_its_history(lab: Lab) -> None:
    service = tinker.ServiceClient()
    first = service.create_lora_training_client(lab.model, rank=4, user_metadata={"name": "pirate"}).result(60)
    steps_of(first, 2)
    path = first.save_state("two").result(60).path
    lab.log("pirate", 2, reward=0.5)  # of the step that was saved, though later
    steps_of(first, 1)  # not in the checkpoint
    second = service.create_training_client_from_state_with_optimizer(path).result(60)
    steps_of(second, 2)
    assert lab.adapters[second.model_id].name == "pirate from two"
    history = lab.history(second.model_id)
    assert history["step"].tolist() == [1, 2, 3, 4]
    assert history["tokens"].tolist() == [3, 6, 9, 12]
    assert (history["seconds"][:2] < 0).all()
    assert (np.diff(history["time"]).astype(float) >= 0).all()
    assert history["reward"][1] == 0.5
    assert history["loss"][:2].tolist() == lab.history("pirate")["loss"][:2].tolist()
    origin = history.origin
    assert origin is not None
    assert (origin.parent_id, origin.parent, origin.checkpoint) == (first.model_id, "pirate", "two")
    assert (origin.step, origin.rows) == (2, 2)
    assert f"began with two of pirate ({first.model_id}) at step 2; the first 2 rows are from there" in repr(history)
    assert lab.history("pirate").origin is None
    assert lab.history("pirate")["step"].tolist() == [1, 2, 3]

    again = second.save_state("four").result(60).path
    third = service.create_training_client_from_state_with_optimizer(again).result(60)
    steps_of(third, 1)
    assert lab.adapters[third.model_id].name == "pirate from four"
    assert lab.history(third.model_id)["step"].tolist() == [1, 2, 3, 4, 5]
    twin = service.create_training_client_from_state_with_optimizer(again).result(60)
    assert lab.adapters[twin.model_id].name == "pirate from four (2)"
    named = service.create_training_client_from_state(path, user_metadata={"name": "mine"}).result(60)
    steps_of(named, 1)
    assert lab.adapters[named.model_id].name == "mine"
    weights_only = lab.history("mine")
    assert weights_only["step"].tolist() == [1], "a fresh optimizer counts from 1, and the run is its own"
    assert weights_only.origin is not None
    assert (weights_only.origin.parent, weights_only.origin.rows) == ("pirate", 0)


def test_steps_that_the_parent_took_anew_after_the_checkpoint_are_its_own(lab: Lab) -> None:
    service = tinker.ServiceClient()
    first = service.create_lora_training_client(lab.model, rank=4, user_metadata={"name": "back"}).result(60)
    steps_of(first, 2)
    path = first.save_state("two").result(60).path
    lab.rewind("back", 1)
    steps_of(first, 1)
    resumed = service.create_training_client_from_state_with_optimizer(path).result(60)
    steps_of(resumed, 1)
    assert lab.history("back")["step"].tolist() == [1, 2, 2]
    assert lab.history(resumed.model_id)["step"].tolist() == [1, 2, 3]
