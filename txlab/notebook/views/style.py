"""Shapes, type and themes of the views, as CSS: for pictures that stand alone, and for panels in a notebook's page.

A picture in a file has its colours as plain rules, so that converters to PDF and PNG see them too, and follows the
reader's system. What is in a page has them as variables, and follows the page: JupyterLab, VS Code, Colab.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

from txlab.notebook.views.palette import (
    COLORS,
    DARK,
    DARK_CONTRAST,
    FORCED,
    LIGHT,
    LIGHT_CONTRAST,
    STATES,
    Palette,
)
from txlab.notebook.views.panel_style import PANEL

SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

# A saved picture is an <img> of fixed size in the system's colours; this fits it to JupyterLab's page and theme.
FIT_IN_LAB = (
    "<style>.jp-RenderedSVG img{max-width:100%;height:auto}"
    "[data-jp-theme-light='true'] .jp-RenderedSVG img{color-scheme:light}"
    "[data-jp-theme-light='false'] .jp-RenderedSVG img{color-scheme:dark}</style>"
)
_DARK_PAGES = ("[data-jp-theme-light='false']", ".vscode-dark", "html[theme='dark']")
_LIGHT_CONTRAST_PAGES = ("[data-jp-theme-name*='High Contrast']", ".vscode-high-contrast-light")
_DARK_CONTRAST_PAGES = (
    "[data-jp-theme-name*='High Contrast'][data-jp-theme-light='false']",
    ".vscode-high-contrast:not(.vscode-high-contrast-light)",
)
_MORE_CONTRAST = "@media (prefers-contrast: more)"
_FORCED_COLORS = "@media (forced-colors: active)"

Rules = list[tuple[str, str]]  # (selector, declarations)

_SHAPES: Rules = [
    ("text", f"font:13px {SANS};font-variant-numeric:tabular-nums"),
    (".title", "font-size:16px;font-weight:650"),
    (".strong", "font-weight:600"),
    (".head", "font-size:11px;letter-spacing:.04em"),
    (".small,.tick", "font-size:11.5px"),
    (".label", "font-size:12px;font-weight:600"),
    (".mono", f"font:12px {MONO};white-space:pre"),
    (".end", "text-anchor:end"),
    (".mid", "text-anchor:middle"),
    (".line", "fill:none;stroke-width:18;stroke-linejoin:round;stroke-linecap:round"),  # tenths of a px
    (".faint", "stroke-width:10;opacity:.3"),
    (".many .line", "stroke-width:12;opacity:.8"),
    (".spark", "stroke-width:1.4"),
    (".grid,.axis", "fill:none;stroke-width:1"),
    (".pill", "fill-opacity:.1"),
    (".value", "font-size:15px;font-weight:600"),
    (".bar", "fill:none;stroke-width:3"),
]


def stylesheet(in_page: bool, scope: str = "svg.txlab") -> str:
    """CSS of SVGs within ``scope``: in a page they follow its theme, in a file the reader's system."""
    if in_page:
        return _css(_SHAPES + _svg_rules(_variables()), scope) + _themes(scope)
    return _css(_SHAPES + _svg_rules(LIGHT), scope) + "".join(
        f"{media}{{{_css(_svg_rules(palette), scope)}}}"
        for media, palette in (
            ("@media (prefers-color-scheme: dark)", DARK),
            (_MORE_CONTRAST, LIGHT_CONTRAST),
            (f"{_MORE_CONTRAST} and (prefers-color-scheme: dark)", DARK_CONTRAST),
            (_FORCED_COLORS, FORCED),
        )
    )


@cache
def panel_style() -> str:
    """CSS of panels (class ``txlab-panel``) and of the charts in them."""
    return _themes(".txlab-panel") + _css(_SHAPES + _svg_rules(_variables()), ".txlab-panel svg") + _hues() + PANEL


def curve_class(index: int) -> str:
    """CSS class of the ``index``-th curve."""
    return f"c{index % COLORS}"


def _svg_rules(palette: Palette) -> Rules:
    rules = [
        (".card", f"fill:{palette.card};stroke:{palette.border}"),
        (".tile", f"fill:{palette.raised};stroke:{palette.edge}"),
        ("text", f"fill:{palette.text}"),
        (".mute,.tick", f"fill:{palette.mute}"),
        (".grid", f"stroke:{palette.grid}"),
        (".axis", f"stroke:{palette.border}"),
        (".drawn", f"fill:{palette.drawn}"),
        (".bar", f"stroke:{palette.grid}"),
        (".bar.filled", f"stroke:{palette.states[0]}"),
    ]
    rules += [(f".{state}", f"fill:{color}") for state, color in zip(STATES, palette.states, strict=True)]
    for i, color in enumerate(palette.curves):
        dashes = ";stroke-dasharray:60 40" if color in palette.curves[:i] else ""
        rules += [(f".c{i}", f"fill:{color}"), (f".c{i}.line", f"fill:none;stroke:{color}{dashes}")]
    rules.append((".line.spark", "stroke-dasharray:none"))
    return rules


def _css(rules: Rules, scope: str) -> str:
    return "".join(
        f"{','.join(f'{scope} {part}' for part in selector.split(','))}{{{declarations}}}"
        for selector, declarations in rules
    )


# ------------------------------------------------------------------------------------- themes


def _variable(name: str) -> str:
    return f"var(--txlab-{name})"


def _variables() -> Palette:
    """The variables that stand for the colours of a theme."""
    values: dict[str, Any] = {field.name: _variable(field.name) for field in fields(Palette)}
    values["states"] = tuple(map(_variable, STATES))
    values["curves"] = tuple(_variable(f"c{i}") for i in range(COLORS))
    return Palette(**values)


def _themes(scope: str) -> str:
    """The variables of ``scope`` for every theme of the page around it."""

    def rule(palette: Palette, pages: tuple[str, ...] = (), urgent: str = "") -> str:
        selector = ",".join(f"{page} {scope}" for page in pages) or scope
        return f"{selector}{{{''.join(f'--txlab-{name}:{color}{urgent};' for name, color in palette.named())}}}"

    return (
        f"{rule(LIGHT)}{rule(DARK, _DARK_PAGES)}"
        f"{_MORE_CONTRAST}{{{rule(LIGHT_CONTRAST)}{rule(DARK_CONTRAST, _DARK_PAGES)}}}"
        f"{rule(LIGHT_CONTRAST, _LIGHT_CONTRAST_PAGES)}{rule(DARK_CONTRAST, _DARK_CONTRAST_PAGES)}"
        f"{_FORCED_COLORS}{{{rule(FORCED, urgent='!important')}{_css(_svg_rules(FORCED), scope)}}}"
    )


def _hues() -> str:
    """In a panel, a state or a curve's class gives its colour as ``--hue``."""
    names = [*STATES, *(f"c{i}" for i in range(COLORS))]
    return "".join(f".txlab-panel .{name}{{--hue:{_variable(name)}}}" for name in names)
