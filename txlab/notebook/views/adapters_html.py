"""The table of adapters, with what can be done to each."""

from __future__ import annotations

from html import escape

from txlab.engine.adapter_history import AdapterView
from txlab.notebook.views.charts import loss_spark
from txlab.notebook.views.curves import adapter_colors
from txlab.notebook.views.frame import Frame
from txlab.notebook.views.text import layers, memory, number, rate, run_note, whole

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
    """A row for each adapter, in order of creation; each is followed by its forms, and by what failed."""
    adapters = frame.view.adapters
    if not adapters:
        return (
            '<section aria-label="Adapters"><p class="empty">No adapters yet. '
            "<code>tinker.ServiceClient().create_lora_training_client(...)</code> makes one.</p></section>"
        )
    colors = adapter_colors(adapters)
    heads = "".join(f'<th scope="col" class="{css}">{name}</th>' for css, name in _HEADS)
    rows = "".join(_row(a, colors[a.model_id], a.model_id in frame.options.hidden) for a in adapters)
    scroll = ' class="scroll" tabindex="0" role="group" aria-label="All adapters"' if len(adapters) > _MOST_ROWS else ""
    return (
        f'<section aria-label="Adapters"><div{scroll}><table class="adapters"><caption class="sr">Adapters</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _row(adapter: AdapterView, color: str, hidden: bool) -> str:
    key, name = escape(adapter.model_id), escape(adapter.name or adapter.model_id)
    words = " ".join(word for word, there in (("off", hidden), ("failed", bool(adapter.message))) if there)
    css = f' class="{words}"' if words else ""
    return (
        f'<tr data-key="{key}"{css}>{_name(key, name, adapter, color, hidden)}'
        f'<td class="lora">{adapter.rank}<small>{layers(adapter.lora)}</small></td>'
        f'<td class="n">{adapter.step:,}</td>'
        f'<td class="n"><div class="loss">{_spark(adapter, color)}<span>{number(adapter.loss)}</span></div></td>'
        f'<td class="n">{rate(adapter.learning_rate)}<small>{number(adapter.grad_norm)}</small></td>'
        f'<td class="n">{whole(adapter.tokens_per_second)}</td>'
        f'<td class="n">{memory(adapter.memory_bytes)}<small>{memory(adapter.host_bytes)}</small></td>'
        f'<td><span class="pill {adapter.state}">{adapter.state}</span></td>'
        f'<td class="acts">{_actions(key, name, adapter)}</td></tr>{_forms(key, name, adapter)}{_problem(key, adapter)}'
    )


def _name(key: str, name: str, adapter: AdapterView, color: str, hidden: bool) -> str:
    pressed = "false" if hidden else "true"
    return (
        f'<th scope="row" title="{name} · {key}"><div><button class="swatch {color}" data-action="hide" '
        f'data-target="{key}" aria-pressed="{pressed}" aria-label="curve of {name}" title="Show or hide its curve">'
        f'</button><div><span class="name">{name}</span>'
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


# ------------------------------------------------------------------------------------ actions


def _actions(key: str, name: str, adapter: AdapterView) -> str:
    if adapter.state == "unloaded":
        return ""
    first = "resume" if adapter.state == "paused" else "pause"
    buttons = "".join(
        f'<button class="act" data-action="{action}" data-target="{key}" aria-label="{action} {name}" '
        f'title="{_TITLES[action]}"></button>'
        for action in (first, "stop", "save")
    )
    more = f'<details><summary class="act" aria-label="more for {name}" title="More"></summary></details>'
    return f"<div>{buttons}{more}</div>"


def _forms(key: str, name: str, adapter: AdapterView) -> str:
    """A row that opens: fork or rewind at a kept step, and rename."""
    if adapter.state == "unloaded":
        return ""
    kept = "".join(f"<option>{step}</option>" for step in sorted(adapter.kept_steps, reverse=True))
    off = "" if kept else " disabled"
    return (
        f'<tr class="forms" data-key="{key}/forms"><td colspan="{len(_HEADS)}"><div role="group" aria-label="{name}">'
        f'<form data-form data-action="fork" data-target="{key}">at step <select name="step" aria-label="step">'
        f'<option value="">now</option>{kept}</select><button>Fork</button>as <input name="name" '
        f'placeholder="new name" aria-label="name of the fork">or <button type="button" data-action="rewind" '
        f'data-target="{key}" title="Back to the chosen step, or by one"{off}>Rewind</button></form>'
        f'<form data-form data-action="rename" data-target="{key}"><button>Rename</button>to <input name="name" '
        f'value="{name}" aria-label="other name"></form></div></td></tr>'
    )
