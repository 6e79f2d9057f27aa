"""The SDK's objects in a notebook: real ones, on display from ``%load_ext txlab`` on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pytest
import tinker
from IPython.core.formatters import BaseFormatter
from IPython.core.interactiveshell import InteractiveShell
from tinker import types
from tinker.types.checkpoints_list_response import CheckpointsListResponse
from tinker.types.cursor import Cursor
from tinker.types.get_server_capabilities_response import GetServerCapabilitiesResponse, SupportedModel
from tinker.types.training_runs_response import TrainingRunsResponse

from tests.notebook.kernels import Kernel
from tests.notebook.views.html import Page
from txlab.notebook import formatters
from txlab.notebook.lab import Lab
from txlab.notebook.views.tables import moment

EVIL = '<script>alert(\'&\')</script>"><b onclick="x">'
NOW = datetime(2026, 11, 23, 16, 0, tzinfo=UTC)
LATER = datetime(2026, 11, 30, 16, 0, tzinfo=UTC)
DATUM = types.Datum(
    model_input=types.ModelInput.from_ints([5, 6, 7]),
    loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [0.0, 0.0, 1.0]},
)
CHECKPOINT = types.Checkpoint(
    checkpoint_id=f"weights/{EVIL}",
    checkpoint_type="training",
    time=NOW,
    tinker_path=f"tinker://run/weights/{EVIL}",
    size_bytes=2_000_000,
    user_metadata={EVIL: EVIL},
)
RUN = types.TrainingRun(
    training_run_id="run:train:0",
    base_model=EVIL,
    model_owner="me",
    is_lora=True,
    lora_rank=8,
    last_request_time=NOW,
    last_checkpoint=CHECKPOINT,
    user_metadata={EVIL: EVIL},
)
SEQUENCE = types.SampledSequence(
    stop_reason="stop",
    sequence_id="s",
    tokens_np=np.array([5, 6, 7], np.int32),
    logprobs_np=np.array([-0.01, -1.0, -9.0], np.float32),
)
PASS = types.ForwardBackwardOutput(
    loss_fn_output_type="TorchLossReturn",
    loss_fn_outputs=[
        {
            "logprobs": types.TensorData.from_numpy(np.array([-1.0, -3.0], np.float32)),
            EVIL: DATUM.loss_fn_inputs["weights"],
        }
    ],
    metrics={"loss:sum": 1.23456, EVIL: float("nan")},
)
OBJECTS = {
    "datum": (DATUM, "3 tokens, 1 trained on, sum of weights 1.0"),
    "input": (DATUM.model_input, "3 tokens"),
    "sequence": (SEQUENCE, "3 tokens · stop · logprob -10.01, -3.34 a token"),
    "response": (
        types.SampleResponse(sequences=[SEQUENCE] * 2, prompt_cache_hit_tokens=7),
        "2 samples, 7 prompt tokens",
    ),
    "no logprobs": (types.SampledSequence(stop_reason="length", sequence_id="s", _tokens_list=[5]), "1 token · length"),
    "pass": (PASS, "-2.000 of 2"),
    "step": (types.OptimStepResponse(metrics={"grad_norm": 0.5, "step": 12.0}), "12"),
    "empty step": (types.OptimStepResponse(), "no metrics"),
    "checkpoint": (CHECKPOINT, "2.0 MB"),
    "checkpoints": (CheckpointsListResponse(checkpoints=[CHECKPOINT] * 2), "never"),
    "no checkpoints": (CheckpointsListResponse(checkpoints=[]), "no checkpoints"),
    "run": (RUN, "run:train:0"),
    "runs": (
        TrainingRunsResponse(training_runs=[RUN], cursor=Cursor(offset=0, limit=1, total_count=9)),
        "9 training runs, 1 of them here",
    ),
    "models": (
        GetServerCapabilitiesResponse(supported_models=[SupportedModel(model_name=EVIL, max_context_length=8192)]),
        "8,192",
    ),
    "datums": ([DATUM, DATUM], "2 datums of 3 tokens · 6 tokens, 2 trained on, sum of weights 2.0"),
}


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """A shell with the formatters; none of its own stay."""
    fresh = InteractiveShell()
    formatters.register(fresh)
    yield fresh
    formatters.unregister(fresh)


@pytest.fixture
def html(shell: InteractiveShell) -> BaseFormatter:
    assert shell.display_formatter is not None
    return shell.display_formatter.formatters["text/html"]


@pytest.mark.parametrize("name", OBJECTS)
def test_everything_that_the_sdk_gives_has_a_face(html: BaseFormatter, name: str) -> None:
    value, expected = OBJECTS[name]
    page = Page(html(value))
    page.assert_harmless()
    assert expected in page.elements[0].text
    assert [e.attributes for e in page.all("b") if "onclick" in e.attributes] == []


def rows(html: str | None) -> list[list[str]]:
    """The cells of a face's tables, row by row, without their heads."""
    assert html
    found: list[list[str]] = []
    for element in Page(html).elements:
        if element.tag == "tr":
            found.append([])
        elif element.tag in ("th", "td"):
            found[-1].append(element.text)
    return found


