"""The OpenAPI document: what FastAPI makes of the routes, with the bodies that routes read by themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

REFERENCE = "#/components/schemas/{model}"


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Describe the JSON body of a route that reads it by itself: its ``openapi_extra``."""
    schema = model.model_json_schema(ref_template=REFERENCE)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class DocumentedApp(FastAPI):
    """An application in whose document every reference leads to a component."""

    def openapi(self) -> dict[str, Any]:
        """Return the document; definitions that came inside of a body lie among the others."""
        document = super().openapi()
        components = document["components"]["schemas"]
        for methods in document["paths"].values():
            for operation in methods.values():
                for content in operation.get("requestBody", {}).get("content", {}).values():
                    for name, definition in content["schema"].pop("$defs", {}).items():
                        components.setdefault(name, definition)
        return document
