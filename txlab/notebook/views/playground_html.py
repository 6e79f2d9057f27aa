"""The playground as HTML and text: a form, the answers to its last prompt, and earlier prompts. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from txlab.notebook.views.answers import Answer, answers_html, answers_text
from txlab.notebook.views.pieces import LEGEND
from txlab.notebook.views.playground_style import playground_style
from txlab.notebook.views.text import flat

REGIONS = ("style", "ask", "answers", "history")  # in the order in which they are shown
DEFAULTS: Mapping[str, str] = {
    "prompt": "",
    "layout": "plain",
    "max_tokens": "64",
    "temperature": "1",
    "top_p": "1",
    "top_k": "",
    "samples": "1",
    "seed": "",
    "stop": "",
    "every": "10",
}
LABELS: Mapping[str, str] = {
    "prompt": "Prompt",
    "layout": "Prompt is sent",
    "max_tokens": "Max tokens",
    "temperature": "Temperature",
    "top_p": "Top-p",
    "top_k": "Top-k",
    "samples": "Samples each",
    "seed": "Seed",
    "stop": "Stop at",
    "every": "Every … steps",
}
LAYOUTS = {"plain": "as it is", "chat": "as a chat turn"}
SLIDERS = ("temperature", "top_p")
PROMPT_CHARS = 120


@dataclass(frozen=True, slots=True)
class Choice:
    """Somebody who can be asked. ``color`` is the CSS class of the curve on the board."""

    key: str
    name: str
    color: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt, and what was answered, as far as it is."""

    number: int
    prompt: str
    settings: str
    answers: tuple[Answer, ...]
    live: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a playground shows. A new ``form`` number replaces what was typed by ``fields`` and ``chosen``."""

    choices: tuple[Choice, ...] = ()
    form: int = 0
    fields: Mapping[str, str] = field(default_factory=lambda: DEFAULTS)
    chosen: frozenset[str] = frozenset()  # keys of choices
    shown: Turn | None = None
    earlier: tuple[Turn, ...] = ()  # newest first
    diff: bool = True
    logprobs: bool = False


def render_regions(scene: Scene) -> dict[str, str]:
    """HTML by region."""
    return {"style": _style(), "ask": _ask(scene), "answers": _answers(scene), "history": _history(scene)}


def render_picture(scene: Scene) -> str:
    """What was asked and answered, for a page without the live playground."""
    turns = [turn for turn in (scene.shown, *scene.earlier) if turn is not None]
    blocks = [_turn(turn, scene) for turn in dict.fromkeys(turns)]
    first, rest = "".join(blocks[:1]), "".join(blocks[1:])
    more = f"<details><summary>Earlier prompts ({len(blocks) - 1})</summary>{rest}</details>" if rest else ""
    empty = "" if blocks else '<p class="empty">Nothing was asked yet.</p>'
    return f'{_style()}<section class="txlab-panel" aria-label="playground">{first}{more}{empty}</section>'


def render_text(scene: Scene) -> str:
    """The last prompt and its answers."""
    if scene.shown is None:
        return "playground: nothing was asked yet"
    return f"{scene.shown.prompt}\n{answers_text(scene.shown.answers)}"


def _style() -> str:
    return f"<style>{playground_style()}</style>"


# -------------------------------------------------------------------------------------- form


def _ask(scene: Scene) -> str:
    return (
        f'<form class="ask" data-form data-action="generate" data-key="ask-{scene.form}" '
        f'aria-label="Prompt and sampling">{_prompt(scene.fields)}{_sources(scene)}{_sampling(scene.fields)}'
        f"{_buttons(scene.fields)}</form>"
    )


def _field(name: str, control: str, more: str = "") -> str:
    return f'<label class="field"><span>{LABELS[name]}{more}</span>{control}</label>'


def _prompt(fields: Mapping[str, str]) -> str:
    return _field(
        "prompt",
        '<textarea name="prompt" rows="3" spellcheck="false" placeholder="What should they continue, or answer?">'
        f"{escape(fields['prompt'])}</textarea>",
    )


def _sources(scene: Scene) -> str:
    boxes = (
        f'<label data-key="{escape(one.key)}"><input type="checkbox" name="sources" value="{escape(one.key)}"'
        f'{" checked" * (one.key in scene.chosen)}><i class="dot {one.color}"></i>'
        f'<span title="{escape(one.name)}">{escape(one.name)}</span></label>'
        for one in scene.choices
    )
    return f'<fieldset class="sources"><legend>Ask</legend>{"".join(boxes)}</fieldset>'


def _sampling(fields: Mapping[str, str]) -> str:
    options = "".join(
        f'<option value="{value}"{" selected" * (fields["layout"] == value)}>{name}</option>'
        for value, name in LAYOUTS.items()
    )
    stop = (
        f'<input name="stop" value="{escape(fields["stop"])}" placeholder="its own end" '
        'title="Texts, parted by commas; \\n is a line break">'
    )
    controls = (
        _field("layout", f'<select name="layout">{options}</select>'),
        _slider("temperature", fields, "0", "2"),
        _slider("top_p", fields, "0.05", "1"),
        _number("max_tokens", fields, 'min="1"'),
        _number("samples", fields, 'min="1"'),
        _number("top_k", fields, 'min="1" placeholder="all"'),
        _number("seed", fields, 'placeholder="random"'),
        _field("stop", stop),
    )
    return f'<div class="knobs">{"".join(controls)}</div>'


def _slider(name: str, fields: Mapping[str, str], low: str, high: str) -> str:
    value = escape(fields[name])
    limits = f'min="{low}" max="{high}" step="0.05"'
    control = f'<input type="range" name="{name}" {limits} value="{value}" data-action="slide">'
    return _field(name, control, f" <output>{value}</output>")


def _number(name: str, fields: Mapping[str, str], more: str) -> str:
    return _field(name, f'<input type="number" name="{name}" value="{escape(fields[name])}" {more}>')


def _buttons(fields: Mapping[str, str]) -> str:
    return (
        '<div class="buttons"><button type="submit" class="primary" title="Ctrl+Enter in the prompt">Generate</button>'
        '<span class="spread"></span><button type="button" data-action="pin" '
        'title="Sample this prompt again and again while the chosen adapters train; greedily, if there is no seed">'
        "Pin to board</button><label>every"
        f'<input type="number" name="every" min="1" value="{escape(fields["every"])}">steps</label></div>'
    )


# ------------------------------------------------------------------------------------ answers


def _answers(scene: Scene) -> str:
    if scene.shown is None:
        return '<section aria-label="Answers"><p class="empty">Answers appear here, side by side.</p></section>'
    stop = '<button type="button" data-action="stop">Stop</button>' if scene.shown.live else ""
    bar = (
        f'<div class="toolbar"><span role="status">{_status(scene.shown)}</span>{stop}<span class="spread"></span>'
        f"{LEGEND if scene.logprobs else ''}{_toggle('diff', 'Mark what the base does not say', scene.diff)}"
        f"{_toggle('logprobs', 'Shade by probability', scene.logprobs)}</div>"
    )
    return f'<section aria-label="Answers">{bar}{_turn(scene.shown, scene)}</section>'


def _toggle(action: str, label: str, on: bool) -> str:
    return f'<label><input type="checkbox" data-action="{action}"{" checked" * on}>{label}</label>'


def _status(turn: Turn) -> str:
    tokens = sum(text.tokens for answer in turn.answers for text in answer.texts)
    return f"Sampling: {tokens} tokens so far" if turn.live else f"{tokens} tokens"


def _turn(turn: Turn, scene: Scene) -> str:
    return (
        f'<article data-key="turn-{turn.number}"><p class="prompt">{escape(turn.prompt)}</p>'
        f"<small>{escape(turn.settings)}</small>{answers_html(turn.answers, scene.diff)}</article>"
    )


# ------------------------------------------------------------------------------------ history


def _history(scene: Scene) -> str:
    if not scene.earlier:
        return ""
    rows = "".join(_row(turn, turn == scene.shown) for turn in scene.earlier)
    return f'<section aria-label="Earlier prompts"><h4>Earlier prompts</h4><ol class="earlier">{rows}</ol></section>'


def _row(turn: Turn, shown: bool) -> str:
    prompt = flat(turn.prompt)
    prompt = prompt if len(prompt) <= PROMPT_CHARS else prompt[: PROMPT_CHARS - 1] + "…"
    names = ", ".join(answer.name for answer in turn.answers)
    return (
        f'<li data-key="{turn.number}"><button type="button" data-action="recall" data-target="{turn.number}"'
        f"{' aria-current=true' * shown}><span>{escape(prompt)}</span><small>{escape(names)}</small></button></li>"
    )
