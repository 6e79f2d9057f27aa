"""The table of adapters, with what can be done to each."""

from __future__ import annotations

from html import escape

from txlab.engine.adapter_history import AdapterView
from txlab.notebook.views.charts import loss_spark
from txlab.notebook.views.curves import adapter_colors
from txlab.notebook.views.frame import Frame
from txlab.notebook.views.remember import remembered
from txlab.notebook.views.text import layers, mark_note, memory, number, rate, run_note, whole

SPARK_WIDTH, SPARK_HEIGHT = 56, 20
_MOST_ROWS = 12  # more scroll
_TITLES = {
    "pause": "Pause",
    "resume": "Resume",
    "stop": "Stop its run",
    "save": "Save a checkpoint",
}
_HEADS = (
    ("", "adapter"),
    ("lora", "rank<br>layers"),
    ("n", "step"),
    ("n", "loss"),
    ("n", "lr<br>grad norm"),
    ("n", "tokens/s"),
    ("n", "device<br>host"),
    ("", "state"),
    ("acts", '<span class="sr">actions</span>'),
)


def render_adapters(frame: Frame) -> str:
    """A row for each adapter, in order of creation, with its forms if opened, what failed, and its newest mark."""
    adapters, options = frame.view.adapters, frame.options
    if not adapters:
        return (
            '<section aria-label="Adapters"><p class="empty">No adapters yet. '
            "<code>tinker.ServiceClient().create_lora_training_client(...)</code> makes one.</p></section>"
        )
    colors = adapter_colors(adapters)
    heads = "".join(f'<th scope="col" class="{css}">{name}</th>' for css, name in _HEADS)
    rows = "".join(
        _row(a, colors[a.model_id], a.model_id in options.hidden, a.model_id in options.opened) for a in adapters
    )
    scroll = ' class="scroll" tabindex="0" role="group" aria-label="All adapters"' if len(adapters) > _MOST_ROWS else ""
    return (
        f'<section aria-label="Adapters"><div{scroll}><table class="adapters"><caption class="sr">Adapters</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


@remembered
def _row(adapter: AdapterView, color: str, hidden: bool, opened: bool) -> str:
    key, name = escape(adapter.model_id), escape(adapter.name or adapter.model_id)
    opened = opened and adapter.state != "unloaded"
    words = {"off": hidden, "on": opened, "failed": bool(adapter.message), "marked": bool(adapter.marks)}
    css = " ".join(word for word, there in words.items() if there)
    return (
        f'<tr data-key="{key}" data-target="{key}" class="{css}">{_name(key, name, adapter, color, hidden)}'
        f'<td class="lora">{adapter.rank}<small>{layers(adapter.lora)}</small></td>'
        f'<td class="n">{adapter.step:,}</td>'
        f'<td class="n"><div class="loss">{_spark(adapter, color)}<span>{number(adapter.loss)}</span></div></td>'
        f'<td class="n">{rate(adapter.learning_rate)}<small>{number(adapter.grad_norm)}</small></td>'
        f'<td class="n">{whole(adapter.tokens_per_second)}</td>'
        f'<td class="n">{memory(adapter.memory_bytes)}<small>{memory(adapter.host_bytes)}</small></td>'
        f'<td><span class="pill {adapter.state}">{adapter.state}</span></td>'
        f'<td class="acts">{_actions(name, adapter, opened)}</td></tr>'
        f"{_forms(key, name, adapter) if opened else ''}{_problem(key, adapter)}{_mark(key, adapter)}"
    )


def _name(key: str, name: str, adapter: AdapterView, color: str, hidden: bool) -> str:
    pressed = "false" if hidden else "true"
    curve = f'aria-pressed="{pressed}" aria-label="curve of {name}" title="Show or hide its curve"'
    return (
        f'<th scope="row" title="{name} · {key}"><div>'
        f'<button class="swatch {color}" data-action="hide" {curve}></button>'
        f'<div><span class="name">{name}</span>'
        f'<small class="run">{escape(run_note(adapter))}</small></div></div></th>'
    )


def _spark(adapter: AdapterView, color: str) -> str:
    path = loss_spark(adapter, SPARK_WIDTH, SPARK_HEIGHT)
    line = f'<path class="{color} line spark" d="{path}"/>'
    return f'<svg viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" aria-hidden="true">{line}</svg>' if path else ""


def _problem(key: str, adapter: AdapterView) -> str:
    if not adapter.message:
        return ""
    message = escape(adapter.message)
    return f'<tr class="problem" data-key="{key}/problem"><td colspan="{len(_HEADS)}">{message}</td></tr>'


def _mark(key: str, adapter: AdapterView) -> str:
    note = mark_note(adapter)
    if not note:
        return ""
    return f'<tr class="mark" data-key="{key}/mark"><td colspan="{len(_HEADS)}">{escape(note)}</td></tr>'


# ------------------------------------------------------------------------------------ actions


def _actions(name: str, adapter: AdapterView, opened: bool) -> str:
    if adapter.state == "unloaded":
        return ""
    first = "resume" if adapter.state in ("paused", "stopped") else "pause"
    buttons = "".join(
        f'<button class="act" data-action="{action}" aria-label="{action} {name}" title="{_TITLES[action]}"></button>'
        for action in (first, "stop", "save")
    )
    return (
        f'<div>{buttons}<button class="act" data-action="more" aria-expanded="{"true" if opened else "false"}" '
        f'aria-label="more for {name}" title="More"></button></div>'
    )


def _forms(key: str, name: str, adapter: AdapterView) -> str:
    """Fork or rewind at a kept step, and rename."""
    kept = "".join(f"<option>{step}</option>" for step in sorted(adapter.kept_steps, reverse=True))
    off = "" if kept else " disabled"
    return (
        f'<tr class="forms" data-key="{key}/forms" data-target="{key}"><td colspan="{len(_HEADS)}">'
        f'<div role="group" aria-label="{name}"><form data-form data-action="fork">at step '
        f'<select name="step" aria-label="step"><option value="">now</option>{kept}</select><button>Fork</button>as '
        f'<input name="name" placeholder="new name" aria-label="name of the fork">or '
        f'<button type="button" data-action="rewind" title="Back to the chosen step, or by one"{off}>'
        f"Rewind</button></form>"
        f'<form data-form data-action="rename"><button>Rename</button>to <input name="name" '
        f'value="{name}" aria-label="other name"></form></div></td></tr>'
    )
