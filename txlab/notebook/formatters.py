"""Faces of the SDK's own objects in a notebook, from ``%load_ext txlab`` on.

They are known by name, so that the SDK is not imported for them. A formatter that fails leaves the object's text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from txlab.notebook.datums import Datums, as_datum, ids_only
from txlab.notebook.lab import Lab
from txlab.notebook.views.frame import Decode
from txlab.notebook.views.strips import sample_strip
from txlab.notebook.views.tables import Column, face_html, facts_html, line_html, moment, plural, table_html
from txlab.notebook.views.text import memory, number
from txlab.notebook.views.tokens import TOKEN_STYLE, Strip, legend_html, strip_html

if TYPE_CHECKING:
    import tinker
    from IPython.core.formatters import BaseFormatter
    from IPython.core.interactiveshell import InteractiveShell

log = logging.getLogger(__name__)

CHECKPOINTS = (
    Column("checkpoint", "code"),
    Column("kind"),
    Column("size", "number"),
    Column("when"),
    Column("expires"),
    Column("published"),
)
RUNS = (
    Column("run", "code"),
    Column("base model"),
    Column("rank", "number"),
    Column("last request"),
    Column("checkpoints", "code"),
)
SHOWN = 64  # outputs of a pass, sequences of a sample


def register(shell: InteractiveShell) -> None:
    """Give the SDK's objects their faces. A second call changes nothing."""
    html = _formatter(shell)
    for (module, name), face in FACES.items():
        html.for_type_by_name(module, name, face)
    html.for_type(list, list_face)


def unregister(shell: InteractiveShell) -> None:
    """Take the faces away, but for those that somebody else has given meanwhile."""
    html = _formatter(shell)
    for (module, name), face in FACES.items():
        while html.for_type_by_name(module, name) is face:  # there are two, where it was registered twice
            html.pop(f"{module}.{name}")
    if html.for_type(list) is list_face:
        html.pop(list)


def _formatter(shell: InteractiveShell) -> BaseFormatter:
    assert shell.display_formatter is not None  # a shell has one from its start
    return shell.display_formatter.formatters["text/html"]


