"""Checkpoints over the API: the SDK's methods, what is refused, and what survives a restart."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import warnings
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest
import tinker
from tinker import types

from tests.server.conftest import Running, serve
from txlab.config import ServerSettings
from txlab.lora.state import AdapterState, LoraConfig
from txlab.server import expiry
from txlab.store import checkpoints as store
from txlab.store.checkpoints import Checkpoints

LONG = 20  # seconds that no answer should take


@pytest.fixture
def service(server: Running) -> tinker.ServiceClient:
    return server.client()


@pytest.fixture
def rest(server: Running) -> tinker.RestClient:
    return rest_of(server)


def rest_of(server: Running) -> tinker.RestClient:
    return tinker.RestClient(base_url=server.url, api_key=server.key)


@pytest.fixture
def trainer(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client("fake/model", rank=8).result(timeout=LONG)


def train(client: tinker.TrainingClient, steps: int = 1) -> float:
    """Take steps; the new value of the fake adapter's only weight."""
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([1, 2]), loss_fn_inputs={"target_tokens": [2, 3], "weights": [1.0, 1.0]}
    )
    for _ in range(steps):
        client.forward_backward([datum], "cross_entropy")
        client.optim_step(types.AdamParams(learning_rate=1.0))
    return weight(client)


def weight(client: tinker.TrainingClient) -> float:
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([1]), loss_fn_inputs={"target_tokens": [2], "weights": [1.0]}
    )
    result = client.forward([datum], "cross_entropy").result(timeout=LONG)
    return -result.loss_fn_outputs[0]["logprobs"].data[0]


def expire(root, name: str) -> None:
    """Let a checkpoint's time be over."""
    (index,) = root.rglob(f"{name}/{store.INDEX}")
    record = json.loads(index.read_text()) | {"expires": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()}
    index.write_text(json.dumps(record))


# -------------------------------------------------------------------------------------------- lists


def test_lists_show_what_was_saved(trainer, rest):
    path = trainer.save_state("one", ttl_seconds=7200, user_metadata={"a": "b"}).result(timeout=LONG).path
    sampler = trainer.save_weights_for_sampler("two").result(timeout=LONG).path
    newest, oldest = rest.list_checkpoints(trainer.model_id).result(timeout=LONG).checkpoints
    assert (oldest.tinker_path, oldest.checkpoint_id, oldest.checkpoint_type) == (path, "weights/one", "training")
    assert (newest.tinker_path, newest.checkpoint_id, newest.checkpoint_type) == (
        sampler,
        "sampler_weights/two",
        "sampler",
    )
    assert oldest.user_metadata == {"a": "b"}
    assert newest.user_metadata is None
    assert oldest.expires_at - oldest.time == timedelta(hours=2)
    assert newest.expires_at is None
    assert oldest.time.utcoffset() == timedelta()
    assert oldest.size_bytes > 0
    assert oldest.public is False


def test_pages_of_all_checkpoints(service, trainer, rest):
    other = service.create_lora_training_client("fake/model", rank=8).result(timeout=LONG)
    paths = [client.save_state("x").result(timeout=LONG).path for client in (trainer, other)]
    paths.append(trainer.save_state("y").result(timeout=LONG).path)
    page = rest.list_user_checkpoints(limit=2).result(timeout=LONG)
    assert [checkpoint.tinker_path for checkpoint in page.checkpoints] == [paths[2], paths[1]]
    assert (page.cursor.limit, page.cursor.offset, page.cursor.total_count) == (2, 0, 3)
    page = rest.list_user_checkpoints(limit=2, offset=2).result(timeout=LONG)
    assert [checkpoint.tinker_path for checkpoint in page.checkpoints] == [paths[0]]


def test_a_run_that_nobody_knows_has_no_checkpoints(rest):
    assert rest.list_checkpoints("no:such:run").result(timeout=LONG).checkpoints == []


def test_metadata_that_is_no_text_is_shown_as_json(server):
    model_id = server.model(server.session())
    body = {"model_id": model_id, "seq_id": 1, "path": "x", "user_metadata": {"step": 3, "tags": ["a"]}}
    server.retrieve(server.post("save_weights", body).json()["request_id"])
    (shown,) = server.get("checkpoints").json()["checkpoints"]
    assert shown["user_metadata"] == {"step": "3", "tags": '["a"]'}


