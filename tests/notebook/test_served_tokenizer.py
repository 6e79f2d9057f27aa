"""The tokenizer of what is served, as the SDK's and the cookbook's own calls find it: by the model's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.models.gguf_files import CONTROL, OWN, metadata, train, write_gguf
from tests.models.tiny import make_tiny, make_tokenizer
from tests.notebook.kernels import Kernel, open_kernel
from txlab.config import DEFAULT_MODEL, ModelSettings, default_cache
from txlab.models.sources import resolve
from txlab.notebook.served_tokenizer import served_tokenizer

TEXT = "In 1984, don't  say\n\n'hello' 😀"

# As a hub that cannot be reached: names are not found, and the client tries for long. No HF_HUB_OFFLINE.
NO_NETWORK = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}

GET = """
import time, tinker
service = tinker.ServiceClient()
training = service.create_lora_training_client(base_model={name!r}, rank=1)
sampling = service.create_sampling_client(base_model={name!r})
began = time.monotonic()
found = [training.get_tokenizer(), sampling.get_tokenizer()]
if {cookbook}:
    from tinker_cookbook.tokenizer_utils import get_tokenizer
    found.append(get_tokenizer({name!r}))
seconds = time.monotonic() - began
"""
ENCODE = "([one.encode({text!r}) for one in found], [one.decode(one.encode({text!r})) for one in found], seconds)"


def have_cookbook() -> bool:
    try:
        import tinker_cookbook  # noqa: F401
    except ImportError:
        return False
    return True


def value(kernel: Kernel, expression: str) -> Any:
    """What an expression is in a kernel, by way of JSON."""
    return json.loads(kernel.ok(f"import json; print(json.dumps({expression}))").text.splitlines()[-1])


def found_in(kernel: Kernel, name: str) -> tuple[list, list]:
    """What each call's tokenizer makes of TEXT, and what it makes of that again."""
    kernel.ok(GET.format(name=name, cookbook=have_cookbook()))
    tokens, texts, seconds = value(kernel, ENCODE.format(text=TEXT))
    assert len(tokens) == 2 + have_cookbook()
    assert seconds < 20, "it asked a hub that does not answer"  # such a question takes 50 s
    return tokens, texts


@pytest.fixture(params=[{}, NO_NETWORK], ids=["offline", "no network"])
def fresh(request: pytest.FixtureRequest, lab_env: dict[str, str]) -> Iterator[Kernel]:
    with open_kernel(lab_env | request.param) as kernel:
        kernel.ok("%load_ext txlab")
        yield kernel


def serve(kernel: Kernel, name: str) -> None:
    kernel.ok(f"lab = %txserve {name}")


def test_the_packaged_default_model(fresh: Kernel) -> None:
    resolve(DEFAULT_MODEL, ModelSettings())
    fresh.ok(f"import os; os.environ['TXLAB_CACHE'] = {str(default_cache())!r}")  # where the model is
    serve(fresh, DEFAULT_MODEL)
    tokens, texts = found_in(fresh, DEFAULT_MODEL)
    assert tokens == [value(fresh, f"lab._tokenizer.encode({TEXT!r})")] * len(tokens)
    assert texts == [TEXT] * len(texts)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    folder = make_tiny(tmp_path / "model", "qwen2", vocab_size=400)
    entries = metadata(train(OWN["qwen2"], 399), "qwen2", {"<|im_end|>": CONTROL}, eos_token_id=399)
    return write_gguf(folder, "qwen2", tmp_path / "tiny.gguf", entries)


def test_a_gguf_file(fresh: Kernel, gguf: Path) -> None:
    serve(fresh, str(gguf))
    tokens, texts = found_in(fresh, str(gguf))
    assert tokens == [value(fresh, f"lab._tokenizer.encode({TEXT!r})")] * len(tokens)
    assert texts == [TEXT] * len(texts)


def test_a_folder_whose_tokenizer_names_a_class_that_reads_it_wrong(fresh: Kernel, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizerFast"}))
    serve(fresh, str(folder))
    tokens, texts = found_in(fresh, str(folder))
    assert texts == [TEXT] * len(texts)
    assert tokens == [value(fresh, f"lab._tokenizer.encode({TEXT!r})")] * len(tokens)


# ---------------------------------------------------------------------- in this process


@pytest.fixture
def folder(tiny_llama: Path) -> Path:
    return tiny_llama


def load(name: str, **options) -> list[int]:
    return AutoTokenizer.from_pretrained(name, **options).encode("a b")


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("no-such-owner/no-such-model", "no-such-owner/no-such-model"),
        ("./some.gguf", "./some.gguf"),
        ("/models/tiny", "/models"),  # the SDK takes a path of two slashes for owner/model/variant
        ("/models/tiny:v1", "/models"),
        ("/models/tiny/one:v1", "/models/tiny/one"),  # and drops what follows a colon
        ("meta-llama/Llama-3.2-1B", "thinkingmachineslabinc/meta-llama-3-instruct-tokenizer"),  # and names its own
    ],
)
def test_each_spelling_that_the_sdk_makes_of_a_name_is_known(monkeypatch, folder, name, asked):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with served_tokenizer(name, folder):
        assert load(asked) == load(str(folder))
        assert load(asked, fast=True) == load(str(folder))
    with pytest.raises((OSError, ValueError)):
        load(asked, local_files_only=True)


def test_other_names_and_revisions_are_asked_for_as_ever(tmp_path, folder):
    other = make_tiny(tmp_path / "other")
    with served_tokenizer("me/tiny", folder):
        assert load(str(other)) == load(str(folder))
        for options in ({"revision": "v2"}, {"subfolder": "deep"}):
            with pytest.raises((OSError, ValueError)):
                load("me/tiny", local_files_only=True, **options)


def test_a_cut_name_means_ours_only_where_it_means_nothing_else(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    make_tokenizer(280).save_pretrained("me/tiny")
    with served_tokenizer("me/tiny/variant", folder):
        assert len(AutoTokenizer.from_pretrained("me/tiny")) == 280
        assert len(AutoTokenizer.from_pretrained("me/tiny/variant")) == 320


def test_what_others_put_in_its_place_stays(folder):
    before = AutoTokenizer.__dict__["from_pretrained"]
    try:
        with served_tokenizer("me/tiny", folder):
            theirs = classmethod(lambda cls, name, **options: name)
            AutoTokenizer.from_pretrained = theirs
        assert AutoTokenizer.from_pretrained("x") == "x"
    finally:
        AutoTokenizer.from_pretrained = before
    with served_tokenizer("me/tiny", folder):
        pass
    assert AutoTokenizer.__dict__["from_pretrained"] is before
