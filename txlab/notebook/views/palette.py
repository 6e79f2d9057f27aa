"""The colours of all views: light, dark, high contrast, and the reader's own. Text has a contrast of 4.5 or more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

COLORS = 8  # curves beyond that many reuse the first ones, dashed
STATES = ("training", "sampling", "queued", "idle", "paused", "stopped", "failed", "unloaded")


@dataclass(frozen=True, slots=True)
class Palette:
    """CSS colours by what they are for."""

    card: str
    raised: str  # behind tiles and open rows
    border: str
    edge: str  # around what is told apart by its background otherwise
    control: str  # around fields and buttons
    text: str
    mute: str
    grid: str
    drawn: str  # what a model wrote
    surprise: str  # behind tokens that were unlikely, by degrees
    change: str  # behind what is new in a text
    states: tuple[str, ...]  # in the order of STATES
    curves: tuple[str, ...]  # COLORS of them

    def named(self) -> Iterator[tuple[str, str]]:
        """(name, colour) of each: states by their own names, curves as c0, c1, …."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                yield field.name, value
        yield from zip(STATES, self.states, strict=True)
        yield from ((f"c{i}", color) for i, color in enumerate(self.curves))


LIGHT = Palette(
    card="#ffffff",
    raised="#f6f8fa",
    border="#d8dee4",
    edge="transparent",
    control="#868f99",
    text="#1f2328",
    mute="#59636e",
    grid="#e9ecef",
    drawn="#0860c7",
    surprise="#e8590c",
    change="#ffe08a",
    states=("#0860c7", "#7443cc", "#855800", "#57606a", "#0b6a7c", "#8a4a00", "#c21f2b", "#636c76"),
    curves=("#2463eb", "#c24e0a", "#12803f", "#c026a0", "#0b7a8f", "#7c4fe0", "#8f6800", "#8d5b3f"),
)
DARK = Palette(
    card="#16191f",
    raised="#1d2129",
    border="#30363d",
    edge="transparent",
    control="#6b747e",
    text="#e6edf3",
    mute="#9aa2ab",
    grid="#262b33",
    drawn="#6cb2ff",
    surprise="#d9480f",
    change="#5c4813",
    states=("#58a6ff", "#bc8cff", "#d9a43b", "#9198a1", "#4fc3d6", "#f0975a", "#ff7b72", "#8b949e"),
    curves=("#6ea8ff", "#ff9b57", "#4ed08a", "#f27fd0", "#4fd0e3", "#b596ff", "#e4bf55", "#d8a283"),
)
LIGHT_CONTRAST = Palette(
    card="#ffffff",
    raised="#ffffff",
    border="#000000",
    edge="#000000",
    control="#000000",
    text="#000000",
    mute="#24292f",
    grid="#c4cad1",
    drawn="#003b8a",
    surprise="#e8590c",
    change="#ffd75e",
    states=("#003b8a", "#4a1aa0", "#5c3b00", "#24292f", "#00424f", "#5e2a00", "#8f0010", "#24292f"),
    curves=("#0035c2", "#8f3200", "#005a25", "#8a0070", "#005362", "#4a1fb8", "#5c4200", "#5f3318"),
)
DARK_CONTRAST = Palette(
    card="#000000",
    raised="#000000",
    border="#ffffff",
    edge="#ffffff",
    control="#ffffff",
    text="#ffffff",
    mute="#e1e6eb",
    grid="#4a5058",
    drawn="#9fd0ff",
    surprise="#c2410c",
    change="#6b5200",
    states=("#9fd0ff", "#dcc2ff", "#ffd277", "#e1e6eb", "#9aeefa", "#ffc89a", "#ffb3ac", "#e1e6eb"),
    curves=("#a3c8ff", "#ffbd8f", "#86f0b5", "#ffb0e6", "#90f0ff", "#d5c4ff", "#ffe07f", "#f5cbb2"),
)
FORCED = Palette(  # the reader's own colours, from the system
    card="Canvas",
    raised="Canvas",
    border="CanvasText",
    edge="CanvasText",
    control="ButtonText",
    text="CanvasText",
    mute="CanvasText",
    grid="GrayText",
    drawn="CanvasText",
    surprise="Canvas",
    change="Mark",
    states=("CanvasText",) * len(STATES),
    curves=("CanvasText", "LinkText", "Highlight", "GrayText") * 2,
)