# ------------------------------------------------------------------------------------------- change


def test_publish_and_unpublish_as_often_as_one_likes(trainer, rest):
    path = trainer.save_state("x").result(timeout=LONG).path

    def public():
        return rest.list_checkpoints(trainer.model_id).result(timeout=LONG).checkpoints[0].public

    for _ in range(2):
        rest.publish_checkpoint_from_tinker_path(path).result(timeout=LONG)
        assert public() is True
    for _ in range(2):
        rest.unpublish_checkpoint_from_tinker_path(path).result(timeout=LONG)
        assert public() is False


def test_ttl_is_set_removed_and_checked(trainer, rest):
    path = trainer.save_state("x").result(timeout=LONG).path

    def expires():
        return rest.list_checkpoints(trainer.model_id).result(timeout=LONG).checkpoints[0].expires_at

    rest.set_checkpoint_ttl_from_tinker_path(path, 86400).result(timeout=LONG)
    assert timedelta(hours=23) < expires() - datetime.now(UTC) <= timedelta(hours=24)
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result(timeout=LONG)
    assert expires() is None
    with pytest.raises(tinker.BadRequestError, match=r"ttl_seconds is 5: expected 3600 \(1 hour\)"):
        rest.set_checkpoint_ttl_from_tinker_path(path, 5).result(timeout=LONG)


def test_ttl_must_be_said(server):
    route = f"{server.url}/api/v1/training_runs/m/checkpoints/weights/x/ttl"
    assert put(server, route, {}) == (422, "body.ttl_seconds: Field required")
    assert put(server, route, {"ttl_seconds": "soon"})[0] == 422


def put(server: Running, url: str, body: object) -> tuple[int, str]:
    response = httpx.put(url, json=body, headers={"X-API-Key": server.key}, timeout=LONG)
    return response.status_code, response.json()["detail"]


def test_what_expired_is_gone_at_once_and_its_files_after_a_sweep(server, service, trainer, rest, tmp_path):
    path = trainer.save_state("old", ttl_seconds=3600).result(timeout=LONG).path
    trainer.save_state("young", ttl_seconds=3600).result(timeout=LONG)
    expire(tmp_path, "old")
    shown = rest.list_checkpoints(trainer.model_id).result(timeout=LONG).checkpoints
    assert [checkpoint.checkpoint_id for checkpoint in shown] == ["weights/young"]
    with pytest.raises(tinker.RequestFailedError, match="expired at"):
        service.create_training_client_from_state(path).result(timeout=LONG)
    with pytest.raises(tinker.NotFoundError, match="expired at"):
        rest.set_checkpoint_ttl_from_tinker_path(path, None).result(timeout=LONG)
    assert list(tmp_path.rglob("old"))
    server.checkpoints.tidy()
    assert not list(tmp_path.rglob("old"))
    assert list(tmp_path.rglob("young"))


def test_the_first_request_about_checkpoints_sweeps(server, tmp_path):
    model_id = server.model(server.session())
    state = AdapterState(LoraConfig(), {"w": np.zeros(1, np.float32)})
    server.checkpoints.write(store.Address(model_id, "weights", "old"), state, base_model="b", ttl_seconds=3600)
    expire(tmp_path, "old")
    assert list(tmp_path.rglob("old"))
    server.get("checkpoints")
    asyncio.run_coroutine_threadsafe(done(server.state.expiry), server.loop).result(timeout=LONG)
    assert not list(tmp_path.rglob("old"))


async def done(sweep: expiry.ExpirySweep) -> None:
    await sweep._task


def test_sweeps_come_again(monkeypatch):
    monkeypatch.setattr(expiry, "SWEEP_SECONDS", 0.0)

    async def main():
        swept = asyncio.Semaphore(0)

        async def tidy():
            swept.release()
            raise store.CheckpointError("disk full")  # does not end it

        sweep = expiry.ExpirySweep(tidy)
        sweep.begin()
        for _ in range(3):
            await asyncio.wait_for(swept.acquire(), LONG)
        sweep.close()

    asyncio.run(main())


