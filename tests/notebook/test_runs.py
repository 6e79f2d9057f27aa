"""Adapters, runs and checkpoints of a real lab, live, stopped and after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tinker
from tinker import types

from tests.notebook.views.html import Page
from txlab.config import Settings, StoreSettings
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, serve
from txlab.notebook.listing import ROWS, Listing
from txlab.notebook.runs import Checkpoint

DATUM = types.Datum(
    model_input=types.ModelInput.from_ints([5, 6, 7]),
    loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [0.0, 1.0, 1.0]},
)
EVIL = "<b onclick='x'>"


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


def test_long_tables_are_cut(lab: Lab) -> None:
    one = lab.checkpoints()[0]
    many = Listing(Checkpoint, [one] * (ROWS + 5))
    page = Page(many._repr_html_())
    assert len(page.all("tr")) == ROWS + 1
    assert "… and 5 more" in page.elements[0].text
    assert "… and 5 more" in repr(many)