def test_a_checkpoint_says_how_long_it_stays(html: BaseFormatter) -> None:
    brief = CHECKPOINT.model_copy(update={"tinker_path": "tinker://x", "expires_at": LATER, "public": True})
    unknown = brief.model_copy(update={"size_bytes": None, "expires_at": None, "public": False})
    assert rows(html(CheckpointsListResponse(checkpoints=[brief, unknown])))[1:] == [
        ["tinker://x", "training", "2.0 MB", moment(NOW), moment(LATER), "yes"],
        ["tinker://x", "training", "–", moment(NOW), "never", "no"],
    ]


def test_a_run_tells_of_its_last_checkpoints_and_its_metadata(html: BaseFormatter) -> None:
    kept = [CHECKPOINT.model_copy(update={"checkpoint_id": one, "tinker_path": one}) for one in ("one", "two")]
    about = {"last_checkpoint": kept[0], "last_sampler_checkpoint": kept[1], "user_metadata": {"note": "good"}}
    run = RUN.model_copy(update=about | {"base_model": "base"})
    shown = rows(html(run))
    assert shown[1] == ["run:train:0", "base", "8", moment(NOW)]
    assert [row[0] for row in shown[3:5]] == ["one", "two"]
    assert shown[5:] == [["note", "good"]]
    plain = run.model_copy(update={"lora_rank": None})
    both = TrainingRunsResponse(training_runs=[run, plain], cursor=Cursor(offset=0, limit=2, total_count=2))
    assert rows(html(both))[1:] == [["run:train:0", "base", rank, moment(NOW), "one, two"] for rank in ("8", "–")]
    assert "of them here" not in html(both)


def test_a_model_says_what_may_be_done_with_it(html: BaseFormatter) -> None:
    models = [
        SupportedModel(model_name="new", max_context_length=8192, trainable=True, sampleable=False),
        SupportedModel(model_name="odd"),
    ]
    assert rows(html(GetServerCapabilitiesResponse(supported_models=models)))[1:] == [
        ["new", "8,192", "yes", "no"],
        ["odd", "–", "–", "–"],
    ]


def test_a_pass_says_what_came_back_for_each_datum(html: BaseFormatter) -> None:
    def data(values: object) -> types.TensorData:
        return types.TensorData.from_numpy(np.array(values, np.float32))

    outputs = [{"logprobs": data([-1.0, -3.0])}, {"own": data(np.ones((2, 3)))}, {"own": data([])}]
    metrics = {"loss:sum": 1.23456, "rows": 1200.0}
    output = types.ForwardBackwardOutput(loss_fn_output_type="any", loss_fn_outputs=outputs, metrics=metrics)
    assert rows(html(output)) == [
        ["metric", "value"],
        ["loss:sum", "1.235"],
        ["rows", "1,200"],
        ["datum", "logprobs", "own"],
        ["0", "-2.000 of 2", ""],
        ["1", "", "1.000 of 2×3"],
        ["2", "", "empty"],
    ]


def test_samples_are_shaded_by_surprise(html: BaseFormatter) -> None:
    nothing = types.SampledSequence(
        stop_reason="stop", sequence_id="s", tokens_np=np.empty(0, np.int32), logprobs_np=np.empty(0, np.float32)
    )
    page = Page(html(types.SampleResponse(sequences=[SEQUENCE, nothing])))
    assert [e.text for e in page.all("div", "line")] == [
        "2 samples\u2002logprob -5",
        "[0] 3 tokens · stop · logprob -10.01, -3.34 a token",
        "[1] 0 tokens · stop",
    ]
    assert [e.text for e in page.all("div", "txlab-tokens")] == ["5 6 7 ", ""]
    for value in (SEQUENCE, DATUM.model_input):
        assert ".txlab-tokens" in Page(html(value)).all("style")[0].text


def test_every_type_that_is_registered_exists(html: BaseFormatter) -> None:
    shown = {(type(value).__module__, type(value).__name__) for value, _ in OBJECTS.values()}
    assert set(formatters.FACES) <= shown


