"""What is asked of the engine for several sources at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.models.tokenizers import less
from tests.notebook.parts import SECONDS, Parts, running, watch_batches
from txlab.engine.bus import AdapterView
from txlab.engine.requests import DropSnapshot, UnloadAdapter
from txlab.lora.state import LoraConfig
from txlab.notebook.drafts import Draft, Source, find_sources, make_ask, to_request, wait_for
from txlab.notebook.errors import TxlabError

EVERYONE = (Source(), Source("one", "one"), Source("two", "two"))


@pytest.fixture(scope="module")
def parts(tiny_llama: Path) -> Iterator[Parts]:
    with running(tiny_llama) as parts:
        parts.adapter("one").learn(5)
        parts.adapter("two").learn(5, rate=0.02)
        yield parts


def view(model_id: str, name: str, state: str = "idle") -> AdapterView:
    return AdapterView(model_id, name, LoraConfig(8), 0, state=state)  # type: ignore[arg-type]


def test_the_base_and_all_adapters_answer_in_one_batch(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = watch_batches(monkeypatch)
    request = to_request(parts.engine, make_ask("one two", max_tokens=24, seed=3, stop=[], samples=2))
    drafts = [Draft(parts.engine, request, source) for source in EVERYONE]
    results = wait_for(parts.engine, drafts)
    assert {None, "one", "two"} in batches
    texts = [draft.texts(parts.engine.base.tokenizer) for draft in drafts]
    assert len(set(texts)) == 3, "each has learned something else"
    for draft, result in zip(drafts, results, strict=True):
        (alone,) = wait_for(parts.engine, [Draft(parts.engine, request, draft.source)])
        for index, sequence in enumerate(result.sequences):
            assert sequence.tokens.tolist() == alone.sequences[index].tokens.tolist(), "a batch changes no text"
            assert [token for token, _ in draft.drawn[index]] == sequence.tokens.tolist()


def test_one_seed_for_all(parts: Parts) -> None:
    parts.adapter("fresh")
    request = to_request(parts.engine, make_ask("one two", max_tokens=16, stop=[]))
    base, fresh = (Draft(parts.engine, request, source) for source in (Source(), Source("fresh", "fresh")))
    wait_for(parts.engine, [base, fresh])
    assert base.texts(parts.engine.base.tokenizer) == fresh.texts(parts.engine.base.tokenizer), "it has not learned yet"


def test_a_snapshot_is_gone_when_its_request_is_on_its_way(parts: Parts) -> None:
    request = to_request(parts.engine, make_ask("one two", max_tokens=4))
    wait_for(parts.engine, [Draft(parts.engine, request, source) for source in EVERYONE])
    parts.engine.ask(DropSnapshot("nothing")).result(SECONDS)  # the engine has seen to all that came before
    assert not parts.engine._bank._snapshots


def test_tokens_come_bit_by_bit(parts: Parts) -> None:
    lengths: list[tuple[int, bool]] = []
    request = to_request(parts.engine, make_ask("one two", max_tokens=40, stop=[]))
    draft = Draft(parts.engine, request, EVERYONE[1], lambda draft: lengths.append((len(draft.drawn[0]), draft.ended)))
    wait_for(parts.engine, [draft])
    assert len(lengths) > 2
    assert lengths == sorted(lengths)
    assert lengths[-1] == (40, True)
    assert draft.stop_reasons == ("length",)


def test_one_that_is_gone_says_so_and_the_others_are_let_go(parts: Parts) -> None:
    parts.adapter("lost")
    parts.engine.ask(UnloadAdapter("lost")).result(SECONDS)
    request = to_request(parts.engine, make_ask("one two", max_tokens=400, stop=[]))
    drafts = [Draft(parts.engine, request, source) for source in (Source("lost", "lost"), Source())]
    with pytest.raises(TxlabError, match="lost: model 'lost' is not there"):
        wait_for(parts.engine, drafts)
    assert drafts[1].cancelled


def test_what_is_cancelled_keeps_what_it_has(parts: Parts) -> None:
    request = to_request(parts.engine, make_ask("one two", max_tokens=400, stop=[]))
    draft = Draft(parts.engine, request, Source(), lambda draft: draft.cancelled or draft.cancel(parts.engine))
    with pytest.raises(TxlabError, match="cancelled"):
        draft.result()
    assert draft.cancelled
    assert 0 < len(draft.drawn[0]) < 400
    assert draft.stop_reasons == ("",)


def test_what_has_ended_is_not_cancelled(parts: Parts) -> None:
    request = to_request(parts.engine, make_ask("one two", max_tokens=2, stop=[]))
    draft = Draft(parts.engine, request, Source())
    draft.result()
    draft.cancel(parts.engine)
    assert (draft.cancelled, draft.stop_reasons) == (False, ("length",))


def test_a_chat_turn_ends_where_the_answer_begins(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = parts.engine.base.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(TxlabError, match="no chat template"):
        to_request(parts.engine, make_ask("one", chat=True))
    layout = (
        "{% for turn in messages %}{{ turn.content }} two{% endfor %}{% if add_generation_prompt %} three{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", layout)
    request = to_request(parts.engine, make_ask("one", chat=True))
    assert request.prompt.tolist() == tokenizer.encode("one two three")


@pytest.mark.parametrize("seed", range(4))
def test_texts_are_decoded_after_the_prompt_without_special_tokens(parts: Parts, seed: int) -> None:
    tokenizer = parts.engine.base.tokenizer
    request = to_request(parts.engine, make_ask("one é two", max_tokens=80, stop=[], seed=seed))
    request = replace(request, prompt=request.prompt[:-5])  # within a character, too
    draft = Draft(parts.engine, request, Source())
    tokens = draft.result().sequences[0].tokens
    whole, before = (
        tokenizer.decode(ids, skip_special_tokens=True)
        for ids in (np.concatenate((request.prompt, tokens)), request.prompt)
    )
    assert draft.texts(tokenizer) == (less(whole, before),)


def test_sources_by_name() -> None:
    adapters = [view("a", "twin"), view("b", "twin"), view("c", "gone", "unloaded"), view("d", "base"), view("e", "")]
    assert find_sources(adapters, None) == (
        Source(),
        Source("twin", "a"),
        Source("twin b", "b"),
        Source("base d", "d"),
        Source("e", "e"),
    )
    assert find_sources(adapters, ["twin", "b", "base"]) == (Source("twin", "b"), Source())
    assert find_sources(adapters, ["d"]) == (Source("base d", "d"),)
    with pytest.raises(TxlabError, match="no adapter 'gone'"):
        find_sources(adapters, ["gone"])
    with pytest.raises(TxlabError, match="Nobody is asked"):
        find_sources(adapters, [])
