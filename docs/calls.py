"""Find which tests and notebooks call a method of an SDK client: from their sources, without running them."""

from __future__ import annotations

import ast
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

# What the calls that make a client return, futures waited for.
MAKERS = {
    "ServiceClient": "ServiceClient",
    "client": "ServiceClient",  # Running.client() of the tests
    "create_lora_training_client": "TrainingClient",
    "create_lora_training_client_async": "TrainingClient",
    "create_training_client_from_state": "TrainingClient",
    "create_training_client_from_state_async": "TrainingClient",
    "create_training_client_from_state_with_optimizer": "TrainingClient",
    "create_training_client_from_state_with_optimizer_async": "TrainingClient",
    "create_sampling_client": "SamplingClient",
    "create_sampling_client_async": "SamplingClient",
    "save_weights_and_get_sampling_client": "SamplingClient",
    "save_weights_and_get_sampling_client_async": "SamplingClient",
    "from_sampler_handle": "SamplingClient",
    "RestClient": "RestClient",
    "create_rest_client": "RestClient",
    "AdminClient": "AdminClient",
    "create_custom_loss": "LossHandle",
}
WAITING = {"result", "result_async"}
REST = "*"


class Calls:
    """Calls in the tests and notebooks of ``root``, by client and method, and the commands that they run."""

    def __init__(self, root: Path, clients: Iterable[type]):
        self._count = Counter(name for client in clients for name in dir(client) if not name.startswith("_"))
        self._files = {path.relative_to(root).as_posix(): _parse(path) for path in _sources(root)}
        elsewhere = dict(pair for tree in self._files.values() for pair in _returns(tree, MAKERS))
        self._methods: dict[tuple[str | None, str], set[str]] = defaultdict(set)
        self._words: dict[str, list[tuple[str, ...]]] = {}
        for file, tree in self._files.items():
            if file.endswith("conftest.py"):
                continue
            for owner, name in _attributes(tree, elsewhere | MAKERS | dict(_returns(tree, MAKERS))):
                self._methods[owner, name].add(file)
            self._words[file] = list(_word_lists(tree))

    def of_method(self, client: str, *names: str) -> list[str]:
        """Files that use one of ``names`` of ``client``.

        Of a receiver of unknown type it is taken for the client's where the name is long and no other client has it.
        """
        telling = [name for name in names if "_" in name and self._count[name] == 1]
        keys = [*((client, name) for name in names), *((None, name) for name in telling)]
        return sorted(set().union(*(self._methods[key] for key in keys)))

    def of_command(self, command: str) -> list[str]:
        """Files in which the words of ``command`` are arguments in a row; the last may be handed to a helper."""
        *group, last = command.split()
        return sorted(file for file, lists in self._words.items() if _runs(lists, (*group, last), (*group, REST), last))


def _attributes(tree: ast.Module, returns: dict[str, str]) -> Iterator[tuple[str | None, str]]:
    """Attributes that are used, with the client whose they are where that can be told."""
    variables = dict(_variables(tree, returns))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield _type(node.value, variables, returns), node.attr


def _sources(root: Path) -> Iterator[Path]:
    """Files that have to do with the SDK."""
    for path in sorted([*root.glob("tests/**/*.py"), *root.glob("notebooks/*.ipynb")]):
        text = path.read_text()
        if "tinker" in text or "tests.server.conftest" in text:
            yield path


def _parse(path: Path) -> ast.Module:
    if path.suffix == ".py":
        return ast.parse(path.read_text())
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return ast.parse("".join(TransformerManager().transform_cell(cell) for cell in code))  # magics become calls


def _type(node: ast.expr, variables: dict[str, str], returns: dict[str, str]) -> str | None:
    """The client that ``node`` is, or will be once it is waited for; None where that cannot be told."""
    match node:
        case ast.Await(value=value):
            return _type(value, variables, returns)
        case ast.Name(id=name):
            return variables.get(name)
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in WAITING:
            return _type(value, variables, returns)
        case ast.Call(func=ast.Attribute(attr=name)):
            return MAKERS.get(name)
        case ast.Call(func=ast.Name(id=name)):
            return returns.get(name)
    return None


def _returns(tree: ast.Module, known: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Functions, fixtures among them, that return or yield a client."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            variables = dict(_variables(function, known))
            for node in ast.walk(function):
                if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
                    kind = _annotated(function.returns) or _type(node.value, variables, known)
                    if kind:
                        yield function.name, kind


def _variables(tree: ast.AST, returns: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Names that stand for a client: assigned, or parameters that are annotated or name a fixture."""
    variables: dict[str, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name, annotation=annotation):
                kind = _annotated(annotation) or returns.get(name)
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.withitem(context_expr=value, optional_vars=ast.Name(id=name))
            ):
                kind = _type(value, variables, returns)
            case _:
                continue
        if kind:
            variables[name] = kind
            yield name, kind


def _annotated(annotation: ast.expr | None) -> str | None:
    text = ast.unparse(annotation) if annotation is not None else ""
    return next((kind for kind in set(MAKERS.values()) if text.strip("'\"").split(".")[-1] == kind), None)


def _word_lists(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """The texts among the arguments of each call and in each list or tuple, split into words; REST for ``*rest``."""
    for node in ast.walk(tree):
        items = node.args if isinstance(node, ast.Call) else getattr(node, "elts", None) or []
        words = [word for item in items for word in _words(item)]
        if words:
            yield tuple(words)


def _words(item: ast.expr) -> list[str]:
    match item:
        case ast.Constant(value=str(text)):
            return text.split()
        case ast.Starred():
            return [REST]
    return []


def _runs(lists: list[tuple[str, ...]], whole: tuple[str, ...], group: tuple[str, ...], last: str) -> bool:
    """Whether a list has the ``whole`` command, or one its ``group`` and the rest, and another begins with ``last``."""
    if any(_contains(words, whole) for words in lists):
        return True
    return any(_contains(words, group) for words in lists) and any(words[0] == last for words in lists)


def _contains(words: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1))
