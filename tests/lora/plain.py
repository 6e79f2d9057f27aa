"""The formula of an adapter, written plainly: what faster ways are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from txlab.lora.adapter import HEAD, Weights


@dataclass
class PlainLora:
    """A projector of one adapter; ``weights`` may be traced, so that JAX differentiates by them."""

    weights: Weights
    scale: float

    def layer(self, index: int):
        def project(name, x, kernel):
            y = x @ kernel.T
            if name not in self.weights:
                return y
            a, b = self.weights[name]
            return y + x @ a[index] @ b[index] * self.scale

        return project

    def head(self, hidden, embedding):
        logits = hidden @ embedding.T
        if HEAD not in self.weights:
            return logits
        a, b = self.weights[HEAD]
        return logits + hidden @ a @ b * self.scale
