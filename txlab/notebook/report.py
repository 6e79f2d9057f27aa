"""A report of what was trained: one file to keep or to send."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from txlab.engine.adapter_history import LEARNING_RATE, AdapterView
from txlab.engine.events import SampleCompleted
from txlab.notebook.datums import Faces
from txlab.notebook.errors import TxlabError
from txlab.notebook.history import FIXED, Histories, History
from txlab.notebook.listing import Listing
from txlab.notebook.runs import Checkpoint, Inventory, Run
from txlab.notebook.views.report_html import Report, ReportRun, ReportSample, ReportTable, render_report
from txlab.notebook.views.tables import plural
from txlab.notebook.views.text import layers

NEWEST_RUNS = 8  # of a lab in which nothing was trained yet
SAMPLES = 16
PROMPT_TOKENS = 1024  # of a sample, its end
PACKAGES = ("txlab", "tinker", "jax", "flax", "optax", "transformers", "numpy")
SECRET = ("server.api_key",)


class Reports(Faces, Histories, Inventory):
    """What is written down for others."""

    def report(self, path: str | Path, runs: str | Sequence[str] | None = None) -> Path:
        """Write a report as one HTML file, which needs no network and no scripts, and return where it is.

        It has the runs with all their curves, the newest samples, the checkpoints and the settings. A stopped lab
        reports what it did; one that did nothing, the newest runs under its root.

        Args:
            path: of the file; one that is there is replaced.
            runs: names (the newest run of each) or ids, of runs of earlier kernels too; None is every adapter that
                this lab trained.

        Raises:
            TxlabError: there is no such run, or the file cannot be written.
        """
        file = Path(path).expanduser()
        html = render_report(self._report(runs))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(html, encoding="utf-8", errors="replace")
        except OSError as error:
            raise TxlabError(f"{file} cannot be written: {error.strerror or error}. Choose another path.") from None
        return file

    def _report(self, runs: str | Sequence[str] | None) -> Report:
        view, recorded = self._bus.view(), self.runs()
        chosen = _choose(view.adapters, recorded, [runs] if isinstance(runs, str) else runs)
        ids = {one.model_id for one in chosen}
        names = {adapter.model_id: adapter.name for adapter in view.adapters}
        samples = [sample for sample in view.samples if runs is None or sample.model_id in ids]
        checkpoints = [one.cells() for one in self.checkpoints() if one.model_id in ids]
        return Report(
            model=self.settings.model.name,
            written=datetime.now(UTC),
            versions=versions(),
            runs=[
                of_view(one) if isinstance(one, AdapterView) else of_history(one, self.history(one.model_id))
                for one in chosen
            ],
            samples=[self._sample(sample, names) for sample in samples[:SAMPLES]],
            checkpoints=ReportTable(Checkpoint.COLUMNS, checkpoints),
            settings=[(name, str(value)) for name, value in flatten(self.settings) if name not in SECRET],
        )

    def _sample(self, sample: SampleCompleted, names: dict[str, str]) -> ReportSample:
        name = "base" if sample.model_id is None else names.get(sample.model_id) or sample.model_id
        prompt = self._pieces(sample.prompt[-PROMPT_TOKENS:], sample.prompt[:-PROMPT_TOKENS], special=True)
        cut = "…" if len(sample.prompt) > PROMPT_TOKENS else ""
        note = f"{name} · {plural(len(sample.tokens), 'token')} in {sample.seconds:.2g} s · {sample.stop_reason}"
        return ReportSample(note, cut + "".join(prompt), "".join(self._pieces(sample.tokens, sample.prompt)))


def _choose(
    views: Sequence[AdapterView], recorded: Listing[Run], names: Sequence[str] | None
) -> Sequence[AdapterView | Run]:
    """The runs to tell of: as the engine knows them where it does, else as they were recorded."""
    if names is None:
        return [view for view in views if view.curves or view.state != "unloaded"] or recorded[:NEWEST_RUNS]
    known = {view.name: view for view in views} | {view.model_id: view for view in views}  # an id is nobody else's
    return [known.get(name) or recorded.find(name) for name in names]


def of_view(view: AdapterView) -> ReportRun:
    """An adapter as the engine tells of it."""
    return ReportRun(
        name=view.name or view.model_id,
        model_id=view.model_id,
        rank=view.rank,
        layers=layers(view.lora),
        step=view.step,
        tokens=view.tokens,
        created=datetime.fromtimestamp(view.created, UTC),
        state=view.state,
        curves=view.curves,
    )


def of_history(run: Run, history: History) -> ReportRun:
    """A run of an earlier kernel, as the store tells of it."""
    return ReportRun(
        name=run.name,
        model_id=run.model_id,
        rank=run.rank,
        layers=run.layers,
        step=run.step,
        tokens=int(history["tokens"].max(initial=0)),
        created=run.created,
        state=run.state,
        curves=dict(curves(history)),
    )


def curves(history: History) -> Iterator[tuple[str, np.ndarray]]:
    """Curves by metric, (n, 4) as in ``series.COLUMNS``, without the steps that a rewind took back."""
    steps = history["step"]  # (n,)
    taken = np.isfinite(history[LEARNING_RATE]) if LEARNING_RATE in history else np.zeros(len(steps), bool)
    later = np.append(np.minimum.accumulate(np.where(taken, steps, np.inf)[::-1])[::-1][1:], np.inf)  # (n,)
    kept = np.flatnonzero(steps < later)
    kept = kept[np.argsort(steps[kept], kind="stable")]
    for name in history:
        if name not in FIXED:
            columns = [history[column][kept] for column in ("step", "tokens", "seconds", name)]
            points = np.column_stack(columns).astype(np.float64)
            yield name, points[~np.isnan(points[:, 3])]


def versions() -> list[tuple[str, str]]:
    """Of what it was made with, as far as it is installed as a package."""
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return [*found, ("machine", platform.platform())]


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All settings by dotted names."""
    for field in fields(settings):
        value, name = getattr(settings, field.name), f"{prefix}{field.name}"
        if is_dataclass(value):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value
