"""``lab.report``: of a lab that runs, of one that was stopped, and of runs of earlier kernels."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import tinker
from tinker import types

from tests.notebook.records import record_run, record_session
from tests.notebook.synthetic import decode, sample, train
from tests.notebook.views.html import Page
from txlab.config import ServerSettings, Settings, StoreSettings
from txlab.engine.events import AdapterCreated, StateChanged
from txlab.lora.state import LoraConfig
from txlab.notebook import report
from txlab.notebook.errors import TxlabError
from txlab.notebook.history import History, to_columns
from txlab.notebook.lab import Lab, serve
from txlab.notebook.report import NEWEST_RUNS, PROMPT_TOKENS, SAMPLES, curves, flatten, versions
from txlab.notebook.views.tables import moment
from txlab.store.tables import PointRow

DATUM = types.Datum(
    model_input=types.ModelInput.from_ints([5, 6, 7]),
    loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [0.0, 1.0, 1.0]},
)
NOW = datetime(2026, 11, 23, 16, tzinfo=UTC)
CHARTS = ["loss per token by step", "gradient norm by step", "learning rate by step", "reward by step"]


@pytest.fixture(scope="module")
def lab(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab, stopped by the last test, in which two adapters learned and one sampled."""
    running = serve(str(tiny_llama), root=tmp_path_factory.mktemp("root"), api_key="tml-secret")
    service = tinker.ServiceClient()
    try:
        for name in ("pupil", "second"):
            client = service.create_lora_training_client(
                base_model=running.model, rank=4, user_metadata={"name": name}
            ).result()
            for step in range(1, 4):
                client.forward_backward([DATUM], "cross_entropy").result()
                client.optim_step(types.AdamParams(learning_rate=1e-3)).result()
                running.log(name, step, reward=step / 10)
        client.save_state("kept").result()
        running.sample("The quick", "pupil", max_tokens=5, stop=[], samples=2)
        service.close("success").result()
        yield running
    finally:
        running.stop()