def test_delete_by_id_and_by_path(trainer, rest):
    path = trainer.save_state("x").result(timeout=LONG).path
    sampler = trainer.save_weights_for_sampler("x").result(timeout=LONG).path
    rest.delete_checkpoint(trainer.model_id, "weights/x").result(timeout=LONG)
    left = rest.list_checkpoints(trainer.model_id).result(timeout=LONG).checkpoints
    assert [checkpoint.tinker_path for checkpoint in left] == [sampler]
    rest.delete_checkpoint_from_tinker_path(sampler).result(timeout=LONG)
    for gone in (path, sampler):
        with pytest.raises(tinker.NotFoundError, match="does not exist on this server"):
            rest.delete_checkpoint_from_tinker_path(gone).result(timeout=LONG)


def test_a_sampler_outlives_its_checkpoint(service, trainer, rest):
    train(trainer, 3)
    path = trainer.save_weights_for_sampler("x").result(timeout=LONG).path
    sampler = service.create_sampling_client(model_path=path).result(timeout=LONG)
    rest.delete_checkpoint_from_tinker_path(path).result(timeout=LONG)
    drawn = sampler.sample(types.ModelInput.from_ints([1]), 1, types.SamplingParams(max_tokens=1)).result(timeout=LONG)
    assert list(drawn.sequences[0].tokens) == [3]


# --------------------------------------------------------------------------------------- save, load


def test_a_sampler_checkpoint_is_never_replaced(server, trainer, rest):
    train(trainer)
    path = trainer.save_weights_for_sampler("x").result(timeout=LONG).path
    train(trainer)
    with pytest.raises(tinker.RequestFailedError, match="exists: choose another name, or delete it first"):
        trainer.save_weights_for_sampler("x").result(timeout=LONG)
    assert server.checkpoints.read(path, base_model=None, optimizer=False)[0].weights["w"][0] == 1.0
    assert train(trainer) == 3.0, "the refused save did not use up its seq_id"


def test_the_same_save_once_more_is_the_same_request(server):
    model_id = server.model(server.session())
    body = {"model_id": model_id, "seq_id": 1, "path": "x"}
    first, second = (server.post("save_weights_for_sampler", body).json()["request_id"] for _ in range(2))
    assert first == second
    assert server.retrieve(first).json()["path"] == f"tinker://{model_id}/sampler_weights/x"


def test_overwriting_replaces_metadata(trainer, rest):
    trainer.save_state("x", user_metadata={"a": "b"}, ttl_seconds=3600).result(timeout=LONG)
    with pytest.raises(tinker.RequestFailedError, match="exists: choose another name, or save with overwrite=True"):
        trainer.save_state("x").result(timeout=LONG)
    trainer.save_state("x", overwrite=True).result(timeout=LONG)
    (shown,) = rest.list_checkpoints(trainer.model_id).result(timeout=LONG).checkpoints
    assert (shown.user_metadata, shown.expires_at) == (None, None)


