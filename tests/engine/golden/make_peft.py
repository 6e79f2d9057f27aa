"""Golden numbers of training from transformers and PEFT, for machines without torch: one step of one adapter in all
its parts, and twenty of adapters of several ranks and losses, one after the other.

Run from the repository root, with the ``parity`` extra: ``python -m tests.engine.golden.make_peft``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.models.tiny import make_tiny
from txlab.models.config import ATTENTION, MLP, UNEMBED

GOLDEN = Path(__file__).with_name("peft.npz")
GOLDEN_TRAINING = Path(__file__).with_name("peft_training.npz")
RANK = 4
STEPS = 20
STEPS_LEARNING_RATE, STEPS_EPS = 0.001, 0.01  # with a small eps Adam makes steps of the noise of a gradient of nothing
LEARNINGS = {2: "cross_entropy", 4: "importance_sampling", 8: "ppo", 16: "cross_entropy"}  # by rank
OLD_LOGPROB = -6.0  # what the old policy gave each token, near what the tiny model does
LEARNING_RATE = 0.01
LENGTHS = (12, 31, 5)
OVERRIDES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
OVERRIDES |= {"head_dim": 8, "vocab_size": 320}


def batch() -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids (N + 1,) and weights (N,) of each sequence."""
    rng = np.random.default_rng(1)
    return [(rng.integers(10, 300, n + 1), rng.uniform(0, 2, n).astype(np.float32)) for n in LENGTHS]


def draw_factors(shapes: dict[str, tuple[int, int]], layers: int, rank: int = RANK) -> dict[str, np.ndarray]:
    """Random A and B, neither zero, so that every factor has a gradient."""
    rng = np.random.default_rng(2)
    factors = {}
    for name, (n_in, n_out) in shapes.items():
        stacked = () if name in UNEMBED else (layers,)
        factors[f"{name}.a"] = rng.uniform(-(n_in**-0.5), n_in**-0.5, (*stacked, n_in, rank)).astype(np.float32)
        factors[f"{name}.b"] = rng.normal(0, 0.02, (*stacked, rank, n_out)).astype(np.float32)
    return factors


def peft_step(folder: Path, factors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logprobs, summed loss, gradients, and the factors after one AdamW step, as PEFT computes them."""
    import torch

    model, own = _with_adapter(folder, factors, RANK)
    optimizer = torch.optim.AdamW(own.values(), lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.01)
    loss, out = torch.zeros(()), {}
    for i, (tokens, weights) in enumerate(batch()):
        logprobs = _logprobs(model, tokens)
        loss = loss - (logprobs * torch.from_numpy(weights)).sum()
        out[f"logprobs.{i}"] = logprobs.detach().numpy()
    loss.backward()
    out["loss"] = loss.detach().numpy()
    out |= {f"gradient.{name}": array for name, array in _stacked(factors, own, lambda p: p.grad).items()}
    optimizer.step()
    out |= {f"stepped.{name}": array for name, array in _stacked(factors, own, lambda p: p.data).items()}
    return out


def peft_training(folder: Path, shapes: dict[str, tuple[int, int]], layers: int) -> dict[str, np.ndarray]:
    """Of each rank of LEARNINGS: ``losses.R`` (STEPS,), and the trained factors ``R.name``."""
    import torch

    out = {}
    for rank, name in LEARNINGS.items():
        factors = draw_factors(shapes, layers, rank)
        model, own = _with_adapter(folder, factors, rank)
        optimizer = torch.optim.AdamW(
            own.values(), lr=STEPS_LEARNING_RATE, betas=(0.9, 0.95), eps=STEPS_EPS, weight_decay=0.01
        )
        losses = []
        for _ in range(STEPS):
            parts = [_loss(name, _logprobs(model, t), torch.from_numpy(w)) for t, w in batch()]
            optimizer.zero_grad()
            sum(parts).backward()
            optimizer.step()
            losses.append(sum(parts).item())
        out[f"losses.{rank}"] = np.array(losses)
        out |= {f"{rank}.{key}": array for key, array in _stacked(factors, own, lambda p: p.data).items()}
    return out


def _with_adapter(folder: Path, factors: dict[str, np.ndarray], rank: int):
    """The model with these factors, and the parameters that train."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    config = LoraConfig(r=rank, lora_alpha=32, target_modules=[*ATTENTION, *MLP, *UNEMBED], bias="none")
    model = get_peft_model(base, config)
    own = {key: p for key, p in model.named_parameters() if p.requires_grad}
    for key, parameter in own.items():
        parameter.data = torch.from_numpy(_of_parameter(factors, key).T.copy())
    return model, own


def _logprobs(model, tokens: np.ndarray):
    import torch

    targets = torch.from_numpy(tokens[1:])
    logits = model(torch.from_numpy(tokens[None, :-1])).logits[0]
    return torch.log_softmax(logits, -1)[torch.arange(len(targets)), targets]


def _loss(name: str, logprobs, weights):
    """Summed, with ``weights`` around 1; what policies take as advantages is ``weights - 1``."""
    import torch

    if name == "cross_entropy":
        return -(logprobs * weights).sum()
    ratio, advantages = torch.exp(logprobs - OLD_LOGPROB), weights - 1
    if name == "importance_sampling":
        return -(ratio * advantages).sum()
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum()


def _place(key: str) -> tuple[str, int | None]:
    """Our name of a PEFT parameter, and its layer."""
    parts = key.split(".")
    factor = "a" if "lora_A" in parts else "b"
    name = parts[parts.index(f"lora_{factor.upper()}") - 1]
    layer = int(parts[parts.index("layers") + 1]) if "layers" in parts else None
    return f"{name}.{factor}", layer


def _of_parameter(factors: dict[str, np.ndarray], key: str) -> np.ndarray:
    name, layer = _place(key)
    return factors[name] if layer is None else factors[name][layer]


def _stacked(factors, parameters, of) -> dict[str, np.ndarray]:
    out = {name: np.zeros_like(array) for name, array in factors.items()}
    for key, parameter in parameters.items():
        name, layer = _place(key)
        out[name][... if layer is None else layer] = of(parameter).numpy().T
    return out


def main() -> None:
    """Write the golden files."""
    from txlab.config import ModelSettings
    from txlab.models.base import load_base
    from txlab.models.config import projection_shapes

    with tempfile.TemporaryDirectory() as temporary:
        folder = make_tiny(Path(temporary) / "tiny", "llama", **OVERRIDES)
        config = load_base(ModelSettings(name=str(folder))).config
        shapes, layers = projection_shapes(config), config.num_layers
        np.savez_compressed(GOLDEN, **peft_step(folder, draw_factors(shapes, layers)))
        np.savez_compressed(GOLDEN_TRAINING, **peft_training(folder, shapes, layers))


if __name__ == "__main__":
    main()
