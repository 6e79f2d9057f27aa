"""Adapters, runs and checkpoints of a real lab, live, stopped and after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tinker
from tinker import types

from tests.notebook.records import SESSION, record_run, record_session
from tests.notebook.views.html import Page
from txlab.config import Settings, StoreSettings
from txlab.engine.adapter_history import LEARNING_RATE, AdapterView
from txlab.engine.events import StateChanged
from txlab.lora.state import LoraConfig
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, serve
from txlab.notebook.runs import Adapter, Checkpoint, Run
from txlab.notebook.views.tables import moment
from txlab.store.checkpoint_info import Address, CheckpointInfo
from txlab.store.tables import PointRow

DATUM = types.Datum(
    model_input=types.ModelInput.from_ints([5, 6, 7]),
    loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [0.0, 1.0, 1.0]},
)
EVIL = "<b onclick='x'>"
NOW = datetime(2026, 11, 23, 16, tzinfo=UTC)


@pytest.fixture(scope="module")
def lab(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two adapters, of which the first took three steps and has two checkpoints."""
    running = serve(str(tiny_llama), root=tmp_path_factory.mktemp("root"))
    service = tinker.ServiceClient()
    try:
        pupil = service.create_lora_training_client(
            base_model=running.model, rank=4, train_unembed=False, user_metadata={"name": "pupil", "note": EVIL}
        ).result()
        for _ in range(3):
            pupil.forward_backward([DATUM], "cross_entropy").result()
            pupil.optim_step(types.AdamParams(learning_rate=1e-3)).result()
        pupil.save_state("one").result()
        pupil.save_weights_for_sampler("two", ttl_seconds=7200).result()
        service.create_lora_training_client(base_model=running.model, rank=2, user_metadata={"name": EVIL}).result()
        yield running
    finally:
        service.close("success").result()
        running.stop()


def stopped(lab: Lab) -> Lab:
    """A lab of the same root that never ran, as after a restart of the kernel."""
    return Lab(Settings(model=lab.settings.model, store=lab.settings.store))


def test_adapters_are_those_that_are_loaded(lab: Lab) -> None:
    pupil, evil = lab.adapters
    assert (pupil.name, pupil.rank, pupil.layers, pupil.step, pupil.tokens) == ("pupil", 4, "attn+mlp", 3, 9)
    assert pupil.loss is not None
    assert pupil.loss > 0
    assert (evil.name, evil.step, evil.loss) == (EVIL, 0, None)
    assert lab.adapters["pupil"] == lab.adapters[pupil.model_id] == pupil
    assert repr(lab.adapters).splitlines()[1].split()[:5] == ["pupil", pupil.model_id, "4", "attn+mlp", "3"]
    assert "rank           4" in repr(pupil)
    with pytest.raises(TxlabError, match=r"no adapter 'nobody'\. There are: 'pupil'"):
        _ = lab.adapters["nobody"]


def test_runs_are_the_newest_first_with_their_checkpoints(lab: Lab) -> None:
    evil, pupil = lab.runs()
    assert (evil.name, pupil.name) == (EVIL, "pupil")
    assert (pupil.base_model, pupil.rank, pupil.step, pupil.state) == (lab.model, 4, 3, "idle")
    assert pupil.user_metadata["note"] == EVIL
    assert {one.path.rpartition(":0/")[2] for one in pupil.checkpoints} == {"weights/one", "sampler_weights/two"}
    assert abs(pupil.created - datetime.now(UTC)) < timedelta(minutes=10)
    assert len(lab.runs()[:1]) == 1


def test_checkpoints_of_all_and_of_a_run(lab: Lab) -> None:
    assert len(lab.checkpoints()) == len(lab.checkpoints("pupil")) == 2
    assert len(lab.checkpoints(EVIL)) == 0
    state, weights = lab.checkpoints()["one"], lab.checkpoints()["two"]
    assert (state.kind, state.step, state.expires, state.public) == ("weights", 3, None, False)
    assert (weights.kind, weights.rank) == ("sampler_weights", 4)
    assert weights.expires is not None
    assert weights.size_bytes > 1000
    assert lab.checkpoints()[state.path] == state
    with pytest.raises(TxlabError, match=r"no run 'nobody'; lab.runs\(\)"):
        lab.checkpoints("nobody")


def test_a_checkpoint_that_no_run_made_is_found_by_its_id(lab: Lab, tmp_path: Path) -> None:
    lab.export_peft(lab.checkpoints()["two"].path, tmp_path / "peft")
    path = lab.import_peft(tmp_path / "peft", "brought")
    assert [one.path for one in lab.checkpoints("peft")] == [path]


def test_all_have_faces(lab: Lab) -> None:
    for thing in (lab, lab.status(), lab.adapters, lab.runs(), lab.checkpoints(), lab.adapters[0], lab.runs()[0]):
        page = Page(thing._repr_html_())  # type: ignore[attr-defined]
        page.assert_harmless()
        assert page.elements[0].attributes["role"] == "group"
    assert EVIL in Page(lab.runs()._repr_html_()).elements[0].text
    assert EVIL in Page(lab.status()._repr_html_()).elements[0].text


