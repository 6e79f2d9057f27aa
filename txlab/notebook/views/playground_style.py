"""Shapes of the playground and of answers side by side, as CSS."""

from __future__ import annotations

from txlab.notebook.views.style import panel_style

# Colours, fields, shades of tokens and marks are those of every panel.
_SHAPES = """
.txlab-panel .txlab-notice:not(:empty) ~ .txlab-ask { margin-top: 12px; }
.txlab-panel form.ask { display: grid; gap: 12px; margin: 0; }
.txlab-panel .ask label.field { display: grid; gap: 3px; align-content: start; }
.txlab-panel .ask label.field > :is(input, select) { width: 100%; }
.txlab-panel .ask textarea { width: 100%; min-height: 64px; padding: 8px 10px; resize: vertical; line-height: 1.5;
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
.txlab-panel fieldset.sources { display: flex; flex-wrap: wrap; gap: 6px; min-width: 0; max-height: 132px; margin: 0;
  padding: 0; border: 0; overflow-y: auto; }
.txlab-panel .sources legend { padding: 0 0 3px; font-size: 11.5px; color: var(--txlab-mute); }
.txlab-panel .sources label { display: inline-flex; align-items: center; gap: 6px; max-width: 260px;
  padding: 3px 10px 3px 7px; border: 1px solid var(--txlab-border); border-radius: 14px; cursor: pointer; }
.txlab-panel .sources span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.txlab-panel .sources label:has(:checked) { background: var(--txlab-raised); border-color: var(--txlab-control); }
.txlab-panel .dot { flex: none; display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  background: var(--hue, var(--txlab-control)); }
.txlab-panel .knobs { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 10px 14px; }
@container (min-width: 980px) { .txlab-panel .knobs { grid-template-columns: repeat(8, minmax(0, 1fr)); } }
@container (max-width: 460px) { .txlab-panel .knobs { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
.txlab-panel .knobs output { float: right; color: var(--txlab-text); font-weight: 600; }
.txlab-panel .knobs input[type=range] { height: 26px; }
.txlab-panel .buttons, .txlab-panel .toolbar { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 12px; }
.txlab-panel .buttons label, .txlab-panel .toolbar label { display: inline-flex; align-items: center; gap: 6px;
  font-size: 12.5px; color: var(--txlab-mute); }
.txlab-panel .buttons input { width: 62px; }
.txlab-panel .spread { flex: 1; }
.txlab-panel button.primary { padding: 2px 16px; font-weight: 600; color: var(--txlab-card);
  background: var(--txlab-training); border-color: var(--txlab-training); }
.txlab-panel button.primary:hover:not(:disabled) { background: var(--txlab-training); filter: brightness(1.1); }

.txlab-panel .toolbar { min-height: 40px; padding: 6px 0; border-top: 1px solid var(--txlab-border); }
.txlab-panel p.prompt { max-height: 6.75em; overflow-y: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
.txlab-panel .answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(200px, 100%), 1fr));
  gap: 12px; margin-top: 10px; }
.txlab-panel .answers > section { min-width: 0; padding: 9px 12px 10px; border: 1px solid var(--txlab-border);
  border-top: 3px solid var(--hue, var(--txlab-control)); border-radius: 7px; }
.txlab-panel .answers h4 { gap: 7px; padding: 0 0 4px; border: 0; line-height: 1.4; overflow-wrap: anywhere; }
.txlab-panel .answers .written { max-height: 340px; color: var(--txlab-text); }
.txlab-panel .answers small { display: block; margin-top: 4px; }
.txlab-panel .answers small + .written { margin-top: 8px; padding-top: 8px; border-top: 1px solid var(--txlab-grid); }
.txlab-panel .problem { color: var(--txlab-failed); font-size: 12.5px; overflow-wrap: anywhere; }
.txlab-panel .answers mark { border-bottom: 1px solid currentColor; }
.txlab-panel .answers mark:has(span) { background: none; } /* beneath a shade of its own */

.txlab-panel ol.earlier { max-height: 168px; margin: 4px 0 0; padding: 0; overflow-y: auto; list-style: none; }
.txlab-panel .earlier button { display: flex; gap: 12px; width: 100%; padding: 4px 8px; border: 0; text-align: left; }
.txlab-panel .earlier span { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.txlab-panel .earlier small { flex: none; max-width: 40%; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.txlab-panel .earlier [aria-current] { background: var(--txlab-raised); font-weight: 600; }
.txlab-panel article + details { margin-top: 12px; }
.txlab-panel details > article { margin-top: 14px; }
"""


def playground_style() -> str:
    """CSS of the playground, and of comparisons; with it that of panels."""
    return panel_style() + _SHAPES
