"""Write losses.json: traced torch losses, and what torch says of their value, gradient and metrics.

``python -m tests.engine.golden.make_losses`` with torch installed; the tests read the file and need no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("losses.json")
LOGPROBS = [-0.2, -1.5, -0.7, -3.0, -0.9]
OLD = [-0.4, -1.1, -0.7, -2.2, -1.3]
ADVANTAGES = [1.0, -0.5, 0.0, 2.0, -1.5]
MASK = [0.0, 1.0, 1.0, 0.0, 1.0]


def losses() -> dict[str, tuple[Callable, dict[str, tuple[int, Any]]]]:
    """Functions to trace, with the rank and the value of each input, logprobs first."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    def ppo(logprobs, old, advantages):
        ratio = torch.exp(logprobs - old)
        clipped = ratio.clamp(0.8, 1.2)
        loss = -torch.minimum(ratio * advantages, clipped * advantages).sum()
        return loss, {"custom/clipped:mean": (ratio != clipped).float().mean(), "custom/ratio:sum": ratio.sum()}

    def preference(logprobs, mask, margin):
        return -F.logsigmoid((logprobs * mask).sum() / mask.sum() - margin), {"custom/length:sum": mask.sum()}

    def shaped(logprobs, mask):
        padded = torch.where(mask > 0, logprobs, torch.zeros_like(logprobs))
        total = torch.cumsum(padded, dim=0)[1:] ** 2
        return total.mean() + F.huber_loss(logprobs, padded, reduction="sum", delta=0.5), {}

    def mixture(logprobs, targets):
        probabilities = F.softmax(logprobs, dim=-1)
        return F.kl_div(probabilities.log(), targets, reduction="sum") + logprobs.max(dim=1).values.std(), {}

    rank1 = {"logprobs": (1, LOGPROBS)}
    table = [[-1.0, -2.0, -0.5], [-0.1, -3.0, -2.5], [-1.2, -1.2, -0.9]]
    targets = [[0.2, 0.3, 0.5], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]]
    return {
        "ppo": (ppo, rank1 | {"old": (1, OLD), "advantages": (1, ADVANTAGES)}),
        "preference": (preference, rank1 | {"mask": (1, MASK), "margin": (0, 0.3)}),
        "shaped": (shaped, rank1 | {"mask": (1, MASK)}),
        "mixture": (
            mixture,
            {"logprobs": (2, table), "targets": (2, targets)},
        ),
    }


def record(function: Callable, inputs: dict[str, tuple[int, Any]]) -> dict[str, Any]:
    """A loss as it is uploaded, and what torch computes."""
    import torch

    from tests.engine.graphs import trace

    nodes, traced = trace(function, {name: rank for name, (rank, _) in inputs.items()})
    logprobs, *others = (torch.tensor(value) for _, value in inputs.values())
    loss, metrics = traced(logprobs.requires_grad_(), *others)
    loss.backward()
    return {
        "inputs": {name: {"rank": rank, "value": value} for name, (rank, value) in inputs.items()},
        "nodes": [asdict(node) for node in nodes],
        "loss": loss.item(),
        "gradient": logprobs.grad.tolist(),
        "metrics": {name: value.item() for name, value in metrics.items()},
    }


def main() -> None:
    """Write the file."""
    found = {name: record(function, inputs) for name, (function, inputs) in losses().items()}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