def read(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    page.assert_harmless()
    return page


def charts(page: Page) -> list[str]:
    return [e.attributes["aria-label"] for e in page.all("svg") if "aria-label" in e.attributes]


def lines(page: Page) -> int:
    return sum("line" in e.attributes.get("class", "").split() for e in page.all("path"))


def test_a_report_has_everything(lab: Lab, tmp_path: Path) -> None:
    file = lab.report(tmp_path / "new" / "run.html")
    assert file == tmp_path / "new" / "run.html"
    page = read(file)
    said = page.elements[0].text
    assert [chart for chart in charts(page) if chart in CHARTS] == CHARTS
    assert lines(page) >= 2 * (4 + 1), "two curves a chart, and two in the legend"
    for expected in ("pupil", "second", "weights/kept", "tinker", "engine.train_bytes", "The quick", lab.model):
        assert expected in said
    assert len(page.all("article")) == 2
    assert "tml-secret" not in file.read_text()


def test_single_runs_may_be_chosen(lab: Lab, tmp_path: Path) -> None:
    page = read(lab.report(tmp_path / "run.html", "second"))
    assert next(e.text for e in page.all("th") if e.attributes["scope"] == "row") == "second"
    assert "pupil" not in page.all("section")[0].text
    assert not page.all("article"), "the other's samples are left out"
    assert "weights/kept" in page.elements[0].text
    by_id = read(lab.report(tmp_path / "run.html", lab.runs()["pupil"].model_id))
    assert rows(by_id) == ["pupil"]
    assert "weights/kept" not in by_id.elements[0].text, "the other's checkpoints are left out"
    both = read(lab.report(tmp_path / "run.html", ["second", "pupil"])).all("section")[0].text
    assert both.index("second") < both.index("pupil")
    with pytest.raises(TxlabError, match="no run 'nobody'"):
        lab.report(tmp_path / "run.html", ["nobody"])


def test_where_it_cannot_be_written_is_said(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "run.html"):
        with pytest.raises(TxlabError, match="cannot be written"):
            lab.report(path)


def test_runs_of_earlier_kernels_are_reported_from_their_history(lab: Lab, tmp_path: Path) -> None:
    later = Lab(Settings(model=lab.settings.model, store=lab.settings.store))
    page = read(later.report(tmp_path / "run.html"))
    assert [chart for chart in charts(page) if chart in CHARTS] == CHARTS
    live = read(lab.report(tmp_path / "live.html"))
    drawn = [
        sorted(e.attributes["d"] for e in one.all("path") if "line" in e.attributes["class"]) for one in (page, live)
    ]
    assert drawn[0] == drawn[1], "the same curves"
    assert "weights/kept" in page.elements[0].text


def test_a_rewound_history_is_drawn_as_it_went_on() -> None:
    nan = np.nan
    history = History(
        "run",
        "run",
        {
            "step": np.array([1, 2, 3, 2, 3, 9]),
            "tokens": np.arange(6),
            "seconds": np.arange(6.0),
            "time": np.arange(6).astype("datetime64[ms]"),
            "learning_rate": np.array([1, 1, 1, 1, 1, nan]),
            "loss": np.array([5, 4, 3, 8, 7, nan]),
            "own": np.array([nan, 1, nan, nan, 2, 3]),
        },
    )
    found = dict(curves(history))
    assert found["loss"][:, [0, 3]].tolist() == [[1, 5], [2, 8], [3, 7]]
    assert found["own"][:, [0, 3]].tolist() == [[3, 2], [9, 3]]
    empty = History("run", "run", {name: values[:0] for name, values in history.items()})
    assert all(len(points) == 0 for points in dict(curves(empty)).values())


def test_what_is_logged_ahead_of_a_step_is_drawn_in_the_order_of_steps() -> None:
    history = History("run", "run", to_columns([(5, 0, 1.0, {"own": 5.0}), (1, 9, 2.0, {"own": 1.0})], 0.0))
    assert dict(curves(history))["own"].tolist() == [[1, 9, 2, 1], [5, 0, 1, 5]]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab that never ran, whose bus has been told of two adapters, the second unloaded without a step."""
    lab = Lab(Settings(store=StoreSettings(tmp_path / "root")))
    monkeypatch.setattr(Lab, "_pieces", staticmethod(decode))
    train(lab._bus, "pupil", 3)
    lab._bus.publish(AdapterCreated("idler", "idler", LoraConfig(8), 1))
    lab._bus.publish(StateChanged("idler", "unloaded"))
    return lab


def rows(page: Page) -> list[str]:
    """The names of the runs."""
    return [e.text for e in page.all("th", "wrap")][1:]


def test_samples_say_who_drew_them_of_what(fresh: Lab, tmp_path: Path) -> None:
    sample(fresh._bus, "x" * 9 + "p" * PROMPT_TOKENS, " and on", "pupil", stop="length")
    sample(fresh._bus, "Who", " knows", None)
    sample(fresh._bus, "Somebody", " else's", "gone")
    gone, base, own = read(fresh.report(tmp_path / "run.html")).all("article")
    assert gone.text == "gone · 7 tokens in 0.5 s · stopSomebody else's"
    assert base.text == "base · 6 tokens in 0.5 s · stopWho knows"
    assert own.text == f"pupil · 7 tokens in 0.5 s · length…{'p' * PROMPT_TOKENS} and on"


def test_of_many_samples_the_newest_are_shown(fresh: Lab, tmp_path: Path) -> None:
    for number in range(SAMPLES + 4):
        sample(fresh._bus, f"prompt {number}", "", "pupil")
    shown = read(fresh.report(tmp_path / "run.html")).all("article")
    assert len(shown) == SAMPLES
    assert shown[0].text.endswith(f"prompt {SAMPLES + 3}")


def test_adapters_that_did_something_are_told_of_though_they_are_gone(fresh: Lab, tmp_path: Path) -> None:
    fresh._bus.publish(StateChanged("pupil", "unloaded"))
    assert rows(read(fresh.report(tmp_path / "run.html"))) == ["pupil"]


def test_a_lab_that_did_nothing_tells_of_the_newest_runs(tmp_path: Path) -> None:
    lab = Lab(Settings(store=StoreSettings(tmp_path / "root")))
    with lab._stored() as store:
        record_session(store.records, NOW)
        for number in range(NEWEST_RUNS + 2):
            record_run(store.records, f"id-{number}", f"run {number}", NOW + timedelta(number))
        point = PointRow(model_id="id-9", step=7, tokens=70, time=NOW.timestamp(), metrics={"learning_rate": 0.1})
        store.records.add(point)
    page = read(lab.report(tmp_path / "run.html"))
    assert rows(page) == [f"run {number}" for number in range(NEWEST_RUNS + 1, 1, -1)]
    newest = [e.text for e in page.all("td")][:9]
    assert newest == ["id-9", "8", "all", "7", "–", "–", "70", moment(NOW + timedelta(9)), "–"]


def test_a_live_run_is_told_by_the_engine(fresh: Lab, tmp_path: Path) -> None:
    with fresh._stored() as store:
        record_session(store.records, NOW)
        record_run(store.records, "older", "pupil", NOW)
    page = read(fresh.report(tmp_path / "run.html", ["pupil"]))
    created = moment(datetime.fromtimestamp(fresh._bus.view().adapters[0].created, UTC))
    assert [e.text for e in page.all("td")][:9] == (
        ["pupil", "16", "all", "3", "3.600", "2.916", "300", created, "idle"]
    )


def test_a_path_may_begin_at_home_and_texts_may_be_broken(
    fresh: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    sample(fresh._bus, "half \ud83c", " a character", "pupil")
    assert fresh.report("~/run.html") == tmp_path / "run.html"
    assert "half \ufffd a character" in read(tmp_path / "run.html").elements[0].text


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PACKAGES", ("numpy", "no-such-package"))
    assert versions() == [
        ("python", platform.python_version()),
        ("numpy", np.__version__),
        ("machine", platform.platform()),
    ]


def test_settings_are_named_by_their_place() -> None:
    named = dict(flatten(Settings(server=ServerSettings(port=7))))
    assert named["server.port"] == 7
    assert "model.name" in named


def test_a_stopped_lab_still_reports(lab: Lab, tmp_path: Path) -> None:
    lab.stop()
    page = read(lab.report(tmp_path / "run.html"))
    assert [chart for chart in charts(page) if chart in CHARTS] == CHARTS
    assert len(page.all("article")) == 2