def test_they_make_data_frames(lab: Lab) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(lab.runs())
    assert frame["name"].tolist() == [EVIL, "pupil"]
    assert frame["step"].tolist() == [0, 3]
    assert pandas.DataFrame(lab.checkpoints())["size_bytes"].min() > 1000
    assert pandas.DataFrame(lab.adapters)["rank"].tolist() == [4, 2]


def test_after_a_restart_the_records_tell(lab: Lab) -> None:
    later = stopped(lab)
    assert len(later.adapters) == 0
    assert repr(later.adapters) == "no adapters"
    pupil = later.runs()["pupil"]
    assert (pupil.step, pupil.state, len(pupil.checkpoints)) == (3, "", 2)
    assert len(later.checkpoints("pupil")) == 2
    assert later.runs()[EVIL].step is None


def test_an_empty_root_has_nothing(tmp_path: Path) -> None:
    lab = Lab(Settings(store=StoreSettings(tmp_path)))
    assert repr(lab.runs()) == "no runs"
    assert Page(lab.checkpoints()._repr_html_()).elements[0].text.endswith("no checkpoints")


def test_the_figures_of_an_adapter() -> None:
    view = AdapterView(
        "run:train:0", "", LoraConfig(8), 2_500_000, 1_000_000.5, "training", "", 1200, 1e-4, 0.5, 3, 4321.0, 2.0
    )
    adapter = Adapter.of(view)
    assert adapter.created == datetime(1970, 1, 12, 13, 46, 40, 500_000, tzinfo=UTC)
    told = dict(zip([column.name for column in Adapter.COLUMNS], adapter.cells(), strict=True))
    assert told == {
        "adapter": "run:train:0",  # it has no name
        "run": "run:train:0",
        "rank": "8",
        "layers": "all",
        "step": "1,200",
        "loss": "2.000",
        "learning rate": "1e-4",
        "grad norm": "0.5000",
        "tokens/s": "4,321",
        "memory": "2.5 MB",
        "state": "training",
    }


@pytest.mark.parametrize("lasting", [True, False])
def test_the_figures_of_a_checkpoint(lasting: bool) -> None:
    expires = None if lasting else NOW + timedelta(days=1)
    address = Address("run:train:0", "sampler_weights", "last")
    info = CheckpointInfo(
        address, "base", LoraConfig(8), 1200, False, NOW, expires, size_bytes=2_500_000, public=lasting
    )
    told = dict(zip([column.name for column in Checkpoint.COLUMNS], Checkpoint.of(info).cells(), strict=True))
    assert told == {
        "path": "tinker://run:train:0/sampler_weights/last",
        "kind": "sampler weights",
        "step": "1,200",
        "rank": "8",
        "size": "2.5 MB",
        "created": moment(NOW),
        "expires": "never" if lasting else moment(expires),
        "published": "yes" if lasting else "no",
    }


def test_a_run_is_told_by_the_adapter_that_is_loaded_else_by_its_records(tmp_path: Path) -> None:
    lab = Lab(Settings(store=StoreSettings(tmp_path)))
    with lab._stored() as store:
        record_session(store.records, NOW)
        record_run(store.records, "saved", "", NOW)
        lora = {"rank": 8, "train_attn": True, "train_mlp": False, "train_unembed": False}
        more = {"lora": lora, "last_request": NOW + timedelta(hours=1), "user_metadata": {"note": "kept"}}
        record_run(store.records, "logged", "pupil", NOW, **more)
        store.records.add(PointRow(model_id="logged", step=5, tokens=9, time=1.0, metrics={LEARNING_RATE: 1e-3}))
        store.records.add(PointRow(model_id="logged", step=8, tokens=9, time=2.0, metrics={"own": 1.0}))
    runs = lab.runs()
    told = dict(zip([column.name for column in Run.COLUMNS], runs["pupil"].cells(), strict=True))
    assert told == {
        "run": "pupil",
        "id": "logged",
        "base model": "base",
        "rank": "8",
        "layers": "attn",
        "steps": "5",
        "created": moment(NOW),
        "last request": moment(NOW + timedelta(hours=1)),
        "checkpoints": "0",
        "state": "–",
    }
    assert (runs["saved"].name, runs["saved"].step) == ("saved", None)
    assert (runs["pupil"].session_id, runs["pupil"].user_metadata) == (SESSION, {"note": "kept"})


def test_an_adapter_that_is_unloaded_is_a_run_all_the_same(lab: Lab) -> None:
    service = tinker.ServiceClient()
    client = service.create_lora_training_client(base_model=lab.model, rank=2, user_metadata={"name": "brief"}).result()
    lab.rename("brief", "short")
    run = lab.runs()["short"]
    assert run.state == lab.adapters["short"].state == "idle"
    for step in (1, 2):
        client.forward_backward([DATUM], "cross_entropy").result()
        client.optim_step(types.AdamParams(learning_rate=1e-3)).result()
        client.save_state(f"after-{step}").result()
    service.close("success").result()
    lab._bus.publish(StateChanged(run.model_id, "unloaded"))
    assert "short" not in [adapter.name for adapter in lab.adapters]
    run = lab.runs()["short"]
    assert (run.state, run.step, len(run.checkpoints)) == ("", 2, 2)
    assert run.cells()[-2:] == ("2", "–")
