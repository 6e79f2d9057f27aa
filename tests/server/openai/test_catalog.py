"""What ``model`` may name: the base, checkpoints, samplers, and adapters while they learn."""

from __future__ import annotations

import threading

import openai
import pytest

PROMPT = "The quick brown"
LEARNED = " fox ju"


def text_of(lab, model: str, **body) -> str:
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0} | body
    return lab.client.completions.create(model=model, **body).choices[0].text


def answer_of(lab, model: str) -> str:
    turn = {"role": "user", "content": PROMPT}
    return lab.client.chat.completions.create(model=model, messages=[turn], max_tokens=8).choices[0].message.content


@pytest.fixture
def fresh(lab):
    """Make an adapter that learned nothing; its name is the test's to choose."""
    service = lab.running.client()
    return lambda name: service.create_lora_training_client(lab.base, 8, user_metadata={"name": name}).result(60)


def test_the_list_is_what_can_be_named(lab):
    cards = {card.id: card for card in lab.client.models.list()}
    assert {lab.base, "pig"} <= cards.keys()
    assert (cards["pig"].root, cards["pig"].parent) == (lab.training.model_id, lab.base)
    assert (cards[lab.base].parent, cards[lab.base].owned_by) == (None, "txlab")
    for name in (lab.base, "pig", lab.training.model_id, lab.checkpoint):
        card = lab.client.models.retrieve(name)
        assert (card.id, card.object) == (name, "model")
        assert card.created <= lab.client.models.retrieve("pig").created + 600
        assert text_of(lab, name)


def test_a_trained_adapter_says_what_it_learned(lab):
    assert text_of(lab, "pig").startswith(LEARNED)
    assert text_of(lab, lab.training.model_id) == text_of(lab, "pig")
    assert text_of(lab, lab.checkpoint) == text_of(lab, "pig")
    assert not text_of(lab, lab.base).startswith(LEARNED)


def test_checkpoints_of_both_kinds(lab):
    path = lab.training.save_state("whole").result(timeout=60).path
    assert "/weights/" in path
    assert text_of(lab, path).startswith(LEARNED)


def test_a_checkpoint_that_was_written_anew_is_read_anew(lab, fresh):
    client = fresh("overwritten")
    path = client.save_state("same").result(timeout=60).path
    assert text_of(lab, path) == text_of(lab, lab.base)
    lab.train(client, 25)
    client.save_state("same", overwrite=True).result(timeout=60)
    assert text_of(lab, path).startswith(LEARNED)


def test_samplers_by_their_id(lab):
    sampler = lab.training.save_weights_and_get_sampling_client()
    sampler_id = sampler.result(timeout=60)._sampling_session_id
    assert lab.client.models.retrieve(sampler_id).root == sampler_id
    assert text_of(lab, sampler_id).startswith(LEARNED)


def test_weights_that_made_room_for_others_are_loaded_again(lab):
    bank = lab.running.engine._bank
    before = text_of(lab, lab.checkpoint)
    for snapshot_id in [name for name in bank._snapshots if name.startswith("tinker://")]:
        bank.drop_snapshot(snapshot_id)
    assert text_of(lab, lab.checkpoint) == before
    assert text_of(lab, lab.checkpoint, prompt=[PROMPT] * 4) == before


def test_a_live_adapter_is_asked_as_it_is_now(lab, fresh):
    client = fresh("pupil")
    assert text_of(lab, "pupil") == text_of(lab, lab.base)
    lab.train(client, 25)
    assert text_of(lab, "pupil").startswith(LEARNED)


def test_a_live_adapter_while_it_learns(lab, fresh):
    client = fresh("busy")
    learning = threading.Thread(target=lab.train, args=(client, 25))
    learning.start()
    texts = []
    while learning.is_alive():
        both = lab.client.completions.create(model="busy", prompt=[PROMPT, PROMPT], max_tokens=8, temperature=0, n=2)
        assert len({choice.text for choice in both.choices}) == 1  # frozen: one request sees one state
        texts.append(both.choices[0].text)
    assert texts[0] == text_of(lab, lab.base) or len(texts) > 1
    assert text_of(lab, "busy").startswith(LEARNED)


def test_nothing_is_kept_of_what_was_frozen_for_a_request(lab):
    text_of(lab, "pig")
    for _ in lab.client.completions.create(model="pig", prompt=PROMPT, stream=True):
        pass
    text_of(lab, lab.base)  # the engine takes requests in turn: what was dropped is gone by now
    assert not [name for name in lab.running.engine._bank._snapshots if name.startswith("openai-")]


def test_of_one_name_the_newest_is_meant(lab, fresh):
    older, newer = fresh("twin"), fresh("twin")
    lab.train(newer, 25)
    assert text_of(lab, "twin").startswith(LEARNED)
    assert text_of(lab, older.model_id) == text_of(lab, lab.base)
    cards = {card.id: card.root for card in lab.client.models.list()}
    assert cards["twin"] == newer.model_id
    assert cards[older.model_id] == older.model_id


def test_a_run_id_is_nobody_elses_name(lab, fresh):
    evil = fresh(lab.training.model_id)
    assert lab.client.models.retrieve(lab.training.model_id).root == lab.training.model_id
    assert text_of(lab, lab.training.model_id).startswith(LEARNED)
    cards = {card.id: card.root for card in lab.client.models.list()}
    assert cards[evil.model_id] == evil.model_id
    assert cards.get(lab.training.model_id, lab.training.model_id) == lab.training.model_id


@pytest.mark.parametrize(
    "name", ["nobody", "", "0123:train:0", "0123:sample:0", "tinker://x/sampler_weights/y", "tinker://?"]
)
def test_an_unknown_model(lab, name):
    for call in (text_of, answer_of):
        with pytest.raises(openai.NotFoundError) as refused:
            call(lab, name)
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
        assert repr(name) in refused.value.message
    if name and "?" not in name:
        with pytest.raises(openai.NotFoundError):
            lab.client.models.retrieve(name)


def test_an_unknown_model_is_told_what_there_is(lab):
    with pytest.raises(openai.NotFoundError, match="'pig'"):
        text_of(lab, "pigg")


def test_an_adapter_of_a_session_that_ended(lab):
    service = lab.running.client()
    client = service.create_lora_training_client(lab.base, 8, user_metadata={"name": "gone"}).result(60)
    assert text_of(lab, "gone")
    model_id = client.model_id
    service.close("success").result(timeout=20)
    lab.running.clients.remove(service)
    with pytest.raises(openai.NotFoundError, match="checkpoint"):
        text_of(lab, model_id)
    with pytest.raises(openai.NotFoundError):
        text_of(lab, "gone")
