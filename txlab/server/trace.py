"""A session's requests as a timeline, in Chrome's trace format, which ui.perfetto.dev opens.

Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

from txlab.store.tables import RequestRow

MICRO = 1_000_000


def chrome_trace(requests: Iterable[RequestRow]) -> dict[str, Any]:
    """Lay out requests, in order of their start: a process for each model or sampler, side by side what overlaps."""
    processes: dict[str, int] = {}
    busy: dict[int, list[tuple[float, int]]] = {}  # process -> its lanes, as heap of (when it is free, lane)
    events: list[dict[str, Any]] = []
    for request in requests:
        owner = request.owner_id or "base model"
        if owner not in processes:
            processes[owner] = len(processes) + 1
            name = {"name": "process_name", "ph": "M", "pid": processes[owner], "args": {"name": owner}}
            events.append(name)
        process = processes[owner]
        start = request.started.timestamp()
        lane = _free_lane(busy.setdefault(process, []), start, start + request.seconds)
        events.append(_span(request, process, lane))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _free_lane(lanes: list[tuple[float, int]], start: float, end: float) -> int:
    """Take the lane that is free for longest, or open another."""
    lane = heapq.heappop(lanes)[1] if lanes and lanes[0][0] <= start else len(lanes) + 1
    heapq.heappush(lanes, (end, lane))
    return lane


def _span(request: RequestRow, process: int, lane: int) -> dict[str, Any]:
    return {
        "name": request.kind,
        "cat": "error" if request.error else "request",
        "ph": "X",
        "ts": request.started.timestamp() * MICRO,
        "dur": request.seconds * MICRO,
        "pid": process,
        "tid": lane,
        "args": {
            "base_model": request.base_model,
            "tokens_in": request.tokens_in,
            "tokens_cached": request.tokens_cached,
            "tokens_out": request.tokens_out,
            "error": request.error,
        },
    }
