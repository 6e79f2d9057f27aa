"""Samples asked for in a cell: of the base, and of an adapter by its name."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import tinker

from tests.notebook.kernels import Kernel
from txlab.engine.bus import AdapterView
from txlab.engine.engine import Engine
from txlab.engine.requests import CancelSample, SampledSequence
from txlab.lora.state import LoraConfig
from txlab.notebook.adapters import find_adapter, find_newest
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, serve
from txlab.notebook.samples import Samples


@pytest.fixture(scope="module")
def lab(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXLAB_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        running = serve(str(tiny_llama))
        yield running
        running.stop()


def samples(*texts: str, prompt: str = "p", adapter: str = "base") -> Samples:
    drawn = tuple(SampledSequence(np.arange(3), np.zeros(3), "stop") for _ in texts)
    return Samples(adapter, prompt, texts, drawn)


def test_the_base_continues_a_text(lab: Lab) -> None:
    found = lab.sample("one two", samples=3, max_tokens=5, seed=7, stop=[])
    assert (found.adapter, found.prompt, len(found)) == ("base", "one two", 3)
    assert [len(one.tokens) for one in found.drawn] == [5] * 3
    assert list(found) == list(lab.sample("one two", "base", samples=3, max_tokens=5, seed=7, stop=[]))
    assert found[0] == lab._serving().base.tokenizer.decode(found.drawn[0].tokens, skip_special_tokens=True)


def test_an_adapter_is_sampled_as_it_is_now(lab: Lab) -> None:
    service = tinker.ServiceClient()
    client = service.create_lora_training_client(
        base_model=lab.model, rank=4, user_metadata={"name": "pirate"}
    ).result()
    (known,) = lab.status().view.adapters
    text = [5, 6, 7, 8]
    datum = tinker.types.Datum(
        model_input=tinker.types.ModelInput.from_ints(text),
        loss_fn_inputs={"target_tokens": [6, 7, 8, 9], "weights": [1.0] * 4},
    )
    before = lab.sample("one two", known.name, max_tokens=8, temperature=0.0, stop=[])
    assert list(before) == list(lab.sample("one two", max_tokens=8, temperature=0.0, stop=[])), "it has not learned yet"
    for _ in range(5):
        client.forward_backward([datum], "cross_entropy").result()
        client.optim_step(tinker.types.AdamParams(learning_rate=0.1)).result()
    after = lab.sample("one two", known.model_id, max_tokens=8, temperature=0.0, stop=[])
    assert after.adapter == known.name
    assert list(after) != list(before)
    service.close("success").result()


def test_what_is_wrong_is_said(lab: Lab) -> None:
    with pytest.raises(TxlabError, match="no adapter 'nobody'"):
        lab.sample("x", "nobody")
    with pytest.raises(TxlabError, match="max_tokens"):
        lab.sample("x", max_tokens=0)
    with pytest.raises(TxlabError, match="prompt"):
        lab.sample("")
    with pytest.raises(TxlabError, match="stopped"):
        Lab(lab.settings).sample("x")


class Interrupted(Future):
    def result(self, timeout: float | None = None) -> None:
        raise KeyboardInterrupt  # as Ctrl-C does to whoever waits


def test_an_interrupt_ends_the_samples(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(Engine, "ask", lambda engine, request: asked.append(request) or Interrupted())
    with pytest.raises(KeyboardInterrupt):
        lab.sample("one two", max_tokens=100, stop=[])
    sample, cancelled = asked
    assert isinstance(cancelled, CancelSample)
    assert cancelled.sample is sample


def test_the_newest_adapter_of_a_name_is_taken_and_none_that_is_gone() -> None:
    def view(model_id: str, name: str = "twin", state: str = "idle") -> AdapterView:
        return AdapterView(model_id, name, LoraConfig(8), 0, state=state)  # type: ignore[arg-type]

    adapters = [view("a"), view("b"), view("c", state="unloaded"), view("long", "x" * 1000), view("evil", "a")]
    with pytest.warns(UserWarning, match=r"2 adapters are called 'twin': b \(step 0, .*; a \(.* This is the newest"):
        assert find_newest(adapters, "twin").model_id == "b"
    with pytest.raises(TxlabError, match=r"2 adapters are called 'twin': b \(step 0, .*; a \(.* its run id"):
        find_adapter(adapters, "twin")
    assert find_adapter(adapters, "a").model_id == "a", "whatever others are called"
    with pytest.raises(TxlabError, match=r"no adapter 'c': .* Adapters: 'twin', 'x{56}\.\.\., 'a'\.$"):
        find_adapter(adapters, "c")
    with pytest.raises(TxlabError, match="no adapter 5: give a name or a run id"):
        find_adapter(adapters, 5)  # type: ignore[arg-type]


def test_they_show_themselves() -> None:
    found = samples("<b>first</b>", "second", prompt="<p>", adapter="a&b")
    assert repr(found) == "a&b · 3 tokens · stop\n<b>first</b>\na&b · 3 tokens · stop\nsecond"
    html = found._repr_html_()
    assert html.count("&lt;p&gt;") == 2
    assert "&lt;b&gt;first&lt;/b&gt;" in html
    assert "a&amp;b · 3 tokens · stop" in html


def test_the_magic_continues_its_cell(kernel: Kernel, tiny_llama: Path) -> None:
    kernel.ok(f"%load_ext txlab\nlab = %txserve {tiny_llama}")
    cell = kernel.ok("%%txsample -n 2 -m 4 --seed 3 --temperature 0.5\none two")
    assert cell.text.count("base · ") == 2
    kernel.ok("%%txsample base --max-tokens 2 --top-k 5 --top-p 0.9 --stop 'a b' --stop c\none two")
    again = kernel.ok("print(lab.sample('one two', samples=2, max_tokens=4, seed=3, temperature=0.5))")
    assert again.text.strip() in cell.text
    wrong = kernel.run("%%txsample nobody\none two")
    assert wrong.error_name == "TxlabError"
    assert "no adapter 'nobody'" in wrong.error
