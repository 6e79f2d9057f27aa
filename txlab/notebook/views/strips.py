"""From training data and samples to strips of tokens: which figure is shaded, and what is said of the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from txlab.engine.requests import Datum
from txlab.notebook.views.frame import Decode
from txlab.notebook.views.tables import plural
from txlab.notebook.views.tokens import Shade, Strip

SHADED = ("weights", "advantages", "mask")  # the first of these that a datum has says what its tokens count for
MAX_TARGETS = 4  # of one position that are named
CERTAIN, SURPRISE = 0.1, 5.0  # nats up to which a sampled token is plain, and from which on it is shaded fully
_SINGULAR = {"weights": "weight", "advantages": "advantage", "logprobs": "logprob"}


def datum_strip(datum: Datum, decode: Decode) -> Strip:
    """The text of a datum: its N tokens and the last target. What is predicted at i is shown at i + 1."""
    size, ids = len(datum.tokens), datum.tokens
    rows = datum.targets.reshape(size, -1) if size and len(datum.targets) == size else np.empty((size, 0), np.int64)
    if rows.size:
        ids = np.append(ids, rows[-1, 0])
    name, values = measure(datum)
    full = _full(name, values)
    figures = {key: _flat(array) for key, array in datum.inputs.items() if array.shape[:1] == (size,)}
    return Strip(
        ids=ids,
        decode=decode,
        note=" · ".join([note([datum]), *_misfits(datum), *unshifted(datum)]),
        shade=Shade(_behind(values / full, len(ids), start=0.0), _SINGULAR.get(name, name), full),
        figures={_SINGULAR.get(key, key): _behind(column, len(ids)) for key, column in figures.items()},
        targets=_targets(datum, rows, ids, values, decode),
    )


def sample_strip(tokens: np.ndarray, logprobs: np.ndarray | None, decode: Decode, note: str) -> Strip:
    """Tokens (n,) that a model drew, shaded by how little it expected each: its logprobs (n,)."""
    if logprobs is None:
        return Strip(tokens, decode, note)
    figures = np.asarray(logprobs, np.float64)
    shade = np.where(figures > -CERTAIN, np.nan, np.maximum(figures / SURPRISE, -1.0))
    return Strip(tokens, decode, note, Shade(shade, "logprob", SURPRISE), {"logprob": figures})


def note(data: Sequence[Datum]) -> str:
    """How many tokens there are, and how many of them count."""
    measures = [measure(datum) for datum in data]
    name = measures[0][0]
    values = np.concatenate([values for _, values in measures])
    counted = f"{np.count_nonzero(values):,}"
    tokens = plural(sum(len(datum.tokens) for datum in data), "token")
    match name:
        case "weights":
            return f"{tokens}, {counted} trained on, sum of weights {values.sum():,.1f}"
        case "advantages":
            return f"{tokens}, {counted} with an advantage, sum of advantages {values.sum():,.1f}"
    return f"{tokens}, {counted} trained on"


def measure(datum: Datum) -> tuple[str, np.ndarray]:
    """What the tokens of a datum count for, and how much each does, (N,) float64.

    That is 1 where nothing is said, and 0 where what is said does not fit.
    """
    size = len(datum.tokens)
    for name in SHADED:
        if (figures := datum.inputs.get(name)) is not None:
            return name, _flat(figures) if figures.shape[:1] == (size,) else np.zeros(size)
    return "trained on", np.ones(size)


def _misfits(datum: Datum) -> list[str]:
    """What is wrong with a datum that a server would refuse."""
    arrays = {"target_tokens": datum.targets, **datum.inputs}
    sizes = {name: len(array) for name, array in arrays.items() if array.ndim and len(array) != len(datum.tokens)}
    return [f"{name} do not fit: there are {size:,}" for name, size in sizes.items()]


def unshifted(datum: Datum) -> list[str]:
    """Notes on targets that are not the next inputs; none where they are, or where a position has several.

    The target after the last input is anything.
    """
    size = len(datum.tokens)
    if datum.targets.shape not in ((size,), (size, 1)):
        return []
    ids, targets, counted = datum.tokens, datum.targets.reshape(size), measure(datum)[1] != 0
    known = np.flatnonzero(counted[:-1])  # positions whose next input is there
    others = int(np.count_nonzero(targets[known] != ids[known + 1]))
    if not others:
        return []
    if (targets[counted] == ids[counted]).all():
        return ["targets are the inputs themselves: shift them, target i is input i + 1"]
    further = known[known < size - 2]
    if len(further) and (targets[further] == ids[further + 2]).all():
        return ["targets are the inputs after the next: they are shifted twice"]
    return [f"{others:,} of {plural(len(known), 'target')} not the next input"]


def _full(name: str, values: np.ndarray) -> float:
    """What is shaded fully: a weight of 1, or the largest figure where that is more or nothing is agreed upon."""
    largest = float(np.abs(values).max(initial=0.0, where=np.isfinite(values)))
    return largest or 1.0 if name == "advantages" else max(largest, 1.0)


def _flat(figures: np.ndarray) -> np.ndarray:
    """Figures (N,), or (N, K) summed up, as (N,) float64."""
    return figures.reshape(len(figures), -1).sum(axis=1, dtype=np.float64) if len(figures) else np.empty(0)


def _behind(values: np.ndarray, size: int, start: float = np.nan) -> np.ndarray:
    """Figures of predictions at the tokens that are predicted, (size,); nothing predicts the first."""
    return np.append(start, values)[:size]


def _targets(datum: Datum, rows: np.ndarray, ids: np.ndarray, values: np.ndarray, decode: Decode) -> dict[int, str]:
    """What is predicted where that is not just the token shown; rows are (N, K)."""
    weights = np.broadcast_to(values[:, None], rows.shape)
    if (own := datum.inputs.get("weights")) is not None and own.shape == datum.targets.shape:
        weights = own.reshape(rows.shape)
    found = {}
    for i in np.flatnonzero(((rows != ids[1:, None]) & (weights != 0)).any(axis=1)).tolist() if rows.size else ():
        counted = np.flatnonzero(weights[i])
        named = [
            f"{''.join(decode(rows[i, k : k + 1], ids[: i + 1], special=True))!r} ({weights[i, k]:.3g})"
            for k in counted[:MAX_TARGETS].tolist()
        ]
        found[i + 1] = ", ".join(named) + (", …" if len(counted) > MAX_TARGETS else "")
    return found