def test_without_a_lab_tokens_are_numbers(html: BaseFormatter) -> None:
    assert Lab.current is None
    shown = Page(html(DATUM)).all("b")
    assert [b.text for b in shown if "title" in b.attributes] == ["5 ", "6 ", "7 ", "8 "]


def test_only_lists_of_datums_are_galleries(html: BaseFormatter, caplog: pytest.LogCaptureFixture) -> None:
    class Own(list):  # type: ignore[type-arg]
        def _repr_html_(self) -> str:
            return "its own"

    with caplog.at_level("ERROR"):
        assert html([DATUM, 1]) is None
    assert not caplog.records
    assert html([]) is None
    assert html([1.0] * 10) is None
    assert html(Own([1])) == "its own"


@pytest.mark.parametrize(
    "broken",
    [
        types.ModelInput(chunks=[types.ImageAssetPointerChunk(format="png", location="x", expected_tokens=3)]),
        types.Datum(model_input=types.ModelInput.from_ints([-100]), loss_fn_inputs={}),
        types.SampleResponse(sequences=[object()]),  # type: ignore[list-item]
        types.ForwardBackwardOutput(loss_fn_output_type="", loss_fn_outputs=[{"x": None}]),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_drawn_is_left_to_its_text(
    html: BaseFormatter, broken: object, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert html(broken) is None
    assert "Traceback" not in "".join(capsys.readouterr())
    assert f"no face for {type(broken).__name__}" in caplog.text, "it is in %txlogs"


def test_a_datum_whose_arrays_do_not_fit_is_still_shown(html: BaseFormatter) -> None:
    odd = types.Datum(model_input=types.ModelInput.from_ints([5, 6, 7]), loss_fn_inputs={"weights": [1.0]})
    assert "3 tokens" in Page(html(odd)).elements[0].text


def test_unregistering_leaves_nothing_but_what_others_gave(shell: InteractiveShell, html: BaseFormatter) -> None:
    assert html(DATUM)
    formatters.register(shell)  # once more, as a reload may
    html.for_type(tinker.SampleResponse, lambda _: "somebody else's")
    formatters.unregister(shell)
    assert html(DATUM) is None
    assert html([DATUM]) is None
    assert html(OBJECTS["response"][0]) == "somebody else's"
    html.pop(tinker.SampleResponse)


def test_shells_are_told_apart() -> None:
    first, second = InteractiveShell(), InteractiveShell()
    formatters.register(first)
    assert first.display_formatter is not None
    assert second.display_formatter is not None
    assert first.display_formatter.formatters["text/html"](DATUM)
    assert second.display_formatter.formatters["text/html"](DATUM) is None
    formatters.unregister(second)
    formatters.unregister(first)


SHOWN = """
import tinker
from IPython.display import display
text = 'English: naïve 🍌\\nPig Latin: aïvenay'
ids = lab._tokenizer.encode(text)
weights = [0.0] * 10 + [1.0] * (len(ids) - 11)
inputs = {'target_tokens': ids[1:], 'weights': weights}
datum = tinker.Datum(model_input=tinker.ModelInput.from_ints(ids[:-1]), loss_fn_inputs=inputs)
"""


def test_a_cell_that_ends_with_a_datum_shows_what_is_trained_on(kernel: Kernel, tiny_llama: object) -> None:
    kernel.ok(f"%load_ext txlab\nlab = %txserve {tiny_llama}\n{SHOWN}")
    bundle = kernel.ok("display(datum)").displays[-1]
    page = Page(bundle["text/html"])
    (strip,) = page.all("div", "txlab-tokens")
    assert strip.text == "English: naïve 🍌\nPig Latin: aïvenay"
    shaded = [b for b in page.all("b", "on") if "title" in b.attributes]
    assert shaded
    assert all("rgba" in b.attributes["style"] and "weight 1" in b.attributes["title"] for b in shaded)
    assert "".join(b.text for b in shaded) == strip.text[-len("".join(b.text for b in shaded)) :]
    assert "text/plain" in bundle
    gallery = kernel.ok("display([datum] * 3)").displays[-1]["text/html"]
    assert len(Page(gallery).all("div", "txlab-tokens")) == 3
    assert kernel.ok("lab.show(datum)").text.startswith(f"{len(shaded) + 10} tokens, {len(shaded)} trained on")
    kernel.ok("%unload_ext txlab")
    assert "text/html" not in kernel.ok("display(datum)").displays[-1]
