"""Entries of a model's configuration, read by type: an error names the file, the entry and what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from txlab.models.files import ModelFileError


class Fields:
    """The entries of a JSON object or of GGUF metadata; ``where`` is what messages call them. Raises ModelFileError.

    An entry that is null is one that is not there.
    """

    def __init__(self, entries: Mapping[str, Any], where: str):
        self._entries = entries
        self._where = where

    def size(self, name: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self._get(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._wrong(name, value, "a positive whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
            raise self._wrong(name, value, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def entries(self, name: str) -> dict[str, Any]:
        """An object of its own; empty where there is none."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self._entries.get(name)
        if value is None and default is None:
            raise ModelFileError(f"{self._where} lacks {name!r}: fetch it again, or add it as the model's card says")
        return default if value is None else value

    def _wrong(self, name: str, value: Any, expected: str) -> ModelFileError:
        return ModelFileError(f"{self._where} has {name}={value!r}: expected {expected}")
