"""The tokenizer of what is served, as the SDK's and the cookbook's own calls find it: by the model's name."""

from __future__ import annotations

import json
import socket
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

GET = """
import tinker
service = tinker.ServiceClient()
training = service.create_lora_training_client(base_model={name!r}, rank=1)
sampling = service.create_sampling_client(base_model={name!r})
found = [training.get_tokenizer(), sampling.get_tokenizer()]
if {cookbook}:
    from tinker_cookbook.tokenizer_utils import get_tokenizer
    found.append(get_tokenizer({name!r}))
"""
ENCODE = "([one.encode({text!r}) for one in found], [one.decode(one.encode({text!r})) for one in found])"


def have_cookbook() -> bool:
    try:
        import tinker_cookbook  # noqa: F401
    except ImportError:
        return False
    return True


def value(kernel: Kernel, expression: str) -> Any:
    """Value of an expression in a kernel, by way of JSON."""
    return json.loads(kernel.ok(f"import json; print(json.dumps({expression}))").text.splitlines()[-1])


def found_in(kernel: Kernel, name: str) -> None:
    """Serve ``name``, and check that each way to its tokenizer gives the lab's, which gives texts back."""
    kernel.ok(f"lab = %txserve {name} --restart")
    kernel.ok(GET.format(name=name, cookbook=have_cookbook()))
    tokens, texts = value(kernel, ENCODE.format(text=TEXT))
    assert tokens == [value(kernel, f"lab._tokenizer.encode({TEXT!r})")] * (2 + have_cookbook())
    assert texts == [TEXT] * len(texts)


@pytest.fixture(scope="module")
def hub() -> Iterator[socket.socket]:
    """A hub that never answers; who asks it waits for long."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture(scope="module", params=["offline", "no network"])
def kernel(request: pytest.FixtureRequest, lab_env: dict[str, str], hub: socket.socket) -> Iterator[Kernel]:
    """One that knows it is offline, and one that does not."""
    own = {"HF_ENDPOINT": "http://{}:{}".format(*hub.getsockname()), "TXLAB_CACHE": str(default_cache())}
    with open_kernel(lab_env | own | {"HF_HUB_OFFLINE": str(int(request.param == "offline"))}) as fresh:
        fresh.ok("%load_ext txlab")
        yield fresh


@pytest.fixture(autouse=True)
def nobody_asks(hub: socket.socket) -> Iterator[None]:
    yield
    with pytest.raises(BlockingIOError):
        hub.accept()


def test_the_packaged_default_model(kernel: Kernel) -> None:
    resolve(DEFAULT_MODEL, ModelSettings())
    found_in(kernel, DEFAULT_MODEL)


def test_a_gguf_file(kernel: Kernel, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model", "qwen2", vocab_size=400)
    entries = metadata(train(OWN["qwen2"], 399), "qwen2", {"<|im_end|>": CONTROL}, eos_token_id=399)
    found_in(kernel, str(write_gguf(folder, "qwen2", tmp_path / "tiny.gguf", entries)))


def test_a_folder_whose_tokenizer_names_a_class_that_reads_it_wrong(kernel: Kernel, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizerFast"}))
    found_in(kernel, str(folder))


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
        assert AutoTokenizer.from_pretrained(pretrained_model_name_or_path=asked).encode("a b") == load(str(folder))
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
