"""``lab.report``: of a lab that runs, of one that was stopped, and of runs of earlier kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tinker
from tinker import types

from tests.notebook.views.html import Page
from txlab.config import ServerSettings, Settings
from txlab.notebook.errors import TxlabError
from txlab.notebook.history import History
from txlab.notebook.lab import Lab, serve
from txlab.notebook.report import curves, flatten

DATUM = types.Datum(
    model_input=types.ModelInput.from_ints([5, 6, 7]),
    loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [0.0, 1.0, 1.0]},
)
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


def test_settings_are_named_by_their_place() -> None:
    named = dict(flatten(Settings(server=ServerSettings(port=7))))
    assert named["server.port"] == 7
    assert "model.name" in named


def test_a_stopped_lab_still_reports(lab: Lab, tmp_path: Path) -> None:
    lab.stop()
    page = read(lab.report(tmp_path / "run.html"))
    assert [chart for chart in charts(page) if chart in CHARTS] == CHARTS
    assert len(page.all("article")) == 2
