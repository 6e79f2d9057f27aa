"""A loss that a client traced with torch.fx and sent as data, rebuilt from the table of known operations.

Nothing of the graph is looked up but in ``torch_ops``: what is not there is refused by name. A loss is traced once
when it is made, so that most mistakes show then, and runs on the CPU, so that the accelerator is left alone.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, islice, product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from txlab.engine.losses import DatumLossValue
from txlab.engine.requests import RequestError
from txlab.engine.torch_ops import FUNCTIONS, METHODS, Operation
from txlab.engine.torch_ops.values import DTYPES, Placement, is_floating, is_tensor, refuse_large

MAX_NODES = 1000
MAX_INPUTS = 16  # logprobs included
MAX_DEPTH = 8  # of lists in lists of one argument
MAX_COMPILED = 512  # programs that a loss keeps, one for each combination of lengths

# (T, K) that a new loss is traced at; one must do, as a loss may be made for a certain K.
TRIAL_SIZES = ((240, 60), (7, 5), *((64, k) for k in (1, 2, 3, 4, 8, 10, 16, 20, 32, 50, 64, 100)))
MAX_TRIALS = 256

# Programs are small and run once per datum: what counts is to compile them soon (100 ms instead of 250 ms).
COMPILER_OPTIONS: dict[str, str | bool] = {"xla_backend_optimization_level": "0", "xla_cpu_use_fusion_emitters": False}

INPUT_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")
METRIC_NAME = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
RUN_IT_CLIENT_SIDE = "pass the function itself to forward_backward_custom, which runs it on the client"

# How torch calls keywords of NumPy that it takes too, and keywords about where a tensor lies.
ALIASES = {"axis": "dim", "keepdims": "keepdim"}
WITHOUT_EFFECT = frozenset({"device", "layout", "memory_format", "pin_memory", "non_blocking", "copy"})


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One node as torch.fx records it, its arguments encoded as the Tinker SDK does it.

    ``op`` is placeholder, call_function, call_method or output; JSON scalars, strings and lists stand for themselves,
    anything else is an object of one key: ref, tuple, dict, slice, ellipsis, float, dtype, device, layout or
    memory_format.
    """

    op: str
    name: str
    target: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def compile_graph(name: str, inputs: Mapping[str, int], graph: Sequence[GraphNode]) -> GraphLoss:
    """Make the loss ``name`` of a graph whose placeholders are ``inputs``: their ranks, logprobs first.

    Raises RequestError that names the node, operation or input where the graph is broken, uses something that is not
    supported, or cannot be traced: shapes or types do not fit, or the loss is no floating scalar.
    """
    _check_inputs(inputs)
    program = build_program(graph, tuple(inputs))
    _trace(program, tuple(inputs.values()))
    return GraphLoss(name, inputs["logprobs"], {key: inputs[key] for key in inputs if key != "logprobs"}, program)