def test_a_full_disk_is_told_and_the_adapter_goes_on(trainer, monkeypatch):
    def full_disk(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(store, "save_file", full_disk)
        with pytest.raises(tinker.RequestFailedError, match=r"could not be written under .*: No space left on device"):
            trainer.save_state("x").result(timeout=LONG)
    assert train(trainer) == 1.0
    assert trainer.save_state("x").result(timeout=LONG).path


def test_another_session_goes_on_with_and_without_the_optimizer(server, trainer):
    train(trainer, 2)
    path = trainer.save_state("x").result(timeout=LONG).path
    service = server.client()
    resumed = service.create_training_client_from_state_with_optimizer(path).result(timeout=LONG)
    fresh = service.create_training_client_from_state(path, weights_access_token="any").result(timeout=LONG)
    assert (weight(resumed), weight(fresh)) == (2.0, 2.0)
    moments = [server.engine.adapters[client.model_id].moment for client in (resumed, fresh)]
    assert moments == [2.0, 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old_way = service.create_lora_training_client("fake/model", rank=8).result(timeout=LONG)
        old_way.load_state_with_optimizer(path).result(timeout=LONG)
    assert (weight(old_way), server.engine.adapters[old_way.model_id].moment) == (2.0, 2.0)


def test_a_restart_keeps_everything(engine, tmp_path):
    with serve(engine, tmp_path / "root", ServerSettings()) as first:
        trainer = first.client().create_lora_training_client("fake/model", rank=8).result(timeout=LONG)
        train(trainer)
        path = trainer.save_state("x", user_metadata={"a": "b"}).result(timeout=LONG).path
        rest_of(first).publish_checkpoint_from_tinker_path(path).result(timeout=LONG)
    for file in (tmp_path / "root").glob("txlab.db*"):
        file.unlink()
    with serve(engine, tmp_path / "root", ServerSettings()) as second:
        service = second.client()
        (shown,) = rest_of(second).list_user_checkpoints().result(timeout=LONG).checkpoints
        assert (shown.tinker_path, shown.public, shown.user_metadata) == (path, True, {"a": "b"})
        resumed = service.create_training_client_from_state_with_optimizer(path).result(timeout=LONG)
        assert weight(resumed) == 1.0


def test_another_kernel_on_the_same_root_is_seen(server, rest, trainer, tmp_path):
    path = trainer.save_state("mine").result(timeout=LONG).path
    other = Checkpoints(tmp_path / "store")
    state, _ = other.read(path, base_model=None, optimizer=True)
    other.write(store.Address("other:train:0", "weights", "theirs"), state, base_model="fake/model")
    shown = rest.list_user_checkpoints().result(timeout=LONG).checkpoints
    assert [checkpoint.tinker_path for checkpoint in shown] == ["tinker://other:train:0/weights/theirs", path]


def test_weights_info_of_every_kind(server, trainer, rest):
    path = trainer.save_state("x").result(timeout=LONG).path
    sampler = trainer.save_weights_for_sampler("x").result(timeout=LONG).path
    state, _ = server.checkpoints.read(path, base_model=None, optimizer=False)
    external = store.Address(trainer.model_id, "external_weights", "x")
    server.checkpoints.write_external(external, {"f": b"1"}, state, base_model="fake/model")
    for described in (path, sampler, external.path):
        info = rest.get_weights_info_by_tinker_path(described).result(timeout=LONG)
        assert (info.base_model, info.lora_rank, info.is_lora) == ("fake/model", 8, True)
        assert (info.train_attn, info.train_mlp, info.train_unembed) == (True, True, True)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("tinker://nope/weights/nope", tinker.NotFoundError, "nope' does not exist on this server"),
        ("tinker://nope/other/nope", tinker.BadRequestError, "is no checkpoint path: expected tinker://<model id>/<"),
        ("nope", tinker.BadRequestError, "is no checkpoint path"),
        ("tinker://../weights/x", tinker.BadRequestError, "is no model id"),
        ("tinker://a/weights/.", tinker.BadRequestError, "is no checkpoint name"),
        (f"tinker://{'a' * 300}/weights/x", tinker.BadRequestError, "is no model id"),
    ],
)
def test_bad_paths_are_refused_by_name(rest, path, error, message):
    with pytest.raises(error, match=message):
        rest.get_weights_info_by_tinker_path(path).result(timeout=LONG)


@pytest.mark.parametrize(
    ("method", "suffix"),
    [
        ("DELETE", ""),
        ("POST", "/publish"),
        ("DELETE", "/publish"),
        ("GET", "/archive"),
        ("GET", "/external_weights_urls"),
    ],
)
@pytest.mark.parametrize(
    ("checkpoint_id", "status"),
    [("external_weights/nope", 404), ("other/x", 422), ("weights/a%20b", 400), ("external_weights/..", 404)],
)
def test_routes_of_a_checkpoint_refuse_what_is_none(server, method, suffix, checkpoint_id, status):
    url = f"{server.url}/api/v1/training_runs/a:train:0/checkpoints/{checkpoint_id}{suffix}"
    response = httpx.request(method, url, headers={"X-API-Key": server.key}, timeout=LONG)
    assert response.status_code in {status, 405 if ".." in checkpoint_id else status}
    assert response.json()["detail"]


