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

EVIL = '<script>alert(\'&\')</script>"><b onclick="x">'
NOW = datetime(2026, 11, 23, 16, 0, tzinfo=UTC)
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


def test_every_type_that_is_registered_exists(html: BaseFormatter) -> None:
    shown = {(type(value).__module__, type(value).__name__) for value, _ in OBJECTS.values()}
    assert set(formatters.FACES) <= shown


def test_without_a_lab_tokens_are_numbers(html: BaseFormatter) -> None:
    assert Lab.current is None
    shown = Page(html(DATUM)).all("b")
    assert [b.text for b in shown if "title" in b.attributes] == ["5 ", "6 ", "7 ", "8 "]


def test_only_lists_of_datums_are_galleries(html: BaseFormatter) -> None:
    class Own(list):  # type: ignore[type-arg]
        def _repr_html_(self) -> str:
            return "its own"

    assert html([DATUM, 1]) is None
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
    html: BaseFormatter, broken: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert html(broken) is None
    assert "Traceback" not in capsys.readouterr().out


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
