"""Colours and type of the board, light and dark, as CSS for one self-contained SVG.

Colours are plain rules, not CSS variables, so that converters to PDF and PNG see them too.
"""

from __future__ import annotations

from dataclasses import dataclass

COLORS = 8  # curves beyond that many reuse the first ones
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

# A saved picture is an <img> of fixed size in the system's colours; this fits it to JupyterLab's page and theme.
FIT_IN_LAB = (
    "<style>.jp-RenderedSVG img{max-width:100%;height:auto}"
    "[data-jp-theme-light='true'] .jp-RenderedSVG img{color-scheme:light}"
    "[data-jp-theme-light='false'] .jp-RenderedSVG img{color-scheme:dark}</style>"
)
_DARK_PAGES = ("[data-jp-theme-light='false']", ".vscode-dark")


@dataclass(frozen=True, slots=True)
class _Palette:
    card: str
    border: str
    text: str
    mute: str
    grid: str
    states: dict[str, str]
    curves: tuple[str, ...]


_LIGHT = _Palette(
    card="#ffffff",
    border="#d8dee4",
    text="#1f2328",
    mute="#636c76",
    grid="#e9ecef",
    states={
        "training": "#0969da",
        "sampling": "#8250df",
        "queued": "#9a6700",
        "idle": "#636c76",
        "failed": "#cf222e",
        "unloaded": "#8c959f",
    },
    curves=("#2463eb", "#d9570b", "#16934f", "#c026a0", "#0d8ba1", "#7c4fe0", "#a87b06", "#8d5b3f"),
)
_DARK = _Palette(
    card="#16191f",
    border="#30363d",
    text="#e6edf3",
    mute="#9198a1",
    grid="#262b33",
    states={
        "training": "#58a6ff",
        "sampling": "#bc8cff",
        "queued": "#d9a43b",
        "idle": "#9198a1",
        "failed": "#ff7b72",
        "unloaded": "#6e7681",
    },
    curves=("#6ea8ff", "#ff9b57", "#4ed08a", "#f27fd0", "#4fd0e3", "#b596ff", "#e4bf55", "#d8a283"),
)

_SHAPE = f"""
.txlab text {{ font: 13px {SANS}; font-variant-numeric: tabular-nums; }}
.txlab .title {{ font-size: 16px; font-weight: 650; }}
.txlab .strong {{ font-weight: 600; }}
.txlab .head {{ font-size: 11px; letter-spacing: .04em; }}
.txlab .small, .txlab .tick {{ font-size: 11.5px; }}
.txlab .label {{ font-size: 12px; font-weight: 600; }}
.txlab .mono {{ font: 12px {MONO}; white-space: pre; }}
.txlab .end {{ text-anchor: end; }}
.txlab .mid {{ text-anchor: middle; }}
.txlab .line {{ fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }}
.txlab .grid, .txlab .axis {{ fill: none; stroke-width: 1; }}
.txlab .pill {{ fill-opacity: .13; }}
"""


def stylesheet(in_page: bool) -> str:
    """CSS of a board: one in a page follows JupyterLab's theme, one in a file follows the reader's colour scheme."""
    light = "".join(f"{selector}{{{rule}}}" for selector, rule in _rules(_LIGHT))
    if in_page:
        dark = "".join(
            f"{','.join(f'{page} {selector}' for page in _DARK_PAGES)}{{{rule}}}" for selector, rule in _rules(_DARK)
        )
        return f"{_SHAPE}{light}{dark}"
    dark = "".join(f"{selector}{{{rule}}}" for selector, rule in _rules(_DARK))
    return f"{_SHAPE}{light}@media (prefers-color-scheme: dark){{{dark}}}"


def _rules(palette: _Palette) -> list[tuple[str, str]]:
    rules = [
        (".txlab .card", f"fill:{palette.card};stroke:{palette.border}"),
        (".txlab text", f"fill:{palette.text}"),
        (".txlab .mute", f"fill:{palette.mute}"),
        (".txlab .tick", f"fill:{palette.mute}"),
        (".txlab .grid", f"stroke:{palette.grid}"),
        (".txlab .axis", f"stroke:{palette.border}"),
        (".txlab .drawn", f"fill:{palette.states['training']}"),
    ]
    rules += [(f".txlab .{state}", f"fill:{color}") for state, color in palette.states.items()]
    for i, color in enumerate(palette.curves):
        rules += [(f".txlab .c{i}", f"fill:{color}"), (f".txlab .c{i}.line", f"fill:none;stroke:{color}")]
    return rules