class GraphLoss:
    """A loss of one datum, compiled for each combination of lengths that it meets. Thread-safe."""

    def __init__(self, name: str, rank: int, inputs: Mapping[str, int], program: Program):
        self.name = name
        self.rank = rank
        self.inputs = inputs
        self._program = program
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[jax.ShapeDtypeStruct, ...], jax.stages.Compiled] = OrderedDict()

    def evaluate(self, logprobs: np.ndarray, inputs: Mapping[str, np.ndarray]) -> DatumLossValue:
        """Compute the loss, its gradient by the logprobs (their shape), and the metrics.

        ``logprobs`` are float32 (T,) or (T, K); ``inputs`` float32 or int64, of int32's range, at their exact shapes.
        RequestError where an operation refuses them.
        """
        arrays = [_narrow("logprobs", logprobs), *(_narrow(name, inputs[name]) for name in self.inputs)]
        compiled = self._compile(tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays))
        (loss, metrics), gradient = jax.device_get(compiled(*arrays))
        return DatumLossValue(float(loss), gradient, {name: float(value) for name, value in metrics.items()})

    def _compile(self, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> jax.stages.Compiled:
        with self._lock:
            if shapes in self._compiled:
                self._compiled.move_to_end(shapes)
                return self._compiled[shapes]
        with jax.default_device(_cpu()):
            lowered = jax.jit(jax.value_and_grad(self._program.run, has_aux=True)).lower(*shapes)
            compiled = lowered.compile(COMPILER_OPTIONS)
        with self._lock:
            self._compiled[shapes] = compiled
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return compiled


def _narrow(name: str, array: np.ndarray) -> np.ndarray:
    """Return float32 as it is and int64 as int32."""
    if array.dtype != np.int64:
        return array
    narrow = array.astype(np.int32)
    if not np.array_equal(narrow, array):
        raise RequestError(f"input {name!r} has numbers beyond 32 bits, with which a custom loss cannot compute")
    return narrow


def _cpu() -> jax.Device:
    return jax.local_devices(backend="cpu")[0]


# ------------------------------------------------------------------------------------ programs


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for what a node, or input, of this name computed."""

    name: str


@dataclass(frozen=True, slots=True)
class Step:
    """One operation and its arguments, with a Ref for each value that is computed."""

    name: str
    label: str
    operation: Operation
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Apply the operation; RequestError that names this step where it refuses."""
        try:
            result = self.operation(*_resolve(self.args, values), **_resolve(self.kwargs, values))
            if is_tensor(result):
                refuse_large(result.shape)
            return result
        except Exception as error:  # whatever an operation says of its arguments
            reason = str(error).partition("\n")[0]
            raise RequestError(f"node {self.name!r} ({self.label}): {reason}") from error


@dataclass(frozen=True, slots=True)
class Program:
    """Steps in order, from inputs to a loss and metrics."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    loss: Ref
    metrics: Mapping[str, Ref]

    def run(self, *inputs: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Compute the loss () and the metrics (), float32; RequestError where a step refuses or they are no scalars."""
        values: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        for step in self.steps:
            values[step.name] = step(values)
        loss = values[self.loss.name]
        if not (is_tensor(loss) and loss.shape == () and is_floating(loss)):
            raise RequestError(f"the loss must be a floating scalar, not {_describe(loss)}: sum() it, for example")
        return loss, {name: _metric(name, values[ref.name]) for name, ref in self.metrics.items()}


def _metric(name: str, value: Any) -> jax.Array:
    if not (isinstance(value, int | float) or (is_tensor(value) and value.size == 1)):
        raise RequestError(f"metric {name!r} must be one number, not {_describe(value)}")
    return jax.lax.stop_gradient(jnp.asarray(value, jnp.float32).reshape(()))


def _describe(value: Any) -> str:
    return f"a tensor of {value.dtype} and shape {value.shape}" if is_tensor(value) else f"a {type(value).__name__}"


def _resolve(value: Any, values: Mapping[str, Any]) -> Any:
    match value:
        case Ref():
            return values[value.name]
        case list() | tuple():
            return type(value)(_resolve(item, values) for item in value)
        case dict():
            return {key: _resolve(item, values) for key, item in value.items()}
        case slice():
            return slice(*_resolve([value.start, value.stop, value.step], values))
    return value


def _trace(program: Program, ranks: Sequence[int]) -> None:
    """Trace abstractly at some sizes, inputs being floats or integers; raise the first error where none does."""
    first = None
    for shapes in islice(_trials(ranks), MAX_TRIALS):
        try:
            with jax.default_device(_cpu()):
                jax.eval_shape(program.run, *shapes)
            return
        except RequestError as error:
            first = first or error
    assert first is not None
    raise first


def _trials(ranks: Sequence[int]) -> Iterator[list[jax.ShapeDtypeStruct]]:
    places = range(1, len(ranks))  # the logprobs are always floats
    subsets = chain.from_iterable(combinations(places, size) for size in range(len(ranks)))
    for integers, sizes in product(subsets, TRIAL_SIZES):
        dtypes = [jnp.int32 if place in integers else jnp.float32 for place in range(len(ranks))]
        yield [jax.ShapeDtypeStruct(sizes[:rank], dtype) for rank, dtype in zip(ranks, dtypes, strict=True)]


# ------------------------------------------------------------------------------------ checks


def _check_inputs(inputs: Mapping[str, int]) -> None:
    if len(inputs) > MAX_INPUTS:
        raise RequestError(f"{len(inputs)} inputs: a loss has at most {MAX_INPUTS}, logprobs included")
    if next(iter(inputs), None) != "logprobs" or inputs["logprobs"] not in (1, 2):
        raise RequestError("the first input must be logprobs, of rank 1 ([T]) or 2 ([T, K])")
    for name, rank in inputs.items():
        if not INPUT_NAME.fullmatch(name) or rank not in (0, 1, 2):
            raise RequestError(f"input {name!r} of rank {rank}: expected a lowercase name, and rank 0, 1 or 2")


def build_program(graph: Sequence[GraphNode], inputs: tuple[str, ...]) -> Program:
    """Check a graph whose placeholders are ``inputs``, and look its operations up; RequestError where it is refused."""
    if len(graph) > MAX_NODES:
        raise RequestError(f"the graph has {len(graph)} nodes, more than {MAX_NODES}: {RUN_IT_CLIENT_SIDE}")
    if not graph or graph[-1].op != "output":
        raise RequestError("the last node of the graph must be its output")
    known: set[str] = set()
    placeholders, steps = [], []
    for node in graph[:-1]:
        if node.op == "placeholder":
            placeholders.append(node)
        else:
            steps.append(_step(node, known))
        if node.name in known:
            raise RequestError(f"two nodes are named {node.name!r}")
        known.add(node.name)
    if tuple(node.target for node in placeholders) != inputs:
        found = ", ".join(node.target for node in placeholders)
        raise RequestError(f"the placeholders of the graph ({found}) are not the inputs ({', '.join(inputs)})")
    loss, metrics = _outputs(graph[-1], known)
    return Program(tuple(node.name for node in placeholders), tuple(steps), loss, metrics)


def _step(node: GraphNode, known: set[str]) -> Step:
    label, table = _table(node)
    operation = table.get(node.target)
    if operation is None:
        raise RequestError(f"node {node.name!r}: {label} is not supported on the server: {RUN_IT_CLIENT_SIDE}")
    kwargs = {ALIASES.get(key, key): value for key, value in node.kwargs.items() if key not in WITHOUT_EFFECT}
    decode = _Decoder(node.name, known)
    return Step(node.name, label, operation, tuple(decode(list(node.args))), decode({"dict": kwargs}))


def _table(node: GraphNode) -> tuple[str, Mapping[str, Operation]]:
    """Return how an operation is called in messages, and where it is looked up."""
    match node.op:
        case "call_function":
            return node.target, FUNCTIONS
        case "call_method":
            return f"Tensor.{node.target}", METHODS
        case "get_attr":
            why = (
                "a tensor from outside the function: make it an input, or of the inputs with torch.ones_like and so on"
            )
        case "output":
            why = "an output before the end"
        case _:
            why = f"{node.op} is not supported on the server: {RUN_IT_CLIENT_SIDE}"
    raise RequestError(f"node {node.name!r} ({node.target}): {why}")


def _outputs(node: GraphNode, known: set[str]) -> tuple[Ref, dict[str, Ref]]:
    match _Decoder(node.name, known)(list(node.args)):
        case [[Ref() as loss, dict() as metrics]] | [(Ref() as loss, dict() as metrics)]:
            pass
        case _:
            raise RequestError("the output must be (loss, metrics): a tensor and a dict of tensors")
    for name, value in metrics.items():
        if not METRIC_NAME.fullmatch(name):
            raise RequestError(f"metric {name!r} must be named custom/<name>:sum or custom/<name>:mean, in lowercase")
        if not isinstance(value, Ref):
            raise RequestError(f"metric {name!r} must be a tensor, not {value!r}")
    return loss, metrics


class _Decoder:
    """Reads the encoded arguments of a node, which may refer to the ``known`` ones before it."""

    def __init__(self, node: str, known: set[str]):
        self._node = node
        self._known = known
        self._tagged: Mapping[str, Callable[[Any, int], Any]] = {
            "ref": self._ref,
            "tuple": lambda items, depth: tuple(self(items, depth)),
            "dict": lambda items, depth: {str(key): self(item, depth) for key, item in items.items()},
            "slice": lambda items, depth: slice(*self(items, depth)),
            "ellipsis": lambda _, depth: Ellipsis,
            "float": lambda text, depth: float(text),
            "dtype": self._dtype,
            "device": lambda _, depth: Placement(),
            "layout": lambda _, depth: Placement(),
            "memory_format": lambda _, depth: Placement(),
        }

    def __call__(self, value: Any, depth: int = 0) -> Any:
        """Decode a value; RequestError where it is none of the known forms."""
        if depth > MAX_DEPTH:
            raise RequestError(f"node {self._node!r}: an argument is nested deeper than {MAX_DEPTH} levels")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            return [self(item, depth + 1) for item in value]
        try:
            ((tag, content),) = value.items()
            return self._tagged[tag](content, depth + 1)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise RequestError(f"node {self._node!r}: an argument is encoded as {str(value)[:100]!r}") from None

    def _ref(self, name: str, depth: int) -> Ref:
        if name not in self._known:
            raise RequestError(f"node {self._node!r} refers to {name!r}, which is no node before it")
        return Ref(name)

    def _dtype(self, name: str, depth: int) -> np.dtype:
        if name not in DTYPES:
            raise RequestError(f"node {self._node!r}: torch.{name} is not supported; there are {', '.join(DTYPES)}")
        return DTYPES[name]
