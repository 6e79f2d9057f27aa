"""The tokenizer of what this process serves, found by the model's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

_ELSEWHERE = ("subfolder", "gguf_file", "cache_dir")  # options that ask for files of another place
_LLAMA_3 = "thinkingmachineslabinc/meta-llama-3-instruct-tokenizer"  # which the SDK and the cookbook take for Meta's


@contextmanager
def served_tokenizer(name: str, folder: Path) -> Iterator[None]:
    """While it lasts, ``AutoTokenizer.from_pretrained`` answers the model's ``name`` from ``folder``, without network.

    The SDK and the cookbook load the tokenizer of a sampler by that name, which may be the path of a GGUF file or a
    model of a hub that cannot be reached. Names that the SDK cuts are answered where they mean nothing else.
    """
    from transformers import AutoTokenizer

    before = AutoTokenizer.__dict__["from_pretrained"]
    ours = classmethod(_answering(before.__func__, _names(name), _cut_names(name), folder))
    AutoTokenizer.from_pretrained = ours  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        if AutoTokenizer.__dict__["from_pretrained"] is ours:
            AutoTokenizer.from_pretrained = before  # type: ignore[method-assign]


def _answering(load: Callable[..., Any], names: set[str], cut: set[str], folder: Path) -> Callable[..., Any]:
    """``load``, which answers ``names`` from ``folder``, and ``cut`` names where it finds nothing of its own."""

    @wraps(load)
    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        asked = str(pretrained_model_name_or_path)
        if options.get("revision") not in (None, "main") or any(map(options.get, _ELSEWHERE)):
            return load(cls, pretrained_model_name_or_path, *args, **options)
        if asked in names:
            return load(cls, folder, *args, **options)
        try:
            return load(cls, pretrained_model_name_or_path, *args, **options)
        except (OSError, ValueError):
            if asked not in cut:
                raise
            return load(cls, folder, *args, **options)

    return from_pretrained


def _names(name: str) -> set[str]:
    return {name, _LLAMA_3} if name.startswith("meta-llama/Llama-3") else {name}


def _cut_names(name: str) -> set[str]:
    """Names as the SDK cuts them: nothing after a colon, and of three parts the first two."""
    plain = name.split(":")[0]
    return {plain, plain.rsplit("/", 1)[0] if plain.count("/") == 2 else plain}