def _guarded(face: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    """A face that is left out where it cannot be drawn: it never breaks a cell."""

    @wraps(face)
    def drawn(value: Any) -> str | None:
        try:
            return face(value)
        except Exception:
            log.exception("no face for %s", type(value).__name__)
            return None

    return drawn


def _decode() -> Decode:
    """Of the lab that runs; where none does, tokens are their numbers."""
    return ids_only if Lab.current is None else Lab.current._pieces


# --------------------------------------------------------------------------------- tokens


@_guarded
def datum_face(datum: tinker.Datum) -> str:
    """Tokens shaded by weight or advantage."""
    return Datums([as_datum(datum)], _decode())._repr_html_()


@_guarded
def list_face(values: list[Any]) -> str | None:
    """A gallery, where it is a list of datums; lists of other classes keep their own faces."""
    if values and all(map(_is_datum, values)):
        return Datums(map(as_datum, values), _decode())._repr_html_()
    own = getattr(values, "_repr_html_", None)
    return own() if callable(own) else None


def _is_datum(value: object) -> bool:
    return (type(value).__module__, type(value).__name__) == ("tinker", "Datum")


@_guarded
def input_face(model_input: tinker.ModelInput) -> str:
    """The tokens of a prompt."""
    tokens = np.array(model_input.to_ints(), np.int64)
    return _strip_face("prompt", Strip(tokens, _decode(), plural(len(tokens), "token")))


@_guarded
def sequence_face(sequence: tinker.SampledSequence) -> str:
    """What was drawn, shaded by surprise."""
    return _strip_face("sample", _sequence_strip(sequence))


@_guarded
def sample_face(response: tinker.SampleResponse) -> str:
    """All sequences of a response."""
    strips = [_sequence_strip(sequence) for sequence in response.sequences[:SHOWN]]
    cached = response.prompt_cache_hit_tokens
    head = plural(len(response.sequences), "sample") + (f", {cached:,} prompt tokens from the cache" if cached else "")
    legend = legend_html(strips[0].shade) if strips else ""
    blocks = [line_html(f"[{i}] {strip.note}") + strip_html(strip) for i, strip in enumerate(strips)]
    return face_html("samples", line_html(head, legend), *blocks, style=TOKEN_STYLE)


def _sequence_strip(sequence: tinker.SampledSequence) -> Strip:
    tokens = np.array(sequence.tokens, np.int64)
    logprobs = None if sequence.logprobs is None else np.array(sequence.logprobs, np.float64)
    note = f"{plural(len(tokens), 'token')} · {sequence.stop_reason}"
    if logprobs is not None and len(logprobs):
        note += f" · logprob {logprobs.sum():.4g}, {logprobs.mean():.3g} a token"
    return sample_strip(tokens, logprobs, _decode(), note)


def _strip_face(label: str, strip: Strip) -> str:
    return face_html(label, line_html(strip.note, legend_html(strip.shade)), strip_html(strip), style=TOKEN_STYLE)


# -------------------------------------------------------------------------------- figures


@_guarded
def pass_face(output: tinker.ForwardBackwardOutput) -> str:
    """Metrics of a pass, and what came back for each datum."""
    names = list(dict.fromkeys(name for one in output.loss_fn_outputs for name in one))
    columns = (Column("datum", "number"), *(Column(name, "number") for name in names))
    rows = [
        (str(i), *(_tensor(one[name].to_numpy()) if name in one else "" for name in names))
        for i, one in enumerate(output.loss_fn_outputs[:SHOWN])
    ]
    each = (
        table_html(columns, rows, f"{plural(len(output.loss_fn_outputs), 'datum')}, mean of each output")
        if names
        else ""
    )
    return face_html("results of a pass", _metrics(output.metrics), each)


@_guarded
def step_face(response: tinker.OptimStepResponse) -> str:
    """Metrics of an optimizer step."""
    return face_html("results of an optimizer step", _metrics(response.metrics or {}))


def _metrics(metrics: Mapping[str, float]) -> str:
    rows = [(name, _figure(value)) for name, value in metrics.items()]
    return table_html((Column("metric"), Column("value", "number")), rows) if rows else line_html("no metrics")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else number(value)


def _tensor(values: np.ndarray) -> str:
    return f"{number(float(values.mean()))} of {'×'.join(map(str, values.shape))}" if values.size else "empty"


# --------------------------------------------------------------------------- what is kept


@_guarded
def checkpoint_face(checkpoint: tinker.Checkpoint) -> str:
    """A checkpoint as a row."""
    return face_html("checkpoint", _checkpoints([checkpoint]))


@_guarded
def checkpoints_face(response: Any) -> str:
    """A row per checkpoint."""
    listed = response.checkpoints
    return face_html("checkpoints", _checkpoints(listed) if listed else line_html("no checkpoints"))


@_guarded
def run_face(run: tinker.TrainingRun) -> str:
    """All that is known of a training run."""
    facts = [(name, str(value)) for name, value in (run.user_metadata or {}).items()]
    told = facts_html(facts, "user metadata") if facts else ""
    kept = [one for one in (run.last_checkpoint, run.last_sampler_checkpoint) if one is not None]
    return face_html("training run", table_html(RUNS[:-1], [_run(run)[:-1]]), _checkpoints(kept) if kept else "", told)


@_guarded
def runs_face(response: Any) -> str:
    """A row per training run."""
    listed = response.training_runs
    total = response.cursor.total_count
    caption = plural(total, "training run") + (f", {len(listed)} of them here" if total > len(listed) else "")
    return face_html("training runs", table_html(RUNS, [_run(run) for run in listed], caption))


@_guarded
def models_face(response: Any) -> str:
    """What a server offers."""
    columns = (Column("model", "code"), Column("context", "number"), Column("trains"), Column("samples"))
    rows = [
        (
            str(model.model_name),
            "–" if model.max_context_length is None else f"{model.max_context_length:,}",
            _yes(model.trainable),
            _yes(model.sampleable),
        )
        for model in response.supported_models
    ]
    return face_html("supported models", table_html(columns, rows))


def _checkpoints(listed: Iterable[tinker.Checkpoint]) -> str:
    rows = [
        (
            one.tinker_path,
            one.checkpoint_type,
            "–" if one.size_bytes is None else memory(one.size_bytes),
            moment(one.time),
            moment(one.expires_at) if one.expires_at else "never",
            _yes(one.public),
        )
        for one in listed
    ]
    return table_html(CHECKPOINTS, rows)


def _run(run: tinker.TrainingRun) -> tuple[str, ...]:
    kept = [one.checkpoint_id for one in (run.last_checkpoint, run.last_sampler_checkpoint) if one is not None]
    rank = "–" if run.lora_rank is None else str(run.lora_rank)
    return (run.training_run_id, run.base_model, rank, moment(run.last_request_time), ", ".join(kept))


def _yes(value: bool | None) -> str:
    return "–" if value is None else "yes" if value else "no"


# The SDK gives its commonly used types the module "tinker"; the others keep the one that they are defined in.
FACES: dict[tuple[str, str], Callable[[Any], str | None]] = {
    ("tinker", "Datum"): datum_face,
    ("tinker", "ModelInput"): input_face,
    ("tinker", "SampledSequence"): sequence_face,
    ("tinker", "SampleResponse"): sample_face,
    ("tinker", "ForwardBackwardOutput"): pass_face,
    ("tinker", "OptimStepResponse"): step_face,
    ("tinker", "Checkpoint"): checkpoint_face,
    ("tinker", "TrainingRun"): run_face,
    ("tinker.types.checkpoints_list_response", "CheckpointsListResponse"): checkpoints_face,
    ("tinker.types.training_runs_response", "TrainingRunsResponse"): runs_face,
    ("tinker.types.get_server_capabilities_response", "GetServerCapabilitiesResponse"): models_face,
}
