"""What all bodies share. Requests ignore fields they do not know, as newer SDKs send more."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

SeqId = Annotated[int, Field(ge=1)]  # place among a model's training requests


# What the examples of the documentation speak of.
BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SESSION = "9f86d081884c7d65"
MODEL = f"{SESSION}:train:0"
SAMPLER = f"{SESSION}:sample:0"
CHECKPOINT = f"tinker://{MODEL}/weights/step-100"


class WireModel(BaseModel):
    """Allows fields named ``model_…``."""

    model_config = ConfigDict(protected_namespaces=())


def example(**fields: Any) -> ConfigDict:
    """Show a body with these fields in the documentation."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


def json_bytes(value: Any) -> bytes:
    """Encode compactly; NaN and infinity raise ValueError, since the SDK's decoder would not take them."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that JSON can carry: NaN and infinity are left out."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
