"""What all bodies share. Requests ignore fields they do not know, as newer SDKs send more."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

SeqId = Annotated[int, Field(ge=1)]  # place among a model's training requests


class WireModel(BaseModel):
    """Allows fields named ``model_…``."""

    model_config = ConfigDict(protected_namespaces=())


def json_bytes(value: Any) -> bytes:
    """Encode compactly; NaN and infinity raise ValueError, since the SDK's decoder would not take them."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that JSON can carry: NaN and infinity are left out."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
