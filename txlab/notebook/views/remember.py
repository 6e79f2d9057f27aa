"""What was drawn of a thing is kept while it is drawn again as it is: a board of many redraws the few that changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


def remembered(draw: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Answer ``draw(thing, ...)`` from memory where the last answer for the same thing was to the same arguments.

    For pure functions of things that never change, such as views of adapters, which are told apart by identity. A
    thing that nobody holds any more is forgotten.
    """
    answers: WeakKeyDictionary[T, tuple[object, R]] = WeakKeyDictionary()

    @wraps(draw)
    def recall(thing: T, *args: P.args, **kwargs: P.kwargs) -> R:
        asked = args, kwargs
        known = answers.get(thing)
        if known is None or known[0] != asked:
            known = answers[thing] = asked, draw(thing, *args, **kwargs)
        return known[1]

    return recall
