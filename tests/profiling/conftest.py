"""Hand-made traces and benches."""

from __future__ import annotations

import pytest

from txlab.models.config import ModelConfig
from txlab.profiling.bench import Bench
from txlab.profiling.rates import MatmulRates
from txlab.profiling.workload import StepShape


@pytest.fixture
def config() -> ModelConfig:
    """Of a model with a vocabulary of 50 and states of 8."""
    return ModelConfig("LlamaForCausalLM", 50, 8, 12, 2, num_heads=4, num_kv_heads=2, head_dim=3, max_context=64)


@pytest.fixture
def bench() -> Bench:
    """2 x 3 tokens in 2 seconds: 6 GFLOP, where XLA multiplies at 4 GFLOP/s and NumPy at 5."""
    return Bench("tiny", "cpu", "float32", StepShape(2, 3, 4), 2.0, 6_000_000_000, MatmulRates(numpy=5e9, xla=4e9))
