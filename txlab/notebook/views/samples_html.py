"""Sampled texts as HTML: the newest ones, and pinned prompts with what changed from step to step."""

from __future__ import annotations

from html import escape

from txlab.notebook.views.answers import differing
from txlab.notebook.views.curves import adapter_colors
from txlab.notebook.views.frame import Excerpt, Frame, PinView
from txlab.notebook.views.pieces import LEGEND, token_html
from txlab.notebook.views.text import flat, printable, sample_note

PIN_STEPS = 3  # that are shown of each adapter


def render_samples(frame: Frame) -> str:
    """The newest samples, those that grow first of all."""
    colors = adapter_colors(frame.view.adapters)
    samples = "".join(_sample(excerpt, colors.get(excerpt.model_id or "", "")) for excerpt in frame.excerpts)
    hint = '<p class="empty">No samples yet. <code>%%txsample</code> or a sampling client draws some.</p>'
    shaded = frame.options.logprobs
    button = (
        f'<button type="button" data-action="logprobs" aria-pressed="{str(shaded).lower()}" '
        'title="Shade tokens by how unlikely they were">Colour by logprob</button>'
    )
    head = f'<div class="title"><h4>Latest samples</h4>{LEGEND if shaded else ""}{button}</div>'
    return f'<section aria-label="Latest samples">{head}{samples or hint}</section>'


def _sample(excerpt: Excerpt, color: str) -> str:
    caret = " caret" if excerpt.live else ""
    if excerpt.pieces:
        written = "".join(token_html(printable(text), logprob) for text, logprob in excerpt.pieces)
    else:
        written = escape(printable(excerpt.text))
    prompt = flat(excerpt.prompt)
    joint = " " if prompt and not excerpt.text[:1].isspace() and excerpt.prompt[-1:].isspace() else ""
    name, note = escape(excerpt.name), escape(sample_note(excerpt))
    return (
        f'<div class="sample"><div class="by"><b class="{color}">{name}</b><small>{note}</small></div>'
        f'<div class="written{caret}"><span class="prompt">{escape(prompt)}{joint}</span>{written}'
        "</div></div>"
    )


# --------------------------------------------------------------------------------------- pins


def render_pins(frame: Frame) -> str:
    """Each pinned prompt with a row per adapter: its newest texts, and in what each differs from the one before."""
    if not frame.pins:
        return ""
    colors = adapter_colors(frame.view.adapters)
    by_name = {adapter.name: colors[adapter.model_id] for adapter in frame.view.adapters}
    pins = "".join(_pin(pin, by_name) for pin in frame.pins)
    return f'<section aria-label="Pinned prompts"><h4>Pinned prompts</h4>{pins}</section>'


def _pin(pin: PinView, colors: dict[str, str]) -> str:
    rows = "".join(_pin_row(name, texts, colors.get(name, "")) for name, texts in by_adapter(pin))
    prompt = escape(flat(pin.prompt))
    table = f'<table><caption class="sr">{prompt}</caption><tbody>{rows}</tbody></table>'
    waiting = '<p class="empty">Its first samples come with the next steps.</p>'
    return (
        f'<div class="pin" data-key="pin{pin.number}"><div><p class="mute">{prompt}</p>'
        f'<button type="button" data-action="unpin" data-target="{pin.number}" '
        f'aria-label="Unpin the prompt {prompt}">Unpin</button></div>{table if rows else waiting}</div>'
    )


def _pin_row(name: str, texts: list[tuple[int, str]], color: str) -> str:
    cells = "".join(
        f'<td><small>step {step:,}</small><div class="written">{_marked(text, older[1] if older else text)}</div></td>'
        for (step, text), older in zip(texts, [*texts[1:], None], strict=True)
    )
    return f'<tr data-key="{escape(name)}"><th scope="row" class="{color}">{escape(name)}</th>{cells}</tr>'


def by_adapter(pin: PinView) -> list[tuple[str, list[tuple[int, str]]]]:
    """(name, its newest (step, text)) of each adapter in a pin."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name, step, text in pin.texts:
        found.setdefault(name, []).append((step, text))
    return [(name, texts[:PIN_STEPS]) for name, texts in found.items()]


def _marked(text: str, older: str) -> str:
    """``text`` with what the older text does not have marked."""
    text, older = printable(text), printable(older)
    parts, done = [], 0
    for start, end in differing(text, older):
        parts.append(f"{escape(text[done:start])}<mark>{escape(text[start:end])}</mark>")
        done = end
    return "".join(parts) + escape(text[done:])