BARE = [
    ("DELETE", ""),
    ("POST", "/publish"),
    ("DELETE", "/publish"),
    ("PUT", "/ttl"),
    ("GET", "/external_weights_urls"),
    ("GET", "/archive"),
    ("GET", "/files/adapter_config.json"),
    ("GET", ""),
]


@pytest.mark.parametrize(("method", "suffix"), BARE)
def test_a_name_alone_is_answered_with_the_id_that_it_has(server, trainer, method, suffix):
    trainer.save_state("a").result(timeout=LONG)
    trainer.save_weights_for_sampler("both").result(timeout=LONG)
    trainer.save_state("both").result(timeout=LONG)
    for name, ids in (
        ("a", "'weights/a'"),
        ("both", "'weights/both' or 'sampler_weights/both'"),
        ("none", "like 'weights/none'"),
        ("publish", "like 'weights/publish'"),
    ):
        url = f"{server.url}/api/v1/training_runs/{trainer.model_id}/checkpoints/{name}{suffix}"
        response = httpx.request(method, url, headers={"X-API-Key": server.key}, timeout=LONG)
        assert response.status_code == 404, response.text
        assert f"{name!r} is no checkpoint id: " in response.json()["detail"]
        assert ids in response.json()["detail"]


@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
def test_checkpoints_may_be_called_as_their_routes_are(server, trainer, kind):
    save = trainer.save_state if kind == "weights" else trainer.save_weights_for_sampler
    for name in ("publish", "ttl", "weights"):
        save(name).result(timeout=LONG)
        url = f"{server.url}/api/v1/training_runs/{trainer.model_id}/checkpoints/{kind}/{name}"
        assert httpx.post(f"{url}/publish", headers={"X-API-Key": server.key}).status_code == 204
        assert httpx.delete(url, headers={"X-API-Key": server.key}).status_code == 204


def test_the_sdk_says_which_id_a_checkpoint_has(server, trainer, rest):
    trainer.save_state("a").result(timeout=LONG)
    with pytest.raises(tinker.NotFoundError, match="'weights/a'"):
        rest.delete_checkpoint(trainer.model_id, "a").result(timeout=LONG)
    assert [found.checkpoint_id for found in rest.list_checkpoints(trainer.model_id).result(timeout=LONG).checkpoints]


@pytest.mark.parametrize("query", ["limit=-1", "limit=x", "offset=-1", "offset=99999999999999999999"])
def test_bad_pages_are_refused(server, query):
    assert server.get(f"checkpoints?{query}").status_code == 422


def test_a_damaged_checkpoint_is_told_and_the_rest_is_listed(trainer, rest, tmp_path):
    path = trainer.save_state("bad").result(timeout=LONG).path
    trainer.save_state("good").result(timeout=LONG)
    (index,) = tmp_path.rglob(f"bad/{store.INDEX}")
    index.write_text("{")
    shown = rest.list_checkpoints(trainer.model_id).result(timeout=LONG).checkpoints
    assert [checkpoint.checkpoint_id for checkpoint in shown] == ["weights/good"]
    with pytest.raises(tinker.BadRequestError, match="cannot be read"):
        rest.get_weights_info_by_tinker_path(path).result(timeout=LONG)


def test_exports_cannot_be_loaded_and_others_have_no_links(server, service, trainer):
    path = trainer.save_state("x").result(timeout=LONG).path
    state, _ = server.checkpoints.read(path, base_model=None, optimizer=False)
    external = store.Address(trainer.model_id, "external_weights", "x")
    server.checkpoints.write_external(external, {"f": b"1"}, state, base_model="fake/model")
    with pytest.raises(tinker.RequestFailedError, match="an export for other programs: load one made by save_state"):
        service.create_training_client_from_state(external.path).result(timeout=LONG)
    answer = server.get(f"training_runs/{trainer.model_id}/checkpoints/weights/x/external_weights_urls")
    assert answer.status_code == 400
    assert "is no export: make one by save_weights_external" in answer.json()["detail"]


# --------------------------------------------------------------------------------------------- copy


