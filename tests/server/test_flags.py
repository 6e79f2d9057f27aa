"""What clients are told to do, and that both ways of it work: the real SDK with each flag on and off."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import tinker
from tinker import types

from tests.server.conftest import serve
from tests.server.fake_engine import ENDLESS
from txlab.config import ServerSettings
from txlab.engine.requests import CancelSample, ForwardBackward, Sample
from txlab.server import tinker_wire_pb2 as pb
from txlab.server.routes.futures import UNANNOUNCED_BYTES

PROMPT = types.ModelInput.from_ints([1, 2, 3])
SHORT = types.SamplingParams(max_tokens=2)
EACH_WAY = pytest.mark.parametrize("on", [True, False])


@pytest.fixture
def serving(engine, tmp_path):
    """A function that serves with the given flags until the test ends."""
    contexts = []

    def start(**flags):
        contexts.append(serve(engine, tmp_path / "store", ServerSettings(poll_seconds=0.5, flags=flags)))
        return contexts[-1].__enter__()

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def count_calls(monkeypatch, owner, name):
    """Count the calls of a method by their first argument, and how many are under way."""
    calls, under_way = Counter(), set()
    method = getattr(owner, name)

    async def counted(first, *args):
        calls[first] += 1
        under_way.add(first)
        try:
            return await method(first, *args)
        finally:
            under_way.discard(first)

    monkeypatch.setattr(owner, name, counted)
    return calls, under_way


def datum(value=1, length=4) -> types.Datum:
    tokens = [value] * length
    inputs = {"target_tokens": np.array(tokens), "weights": np.ones(length, np.float32)}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


def ask(server, sampler_id, seq_id, first_token=1, **fields):
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [first_token, 2, 3]}]}
    body = {"sampling_session_id": sampler_id, "seq_id": seq_id, "prompt": prompt, "sampling_params": {"max_tokens": 2}}
    reply = server.post("asample", body | fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["request_id"]


def sampler_of(server):
    body = {"session_id": server.session(), "sampling_session_seq_id": 0, "base_model": "fake/model"}
    return server.post("create_sampling_session", body).json()["sampling_session_id"]


# ------------------------------------------------------------------------------------------- flags


def test_flags_are_told_and_overridden(serving):
    server = serving(fwdbwd_max_chunk_len=7, sample_cancel_enabled=False)
    told, dynamic = server.post("client/config").json(), server.post("client/dynamic_config").json()
    assert told["fwdbwd_max_chunk_len"] == 7
    assert told["sample_use_retrieve_futures"]
    assert not told["pjwt_auth_enabled"]
    assert dynamic == {"refresh_interval_sec": 300, "sample_cancel_enabled": False}
    tinker.types.ClientConfigResponse.model_validate(told)


@pytest.mark.parametrize(("address", "remote"), [("127.0.0.1", False), ("192.0.2.7", True), ("2001:db8::1", True)])
def test_clients_on_other_machines_compress(serving, address, remote):
    told = serving().post("client/config", headers={"X-Forwarded-For": address}).json()
    assert told["proto_compress_fwdbwd"] is remote


@pytest.mark.parametrize("flags", [{"no_such_flag": True}, {"fwdbwd_max_chunk_len": "many"}])
def test_unknown_flags_and_values_are_refused_at_the_start(serving, flags):
    with pytest.raises(ValueError, match=next(iter(flags))):
        serving(**flags)


def test_chunks_are_as_large_as_the_flag_says(serving, engine):
    service = serving(fwdbwd_max_chunk_len=10).client()
    client = service.create_lora_training_client(base_model="fake/model", rank=8).result()
    assert len(client.forward([datum()] * 25, "cross_entropy").result(timeout=20).loss_fn_outputs) == 25
    assert [len(request.data) for request in engine.log if isinstance(request, ForwardBackward)] == [10, 10, 5]


@EACH_WAY
def test_bodies_are_compressed_where_told(serving, monkeypatch, on):
    from txlab.server.routes import training

    packed = []
    monkeypatch.setattr(training, "_decompress", lambda body, f=training._decompress: packed.append(1) or f(body))
    service = serving(proto_compress_fwdbwd=on).client()
    client = service.create_lora_training_client(base_model="fake/model", rank=8).result()
    assert client.forward([datum(length=9)], "cross_entropy").result(timeout=20).metrics["tokens:sum"] == 9
    assert bool(packed) is on


# ---------------------------------------------------------------------------------- many at once


@EACH_WAY
def test_many_samples_at_once_wait_on_one_poll_or_on_one_each(serving, engine, monkeypatch, on):
    server = serving(sample_use_retrieve_futures=on, sample_max_concurrent_requests=40)
    calls, under_way = count_calls(monkeypatch, server.state.futures, "wait")
    sampler = server.client().create_sampling_client(base_model="fake/model").result()
    engine.gate.clear()
    futures = [sampler.sample(types.ModelInput.from_ints([n]), 1, SHORT) for n in range(60)]
    asked = 60 if on else 40  # without the poll, the flag bounds what is under way
    wait_until(lambda: len(server.state.futures._by_id) == asked and (on or len(under_way) == asked))
    assert bool(under_way) is not on
    engine.gate.set()
    results = [future.result(timeout=30) for future in futures]
    assert len({result.sequences[0].sequence_id for result in results}) == 60
    assert len(calls) == 60
    assert not on or set(calls.values()) == {1}


@EACH_WAY
def test_failures_reach_their_own_sample(serving, engine, on):
    sampler = serving(sample_use_retrieve_futures=on).client().create_sampling_client(base_model="fake/model").result()
    bad = types.SamplingParams(max_tokens=1, temperature=-1.0)
    futures = [sampler.sample(PROMPT, 1, SHORT) for _ in range(4)]
    with pytest.raises(tinker.BadRequestError, match="temperature"):
        sampler.sample(PROMPT, 1, bad).result(timeout=20)
    engine.broken = (Sample,)
    with pytest.raises(tinker.RequestFailedError, match="out of memory"):
        sampler.sample(PROMPT, 1, SHORT).result(timeout=20)
    engine.broken = ()
    assert all(future.result(timeout=20).sequences for future in futures)
    assert sampler.sample(PROMPT, 1, SHORT).result(timeout=20).sequences


def test_results_that_a_client_has_are_freed(serving):
    server = serving()
    sampler = server.client().create_sampling_client(base_model="fake/model").result()
    for _ in range(3):
        sampler.sample(PROMPT, 1, SHORT).result(timeout=20)
    wait_until(lambda: not server.state.futures._by_id)


# ------------------------------------------------------------------------------------------- cancel


@EACH_WAY
def test_a_sample_that_nobody_waits_for_is_stopped_while_another_goes_on(serving, engine, on):
    server = serving(sample_cancel_enabled=on)
    service = server.client()
    sampler = service.create_sampling_client(base_model="fake/model").result()
    lost, kept = (sampler.sample(types.ModelInput.from_ints([ENDLESS, n]), 1, SHORT) for n in (1, 2))
    wait_until(lambda: len(engine.endless) == 2)
    assert sampler.sample(PROMPT, 1, SHORT).result(timeout=20).sequences  # by now the client knows the others' ids
    lost.future().cancel()
    assert sampler.sample(PROMPT, 1, SHORT).result(timeout=20).sequences
    if on:
        wait_until(lambda: len(engine.endless) == 1)
        assert not kept.future().done()
        assert [request.prompt[1] for request in engine.endless] == [2]
    else:
        assert not any(isinstance(request, CancelSample) for request in engine.log)
    service.close("interrupted").result(timeout=20)
    wait_until(lambda: not engine.endless)


# --------------------------------------------------------------------------------- large payloads


@EACH_WAY
def test_the_size_of_a_large_result_is_told_first(serving, engine, monkeypatch, on):
    server = serving(sample_use_retrieve_futures=on)
    calls, _ = count_calls(monkeypatch, server.state.futures, "wait")
    sampler = server.client().create_sampling_client(base_model="fake/model").result()
    engine.limits = engine.limits.__class__(vocab_size=100, max_context=8192, max_rank=64)
    prompt, k = types.ModelInput.from_ints([1] * 4000), 60
    assert 4000 * k * 8 > UNANNOUNCED_BYTES
    result = sampler.sample(prompt, 1, SHORT, include_prompt_logprobs=True, topk_prompt_logprobs=k).result(timeout=30)
    assert len(result.topk_prompt_logprobs) == 4000
    assert list(calls.values()) == [1 if on else 2]  # the poll tells the size as well


def test_a_client_that_does_not_ask_for_the_size_gets_the_result(serving):
    server = serving()
    tokens = {"chunks": [{"type": "encoded_text", "tokens": [1] * 4000}]}
    request_id = ask(server, sampler_of(server), 0, prompt=tokens, prompt_logprobs=True, topk_prompt_logprobs=60)
    sized = server.post("retrieve_future", {"request_id": request_id, "allow_metadata_only": True})
    size = sized.json().pop("response_payload_size")
    assert sized.json() == {"status": "complete_metadata", "response_payload_size": size}
    whole = server.post("retrieve_future", {"request_id": request_id, "allow_metadata_only": False})
    assert len(whole.content) == size > UNANNOUNCED_BYTES
    assert len(pb.SampleResponse.FromString(whole.content).sequences) == 1
    assert server.retrieve(request_id).content == whole.content
    small = ask(server, sampler_of(server), 0)
    reply = server.post("retrieve_future", {"request_id": small, "allow_metadata_only": True})
    assert reply.headers["content-type"] == "application/x-protobuf"


# ------------------------------------------------------------------------------------------ clones


@EACH_WAY
def test_clones_of_a_sampler_number_their_requests_apart(serving, on):
    server = serving(sample_join_sampling_session=on)
    first = server.client().create_sampling_client(base_model="fake/model").result()
    handle = first.get_sampler_handle()
    clones = [tinker.SamplingClient.from_sampler_handle(handle, api_key=server.key) for _ in range(2)]
    clones.append(pickle.loads(pickle.dumps(first)))
    results = [sampler.sample(PROMPT, 1, SHORT).result(timeout=20) for sampler in (first, *clones, *clones)]
    for clone in clones:
        clone.holder.close()
    numbers = [int(result.sequences[0].sequence_id.split(":")[3]) for result in results]
    assert len(set(numbers)) == 7
    assert [n % 10**9 for n in numbers] == [0, 0, 0, 0, 1, 1, 1]
    assert not on or [n // 10**9 for n in numbers] == [0, 1, 2, 3, 1, 2, 3]


def test_a_handle_works_in_another_process(serving):
    server = serving()
    sampler = server.client().create_sampling_client(base_model="fake/model").result()
    program = """
