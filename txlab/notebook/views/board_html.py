"""The board as HTML, a region at a time: pure functions of a frame. What its controls do is up to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from txlab.engine.adapter_history import metric_names
from txlab.notebook.views.adapters_html import render_adapters
from txlab.notebook.views.charts import X_TITLES, Box, board_chart, metric_title
from txlab.notebook.views.engine_html import render_engine
from txlab.notebook.views.frame import LOG_CHOICES, MAX_SMOOTHING, Frame
from txlab.notebook.views.samples_html import render_pins, render_samples
from txlab.notebook.views.style import panel_style
from txlab.notebook.views.text import adapters_note

_CHART = Box(0, 6, 880, 300)
_LOG_NAMES = {"auto": "automatic", "linear": "linear", "log": "logarithmic"}


def render_regions(frame: Frame) -> dict[str, str]:
    """The HTML of every region by its name, in order. The page around them has the class ``txlab-panel``."""
    return {name: render(frame) for name, render in _RENDERERS.items()}


def _style(_: Frame) -> str:
    """A region that never changes, and so travels once."""
    return f"<style>{panel_style()}</style>"


def _head(frame: Frame) -> str:
    live = '<span class="live">● live</span>' if frame.live else ""
    return (
        f'<section aria-label="Lab"><header><h3>{escape(frame.model)}</h3>{live}</header>'
        f'<p class="mute"><code>{escape(frame.url)}</code> · {adapters_note(frame)}</p>'
        f'<p class="notice" role="status" aria-live="polite">{escape(frame.notice)}</p></section>'
    )


# ----------------------------------------------------------------------------------- settings


def _settings(frame: Frame) -> str:
    if not frame.view.adapters:
        return ""
    options = frame.options
    log = next(name for name, value in LOG_CHOICES.items() if value is options.log)
    return (
        '<section class="settings" role="group" aria-label="What is shown">'
        + _select("metric", "Metric", options.metric, {name: metric_title(name) for name in _metrics(frame)})
        + _select("x", "over", options.x, X_TITLES)
        + _select("log", "Scale", log, _LOG_NAMES)
        + f'<label class="field"><span>Smoothing</span><input type="range" data-action="smoothing" min="0" '
        f'max="{MAX_SMOOTHING:g}" step="0.01" value="{options.smoothing:g}"><output>{options.smoothing:.2f}</output>'
        "</label></section>"
    )


def _metrics(frame: Frame) -> list[str]:
    """Names of all curves, and of the one that is looked at, which may have no point yet."""
    return list(dict.fromkeys([*metric_names(frame.view.adapters), frame.options.metric]))


def _select(action: str, label: str, chosen: str, names: Mapping[Any, str]) -> str:
    options = "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(name)}</option>'
        for value, name in names.items()
    )
    return (
        f'<label class="field"><span>{label}</span><select data-action="{action}" aria-label="{label}">{options}'
        "</select></label>"
    )


# -------------------------------------------------------------------------------------- chart


def _chart(frame: Frame) -> str:
    if not frame.view.adapters:
        return ""
    label = f"{metric_title(frame.options.metric)} over {X_TITLES[frame.options.x]}"
    size = f"{_CHART.width} {_CHART.top + _CHART.height}"
    return (
        f'<section aria-label="Curves"><svg class="chart" viewBox="0 0 {size}" role="img" aria-label="{escape(label)}">'
        f"{''.join(board_chart(frame, _CHART))}</svg></section>"
    )


_RENDERERS: dict[str, Callable[[Frame], str]] = {
    "style": _style,
    "head": _head,
    "engine": render_engine,
    "adapters": render_adapters,
    "settings": _settings,
    "chart": _chart,
    "samples": render_samples,
    "pins": render_pins,
}
REGIONS = tuple(_RENDERERS)
