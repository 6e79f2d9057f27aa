"""Shapes and type of panels: the board's regions, and fields and buttons for whatever else is a panel."""

from __future__ import annotations

# Colours are the variables that style.py sets for every theme. Widths are of the region, not of the window.
PANEL = """
.txlab-panel { box-sizing: border-box; width: 100%; max-width: 1120px; margin: 4px 0; padding: 16px 20px 14px;
  background: var(--txlab-card); color: var(--txlab-text); border: 1px solid var(--txlab-border); border-radius: 10px;
  font: 13px/1.45 system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif;
  font-variant-numeric: tabular-nums; text-align: left; }
.txlab-panel *, .txlab-panel *::before { box-sizing: border-box; }
.txlab-region { container-type: inline-size; }
.txlab-region + .txlab-region:not(.txlab-style + *) > section { margin-top: 14px; }
.txlab-panel h3, .txlab-panel h4, .txlab-panel p, .txlab-panel dl, .txlab-panel dd { margin: 0; padding: 0; }
.txlab-panel h3 { font-size: 16px; font-weight: 650; line-height: 1.3; color: inherit; overflow-wrap: anywhere; }
.txlab-panel h4 { display: flex; align-items: baseline; gap: 12px; font-size: 13px; font-weight: 650; color: inherit;
  padding-bottom: 6px; border-bottom: 1px solid var(--txlab-border); }
.txlab-panel small { font-size: 11.5px; color: var(--txlab-mute); font-weight: 400; }
.txlab-panel .mute { color: var(--txlab-mute); }
.txlab-panel code { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace;
  color: inherit; background: none; padding: 0; }
.txlab-panel .sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
.txlab-panel .empty { padding: 12px 0; color: var(--txlab-mute); }
.txlab-panel .notice, .txlab-panel .txlab-notice { color: var(--txlab-drawn); font-size: 12.5px; }
.txlab-panel .notice:not(:empty), .txlab-panel .txlab-notice:not(:empty) { margin: 8px 0 0; padding: 6px 10px;
  background: var(--txlab-raised); border-left: 3px solid var(--txlab-drawn); border-radius: 4px; }

.txlab-panel button, .txlab-panel select, .txlab-panel input, .txlab-panel textarea { font: inherit; font-size: 12.5px;
  color: var(--txlab-text); margin: 0; accent-color: var(--txlab-training); }
.txlab-panel button, .txlab-panel select, .txlab-panel textarea,
.txlab-panel input:not([type=range], [type=checkbox], [type=radio]) { min-height: 26px; padding: 2px 8px;
  background: var(--txlab-card); border: 1px solid var(--txlab-control); border-radius: 6px; line-height: 1.4; }
.txlab-panel button, .txlab-panel select, .txlab-panel summary { cursor: pointer; }
.txlab-panel button:hover:not(:disabled) { background: var(--txlab-raised); }
.txlab-panel button[aria-pressed=true] { background: var(--txlab-raised); border-color: var(--txlab-training);
  color: var(--txlab-training); }
.txlab-panel button:disabled { opacity: .4; cursor: default; }
.txlab-panel :is(button, select, input, textarea, summary, [tabindex]):focus-visible {
  outline: 2px solid var(--txlab-training); outline-offset: 1px; }
.txlab-panel label.field { display: inline-flex; align-items: center; gap: 6px; }
.txlab-panel label.field > span { font-size: 11.5px; color: var(--txlab-mute); white-space: nowrap; }
.txlab-panel input[type=range] { width: 110px; }

.txlab-head header { display: flex; justify-content: space-between; align-items: baseline; gap: 16px; }
.txlab-head .live { flex: none; font-size: 11.5px; color: var(--txlab-training); }

.txlab-panel .tiles { display: grid; grid-template-columns: repeat(7, 1fr); gap: 8px; }
.txlab-panel .tile { padding: 7px 10px 8px; background: var(--txlab-raised); border-radius: 7px; min-width: 0;
  border: 1px solid var(--txlab-edge); }
.txlab-panel .tile :is(dt, dd) { float: none; width: auto; }
.txlab-panel .tile dt { font-size: 11px; font-weight: 400; color: var(--txlab-mute); white-space: nowrap; }
.txlab-panel .tile dd { font-size: 15px; font-weight: 600; line-height: 1.35; white-space: nowrap; }
.txlab-panel .tile small { display: block; line-height: 1.35; overflow: hidden; text-overflow: ellipsis; }
.txlab-panel .bar { display: block; height: 3px; margin-top: 5px; border-radius: 2px; background: var(--txlab-grid);
  overflow: hidden; }
.txlab-panel .bar i { display: block; height: 100%; background: var(--txlab-training); }
@container (max-width: 800px) {
  .txlab-panel .tiles { gap: 6px; }
  .txlab-panel .tile { padding: 6px 7px 7px; }
}
@container (max-width: 620px) { .txlab-panel .tiles { grid-template-columns: repeat(4, 1fr); } }

.txlab-panel .scroll { overflow-y: auto; max-height: 430px; }
.txlab-panel table { width: 100%; margin: 0; border-collapse: separate; border-spacing: 0; font-size: 13px; border: 0;
  color: inherit; table-layout: auto; }
.txlab-panel :is(th, td) { padding: 5px 10px 5px 0; text-align: left; vertical-align: middle; font-weight: 400;
  border: 0; border-bottom: 1px solid var(--txlab-grid); background: none; white-space: nowrap; line-height: 1.3; }
.txlab-panel thead th { position: sticky; top: 0; z-index: 1; padding-top: 0; background: var(--txlab-card);
  font-size: 11px; letter-spacing: .03em; color: var(--txlab-mute); border-bottom-color: var(--txlab-border);
  vertical-align: bottom; }
.txlab-panel :is(th, td).n { text-align: right; }
.txlab-panel .adapters :is(td, tbody th) > small { display: block; }
.txlab-panel .adapters tbody th { max-width: 230px; width: 30%; }
.txlab-panel .adapters tbody th > div { display: flex; align-items: center; gap: 8px; }
.txlab-panel .adapters tbody th > div > div { min-width: 0; }
.txlab-panel .adapters :is(.name, .run) { display: block; overflow: hidden; text-overflow: ellipsis; }
.txlab-panel .adapters .name { font-weight: 600; }
.txlab-panel .adapters tr.off :is(.name, .spark) { opacity: .55; }
.txlab-panel .adapters .loss { display: flex; align-items: center; justify-content: flex-end; gap: 8px; }
.txlab-panel .adapters .loss svg { flex: none; width: 56px; height: 20px; overflow: visible; }
.txlab-panel .adapters .loss span { min-width: 44px; }
.txlab-panel .adapters :is(td, th):last-child { padding-right: 0; }
.txlab-panel .adapters .acts { width: 1px; }
.txlab-panel .adapters .acts > div { display: flex; justify-content: flex-end; gap: 1px; }
.txlab-panel .adapters tr.forms > td { padding: 8px 10px; background: var(--txlab-raised); white-space: normal; }
.txlab-panel .adapters tr.forms > td > div { display: flex; flex-wrap: wrap; gap: 8px 22px; }
.txlab-panel .adapters form { display: flex; align-items: center; gap: 5px; margin: 0; }
.txlab-panel .adapters form input { width: 112px; }
.txlab-panel .adapters tr.problem > td { padding: 4px 8px 6px 24px; white-space: normal; overflow-wrap: anywhere;
  font-size: 12px; color: var(--txlab-failed); }
.txlab-panel .adapters tr.mark > td { padding: 4px 8px 6px 24px; white-space: normal; font-size: 12px;
  color: var(--txlab-queued); }
.txlab-panel .adapters tr:is(.on, .failed, .marked) > * { border-bottom-color: transparent; }
.txlab-panel span.pill { display: inline-block; padding: 1px 9px; border-radius: 10px; font-size: 11.5px;
  color: var(--hue); background: color-mix(in srgb, var(--hue) 10%, transparent); border: 1px solid var(--txlab-edge); }
.txlab-panel button.swatch { flex: none; width: 18px; height: 18px; min-height: 0; padding: 3px; border: 0;
  background: none; border-radius: 5px; }
.txlab-panel button.swatch::before { content: ""; display: block; width: 12px; height: 12px; border-radius: 4px;
  background: var(--hue); border: 2px solid var(--hue); }
.txlab-panel button.swatch[aria-pressed=false]::before { background: none; }
.txlab-panel button.act { display: grid; place-items: center; width: 24px; height: 24px; min-height: 0; padding: 0;
  border: 1px solid transparent; border-radius: 6px; background: none; color: var(--txlab-mute); }
.txlab-panel button.act:hover:not(:disabled) { color: var(--txlab-text); background: var(--txlab-raised);
  border-color: var(--txlab-border); }
.txlab-panel .act::before { content: ""; width: 11px; height: 11px; background: currentColor; }
.txlab-panel [data-action=pause]::before { clip-path: polygon(8% 4%, 38% 4%, 38% 96%, 8% 96%, 8% 4%, 62% 4%,
  92% 4%, 92% 96%, 62% 96%, 62% 4%); }
.txlab-panel [data-action=resume]::before { clip-path: polygon(14% 2%, 98% 50%, 14% 98%); }
.txlab-panel [data-action=stop]::before { clip-path: inset(8% round 1px); }
.txlab-panel [data-action=save]::before { clip-path: polygon(39% 0, 61% 0, 61% 40%, 84% 40%, 50% 76%, 50% 86%, 100% 86%,
  100% 100%, 0 100%, 0 86%, 50% 86%, 50% 76%, 16% 40%, 39% 40%); }
.txlab-panel [data-action=more]::before { clip-path: polygon(0 34%, 12% 20%, 50% 58%, 88% 20%, 100% 34%, 50% 84%); }
.txlab-panel [data-action=more][aria-expanded=true]::before { transform: rotate(180deg); }
@container (max-width: 800px) {
  .txlab-panel .adapters .lora { display: none; }
  .txlab-panel .adapters :is(th, td) { padding-right: 8px; }
  .txlab-panel .adapters tbody th { max-width: 150px; }
  .txlab-panel .adapters .loss { gap: 4px; }
  .txlab-panel .adapters .loss svg { width: 40px; }
  .txlab-panel .adapters .act { width: 22px; }
}

.txlab-panel .settings { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 18px; padding-top: 12px;
  border-top: 1px solid var(--txlab-border); }
.txlab-panel .settings output { min-width: 2.2em; font-size: 11.5px; }
.txlab-region.txlab-chart > section { margin-top: 4px; }
.txlab-panel svg.chart { display: block; width: 100%; height: auto; }
@container (max-width: 800px) { .txlab-panel svg.chart text { font-size: 14.5px; }
  .txlab-panel svg.chart .label { font-size: 13px; } }

.txlab-panel .sample { padding: 7px 0; border-bottom: 1px solid var(--txlab-grid); }
.txlab-panel .sample:last-child { border-bottom: 0; }
.txlab-panel .by { display: flex; justify-content: space-between; gap: 12px; }
.txlab-panel .sample b, .txlab-panel .pin th { font-weight: 600; color: var(--hue, var(--txlab-text)); }
.txlab-panel .written { margin-top: 3px; max-height: 8.6em; overflow-y: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; color: var(--txlab-drawn);
  font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
.txlab-panel .prompt { color: var(--txlab-mute); }
.txlab-panel .caret::after { content: "▍"; color: var(--txlab-sampling); }
.txlab-panel :is(.lp0, .lp1, .lp2, .lp3, .lp4) { color: var(--txlab-text); border-radius: 2px; }
.txlab-panel .lp1 { background: color-mix(in srgb, var(--txlab-surprise) 12%, transparent); }
.txlab-panel .lp2 { background: color-mix(in srgb, var(--txlab-surprise) 24%, transparent); }
.txlab-panel .lp3 { background: color-mix(in srgb, var(--txlab-surprise) 38%, transparent); }
.txlab-panel .lp4 { background: color-mix(in srgb, var(--txlab-surprise) 54%, transparent); }
.txlab-panel .title { display: flex; align-items: center; gap: 12px; padding-bottom: 6px;
  border-bottom: 1px solid var(--txlab-border); }
.txlab-panel .title h4 { flex: 1; padding: 0; border: 0; }
.txlab-panel .legend { display: inline-flex; gap: 2px; font-size: 11.5px; }
.txlab-panel .legend span { padding: 0 6px; }

.txlab-panel .pin { margin-top: 10px; }
.txlab-panel .pin > div { display: flex; align-items: baseline; gap: 10px; }
.txlab-panel .pin > div p { flex: 1; min-width: 0; overflow-wrap: anywhere; }
.txlab-panel .pin table { table-layout: fixed; }
.txlab-panel .pin :is(th, td) { vertical-align: top; text-align: left; white-space: normal; overflow-wrap: anywhere; }
.txlab-panel .pin tbody th { width: 130px; }
.txlab-panel .pin td small { display: block; }
.txlab-panel .pin td .written { margin: 0; }
.txlab-panel mark { background: var(--txlab-change); color: var(--txlab-text); border-radius: 2px; }

@media (forced-colors: active) {
  .txlab-panel :is(.bar, .bar i) { forced-color-adjust: none; }
  .txlab-panel :is(.act, .swatch)::before { forced-color-adjust: none; }
  .txlab-panel .act::before { background: ButtonText; }
  .txlab-panel .bar { background: GrayText; }
  .txlab-panel .bar i { background: CanvasText; }
  .txlab-panel :is(.lp3, .lp4) { text-decoration: underline; }
  .txlab-panel .lp4 { text-decoration-thickness: 3px; }
}
"""