import sys, tinker
sampler = tinker.SamplingClient.from_sampler_handle(sys.argv[1])
prompt, params = tinker.types.ModelInput.from_ints([1, 2, 3]), tinker.types.SamplingParams(max_tokens=2)
print(sampler.sample(prompt, 1, params).result(timeout=30).sequences[0].sequence_id)
"""
    command = [sys.executable, "-c", program, sampler.get_sampler_handle()]
    environment = os.environ | {"TINKER_API_KEY": server.key}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split()[-1].endswith(":sample:0:1000000000:0")


# -------------------------------------------------------------------------------- raw polls, raw cancel


def poll(server, sampler_id, cursor=0, clone=0, timeout=0, retrieved=()):
    target = {"type": "sampling_session", "sampling_session_id": sampler_id, "cloned_sampler_id": clone}
    body = {"target": target, "prev_cursor": cursor, "retrieved_request_ids": list(retrieved)}
    return server.post("retrieve_futures", body | ({} if timeout is None else {"timeout": timeout}))


def test_a_poll_tells_what_ended_since_its_cursor(serving, engine):
    server = serving()
    sampler_id = sampler_of(server)
    assert poll(server, sampler_id).json() == {"completions": [], "cursor": 0}
    first = ask(server, sampler_id, 0)
    assert len(poll(server, sampler_id, timeout=5).json()["completions"]) == 1
    engine.broken = (Sample,)
    second = ask(server, sampler_id, 1)
    wait_until(lambda: len(poll(server, sampler_id).json()["completions"]) == 2)
    reply = poll(server, sampler_id).json()
    size = len(server.retrieve(first).content)
    finished = {"state": "finished", "request_id": first, "response_payload_uncompressed_size": size}
    assert reply["completions"] == [finished, {"state": "failed", "request_id": second}]
    assert poll(server, sampler_id, reply["cursor"]).json() == {"completions": [], "cursor": reply["cursor"]}
    assert "error" in server.retrieve(second).json()


def test_a_poll_is_held_until_something_ends_or_its_time_is_over(serving, engine):
    server = serving()
    sampler_id = sampler_of(server)
    began = time.monotonic()
    assert poll(server, sampler_id, timeout=None).json()["completions"] == []
    assert poll(server, sampler_id, timeout=300).json()["completions"] == []
    assert time.monotonic() - began >= 0.98  # twice poll_seconds
    engine.gate.clear()
    request_id = ask(server, sampler_id, 0)
    server.loop.call_soon_threadsafe(engine.gate.set)
    wait_until(
        lambda: [c["request_id"] for c in poll(server, sampler_id, 0, 0, 5).json()["completions"]] == [request_id]
    )


def test_each_clone_is_told_of_its_own(serving):
    server = serving()
    sampler_id = sampler_of(server)
    ids = [ask(server, sampler_id, clone * 10**9) for clone in (0, 5)]
    for clone, request_id in zip((0, 5), ids, strict=True):
        wait_until(lambda: poll(server, sampler_id, 0, clone).json()["completions"])  # noqa: B023
        told = poll(server, sampler_id, 0, clone).json()["completions"]
        assert [completion["request_id"] for completion in told] == [request_id]


def test_only_results_of_the_target_are_freed(serving):
    server = serving()
    one, other = sampler_of(server), sampler_of(server)
    request_id = ask(server, one, 0)
    wait_until(lambda: poll(server, one).json()["completions"])
    poll(server, other, retrieved=[request_id, "asample-none"])
    assert server.retrieve(request_id).status_code == 200
    poll(server, one, retrieved=[request_id])
    assert server.retrieve(request_id).status_code == 410


def test_bad_polls_are_refused(serving):
    server = serving()
    session_id = server.session()
    sampler_id = f"{session_id}:sample:0"
    assert poll(server, sampler_id).status_code == 404
    body = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "fake/model"}
    server.post("create_sampling_session", body)
    assert poll(server, sampler_id).status_code == 200
    bogus = poll(server, sampler_id, cursor=3)
    assert bogus.status_code == 400
    assert "prev_cursor" in bogus.json()["detail"]
    assert poll(server, sampler_id, timeout=-1).status_code == 422
    server.post(f"sessions/{session_id}/finish", {"reason": {"type": "success"}})
    assert "was finished" in poll(server, sampler_id).json()["detail"]


def test_cancelling_what_cannot_be(serving, engine):
    server = serving()
    sampler_id = sampler_of(server)
    done = ask(server, sampler_id, 0)
    content = server.retrieve(done).content
    for request_id in (done, "asample-unknown"):
        assert server.post("cancel_future", {"request_id": request_id}).status_code == 200
    assert server.retrieve(done).content == content
    training = server.post("cancel_future", {"request_id": "training-1"})
    assert training.status_code == 400
    assert "sampling" in training.json()["detail"]
    running = ask(server, sampler_id, 1, first_token=ENDLESS)
    wait_until(lambda: engine.endless)
    server.post("cancel_future", {"request_id": running})
    assert server.retrieve(running).json() == {"error": "the request was cancelled by its client", "category": "user"}
    assert ask(server, sampler_id, 1, first_token=ENDLESS) == running, "it does not run again"
    wait_until(lambda: not engine.endless)
