"""The operations of torch that an uploaded loss may use, in JAX with torch's values, types and gradients.

``FUNCTIONS`` are named as torch.fx names them, ``METHODS`` are Tensor's. What is not here is not supported: a name
that comes with a request is only ever looked up in these tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from txlab.engine.torch_ops import creation, functional, indexing, pointwise, products, python, reductions, shapes

Operation = Callable[..., Any]

_SHARED: Mapping[str, Operation] = {
    **pointwise.OPS,
    **reductions.OPS,
    **shapes.OPS,
    **indexing.OPS,
    **products.OPS,
}

METHODS: Mapping[str, Operation] = {
    **_SHARED,
    **pointwise.METHODS,
    **reductions.METHODS,
    **shapes.METHODS,
    **creation.METHODS,
}

_FUNCTIONS: Mapping[str, Operation] = {**_SHARED, **pointwise.FUNCTIONS, **shapes.FUNCTIONS, **creation.FUNCTIONS}

# Functions that live elsewhere in torch than under their public name, as torch.fx tells it.
_ELSEWHERE: Mapping[str, Operation] = {
    "torch.functional.norm": reductions.norm,
    "torch.functional.einsum": products.einsum,
    "torch.functional.split": shapes.split,
    "torch.functional.broadcast_tensors": shapes.broadcast_tensors,
    "torch._C._linalg.linalg_vector_norm": reductions.vector_norm,
    "torch._C._special.special_expit": pointwise.sigmoid,
    "torch._C._special.special_xlogy": pointwise.xlogy,
    "torch._C._special.special_logsumexp": reductions.logsumexp,
    "torch._C._special.special_softmax": reductions.softmax,
    "torch._C._special.special_log_softmax": reductions.log_softmax,
    "torch.nn.functional.relu": pointwise.relu,
    "torch.nn.functional.sigmoid": pointwise.sigmoid,
    "torch.nn.functional.tanh": pointwise.OPS["tanh"],
    "torch.nn.functional.softmax": reductions.softmax,
    "torch.nn.functional.log_softmax": reductions.log_softmax,
    "torch.nn.functional.pad": indexing.pad,
}

FUNCTIONS: Mapping[str, Operation] = {
    **{f"torch.{name}": operation for name, operation in _FUNCTIONS.items()},
    **_ELSEWHERE,
    **functional.FUNCTIONS,
    **python.FUNCTIONS,
}
