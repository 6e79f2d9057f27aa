"""The engine's own state as a row of tiles."""

from __future__ import annotations

from html import escape

from txlab.notebook.views.frame import Frame
from txlab.notebook.views.text import Fact, engine_facts


def render_engine(frame: Frame) -> str:
    """A tile per figure, with a bar where it is a share of something."""
    tiles = "".join(_tile(fact) for fact in engine_facts(frame.view))
    return f'<section aria-label="Engine"><dl class="tiles">{tiles}</dl></section>'


def _tile(fact: Fact) -> str:
    bar = "" if fact.share is None else f'<i class="bar"><i style="width:{fact.share:.0%}"></i></i>'
    return (
        f'<div class="tile"><dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}'
        f"<small>{escape(fact.note)}</small>{bar}</dd></div>"
    )