def test_a_copy_is_a_run_of_its_own_and_shares_nothing(service, trainer, rest, tmp_path):
    train(trainer)
    path = trainer.save_state("x", user_metadata={"a": "b"}).result(timeout=LONG).path
    copied = rest.copy_weights(path, "archive", ttl_seconds=3600, weights_access_token="any").result(timeout=LONG)
    assert copied != path
    assert copied.endswith(":train:0/weights/x")
    rest.delete_checkpoint_from_tinker_path(path).result(timeout=LONG)
    resumed = service.create_training_client_from_state_with_optimizer(copied).result(timeout=LONG)
    assert weight(resumed) == 1.0
    run = rest.get_training_run_by_tinker_path(copied).result(timeout=LONG)
    assert (run.base_model, run.lora_rank) == ("fake/model", 8)
    (shown,) = rest.list_checkpoints(run.training_run_id).result(timeout=LONG).checkpoints
    assert (shown.tinker_path, shown.user_metadata) == (copied, {"a": "b"})
    assert shown.expires_at is not None
    assert rest.list_training_runs(project_id="archive").result(timeout=LONG).cursor.total_count == 1


def test_a_retried_copy_is_the_same_copy(server, trainer):
    path = trainer.save_weights_for_sampler("x").result(timeout=LONG).path
    body = {"source_path": path, "destination_project_id": "p"}
    keys = ("one", "one", "two", None)
    answers = [
        server.post("copy_weights", body, headers={"X-Idempotency-Key": key} if key else {}).json() for key in keys
    ]
    paths = [answer["tinker_path"] for answer in answers]
    assert paths[0] == paths[1]
    assert len(set(paths)) == 3
    assert all(path.endswith("/sampler_weights/x") for path in paths)
    assert server.get("training_runs").json()["cursor"]["total_count"] == 4


def test_a_copy_into_a_session(server, trainer):
    path = trainer.save_state("x").result(timeout=LONG).path
    other = trainer.save_state("y").result(timeout=LONG).path
    session = server.session()
    body = {"source_path": path, "session_id": session, "model_seq_id": 7}
    for _ in range(2):
        assert server.post("copy_weights", body).json() == {"tinker_path": f"tinker://{session}:train:7/weights/x"}
    server.post("copy_weights", body | {"source_path": other})
    shown = server.get(f"training_runs/{session}:train:7/checkpoints").json()["checkpoints"]
    assert [checkpoint["checkpoint_id"] for checkpoint in shown] == ["weights/y", "weights/x"]
    assert server.get(f"sessions/{session}").json()["training_run_ids"] == [f"{session}:train:7"]


def test_copies_that_cannot_be_are_refused(server, trainer):
    path = trainer.save_state("x").result(timeout=LONG).path
    session = trainer.model_id.partition(":")[0]
    for body, status, message in (
        ({"source_path": path}, 422, "expected destination_project_id, or session_id and model_seq_id"),
        ({"source_path": path, "session_id": "nope", "model_seq_id": 0}, 404, "nope' does not exist"),
        ({"source_path": path, "session_id": session, "model_seq_id": 0}, 400, "is a model that trains"),
        ({"source_path": "tinker://a/weights/b", "destination_project_id": "p"}, 404, "does not exist"),
        ({"source_path": "b", "destination_project_id": "p"}, 400, "is no checkpoint path"),
        ({"source_path": path, "destination_project_id": "p", "ttl_seconds": 9}, 400, "ttl_seconds is 9"),
    ):
        response = server.post("copy_weights", body)
        assert response.status_code == status
        assert message in response.json()["detail"]


def test_a_folder_copied_in_is_a_checkpoint(server, service, trainer, tmp_path):
    train(trainer)
    trainer.save_state("x").result(timeout=LONG)
    root = tmp_path / "store" / "checkpoints"
    (run,) = (folder for folder in root.iterdir() if folder.is_dir())
    shutil.copytree(run, root / "friend%3Atrain%3A3")
    resumed = service.create_training_client_from_state("tinker://friend:train:3/weights/x").result(timeout=LONG)
    assert weight(resumed) == 1.0
    assert "tinker://friend:train:3/weights/x" in [
        checkpoint["tinker_path"] for checkpoint in server.get("checkpoints").json()["checkpoints"]
    ]
