"""Checkpoints on a real disk, with the process killed where it hurts most."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import filelock
import numpy as np
import pytest
from safetensors.numpy import load

from txlab.lora.state import AdapterState, LoraConfig
from txlab.store import checkpoints as store
from txlab.store.checkpoint_info import Address, CheckpointError, CheckpointNotFoundError, Kind
from txlab.store.checkpoints import Checkpoints

BASE = "some/base"
LORA = LoraConfig(rank=4, seed=7, train_unembed=False)


def state(value: float = 1.0, *, moments: bool = True, step: int = 3) -> AdapterState:
    def arrays(scale):
        return {
            "q_proj.a": np.full((2, 3, 4), value * scale, np.float32),
            "q_proj.b": np.full((2, 4, 3), scale, np.float32),
        }

    return AdapterState(LORA, arrays(1), step, arrays(10) if moments else None, arrays(100) if moments else None)


def address(name: str = "one", kind: Kind = "weights") -> Address:
    return Address("abc:train:0", kind, name)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])
        assert left[name].dtype == np.float32


def test_what_was_written_is_read_by_another_process_life(tmp_path):
    written = Checkpoints(tmp_path).write(
        address(), state(), base_model=BASE, user_metadata={"a": "b"}, ttl_seconds=7200
    )
    loaded, info = Checkpoints(tmp_path).read("tinker://abc:train:0/weights/one", base_model=BASE, optimizer=True)

    assert info == written
    assert (info.base_model, info.lora, info.step, info.has_optimizer) == (BASE, LORA, 3, True)
    assert info.user_metadata == {"a": "b"}
    assert info.expires - info.created == timedelta(hours=2)
    assert info.created.tzinfo is not None
    assert info.size_bytes > 6 * 24 * 4
    assert (loaded.lora, loaded.step) == (LORA, 3)
    assert_equal(loaded.weights, state().weights)
    assert_equal(loaded.first_moment, state().first_moment)
    assert_equal(loaded.second_moment, state().second_moment)


def test_without_optimizer_the_count_of_steps_starts_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(), base_model=BASE)
    loaded, info = checkpoints.read(address().path, base_model=BASE, optimizer=False)
    assert (loaded.step, loaded.first_moment, loaded.second_moment) == (0, None, None)
    assert info.step == 3
    assert_equal(loaded.weights, state().weights)


def test_an_adapter_that_never_stepped_has_no_moments(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(moments=False, step=0), base_model=BASE)
    loaded, info = checkpoints.read(address().path, base_model=BASE, optimizer=True)
    assert (loaded.first_moment, info.has_optimizer) == (None, False)


def test_sampler_checkpoints_hold_no_moments(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    target = address(kind="sampler_weights")
    full = checkpoints.write(address(), state(), base_model=BASE)
    small = checkpoints.write(target, state(), base_model=BASE)
    assert small.size_bytes < full.size_bytes / 2
    assert checkpoints.read(target.path, base_model=BASE, optimizer=False)[0].first_moment is None
    with pytest.raises(CheckpointError, match="no optimizer state"):
        checkpoints.read(target.path, base_model=BASE, optimizer=True)


def test_a_name_is_taken_once_unless_overwritten(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(1.0), base_model=BASE)
    with pytest.raises(CheckpointError, match=r"weights/one' exists.*overwrite"):
        checkpoints.write(address(), state(2.0), base_model=BASE)
    assert checkpoints.read(address().path, base_model=BASE, optimizer=False)[0].weights["q_proj.a"][0, 0, 0] == 1.0
    checkpoints.write(address(), state(2.0), base_model=BASE, overwrite=True)
    assert checkpoints.read(address().path, base_model=BASE, optimizer=False)[0].weights["q_proj.a"][0, 0, 0] == 2.0
    assert len(files(tmp_path)) == 2, "the old arrays are still there"


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.name != store.LOCK]


def test_paths_are_safe_on_every_file_system(tmp_path):
    Checkpoints(tmp_path).write(address(), state(), base_model=BASE)
    for path in files(tmp_path):
        assert not set(path.relative_to(tmp_path).as_posix()) & set(':*?"<>|\\')


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", ".hidden", "a.", "a b", "ä", "a:b", "x" * 129, "a\n"])
def test_unsafe_names_are_refused(name):
    with pytest.raises(CheckpointError, match="no checkpoint name"):
        Address("m", "weights", name)


@pytest.mark.parametrize("name", ["0", "000010", "final-1", "step=3", "_x", "a.b", "x" * 128])
def test_usual_names_are_fine(name):
    assert Address.parse(f"tinker://m/weights/{name}") == Address("m", "weights", name)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "tinker://garbage",
        "tinker://a/b/c/d",
        "tinker://a/other/x",
        "tinker:///weights/x",
        "a/weights/x",
    ],
)
def test_what_is_no_path_is_refused(path):
    with pytest.raises(CheckpointError, match="no checkpoint path"):
        Address.parse(path)


@pytest.mark.parametrize("model_id", ["", ".", "..", "x" * 201, ":" * 67])
def test_model_ids_that_are_no_folder_are_refused(model_id):
    with pytest.raises(CheckpointError, match="no model id"):
        Address(model_id, "weights", "x")


def test_absent_checkpoints_are_not_found(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="nope' does not exist"):
        Checkpoints(tmp_path).read("tinker://m/weights/nope", base_model=BASE, optimizer=False)


def test_checkpoint_of_another_base_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(), base_model=BASE)
    with pytest.raises(CheckpointError, match=r"'some/base'.*serves 'other/base'"):
        checkpoints.read(address().path, base_model="other/base", optimizer=False)


@pytest.mark.parametrize("seconds", [0, -1, 3599, 10 * 365 * 24 * 3600 + 1])
def test_ttl_out_of_range_is_refused(tmp_path, seconds):
    with pytest.raises(CheckpointError, match="ttl_seconds"):
        Checkpoints(tmp_path).write(address(), state(), base_model=BASE, ttl_seconds=seconds)
    assert files(tmp_path) == []


def expire(root: Path, name: str = "one") -> None:
    """Let a checkpoint's time be over."""
    (index,) = root.rglob(f"{name}/{store.INDEX}")
    record = json.loads(index.read_text()) | {"expires": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()}
    index.write_text(json.dumps(record))


def test_expired_checkpoints_are_gone_and_their_name_is_free(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(), base_model=BASE, ttl_seconds=3600)
    expire(tmp_path)
    for use in (checkpoints.info, checkpoints.files, checkpoints.delete, lambda path: checkpoints.publish(path, True)):
        with pytest.raises(CheckpointNotFoundError, match="expired"):
            use(address().path)
    checkpoints.write(address(), state(2.0), base_model=BASE)
    assert checkpoints.info(address().path).expires is None


def test_tidy_removes_what_expired_and_what_killed_processes_left_and_nothing_else(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for name in ("old", "young", "half", "broken"):
        checkpoints.write(address(name), state(), base_model=BASE, ttl_seconds=3600)
    expire(tmp_path, "old")
    (half,) = tmp_path.rglob(f"half/{store.INDEX}")
    half.unlink()
    (broken,) = tmp_path.rglob(f"broken/{store.INDEX}")
    broken.write_text("{")
    checkpoints.tidy()
    assert {path.parent.name for path in files(tmp_path)} == {"young", "broken"}
    assert not list(tmp_path.rglob("old"))


def test_facts_change_in_place(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    written = checkpoints.write(address(), state(), base_model=BASE, ttl_seconds=7200, user_metadata={"a": "b"})
    checkpoints.publish(address().path, True)
    assert checkpoints.info(address().path) == replace(written, public=True)
    checkpoints.set_ttl(address().path, None)
    assert checkpoints.info(address().path) == replace(written, public=True, expires=None)
    before = datetime.now(UTC)
    checkpoints.set_ttl(address().path, 86400)
    assert timedelta() <= checkpoints.info(address().path).expires - before - timedelta(days=1) < timedelta(minutes=5)
    checkpoints.publish(address().path, False)
    assert not checkpoints.info(address().path).public
    with pytest.raises(CheckpointError, match=r"ttl_seconds is 5: expected 3600 \(1 hour\)"):
        checkpoints.set_ttl(address().path, 5)
    assert checkpoints.read(address().path, base_model=BASE, optimizer=True)[0].step == 3


def test_overwriting_replaces_every_fact(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(), base_model=BASE, ttl_seconds=7200, user_metadata={"a": "b"})
    checkpoints.publish(address().path, True)
    checkpoints.write(address(), state(), base_model=BASE, overwrite=True)
    info = checkpoints.info(address().path)
    assert (info.user_metadata, info.expires, info.public) == ({}, None, False)


def test_deleted_checkpoints_leave_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address("one"), state(), base_model=BASE)
    checkpoints.write(address("two"), state(), base_model=BASE)
    checkpoints.delete(address("one").path)
    assert {path.parent.name for path in files(tmp_path)} == {"two"}
    with pytest.raises(CheckpointNotFoundError, match="does not exist"):
        checkpoints.delete(address("one").path)
    checkpoints.delete(address("two").path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [store.LOCK]


def test_copies_share_nothing_with_their_source(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    original = checkpoints.write(address(), state(), base_model=BASE, ttl_seconds=7200, user_metadata={"a": "b"})
    checkpoints.publish(address().path, True)
    target = Address("other:train:0", "weights", "one")
    copied = checkpoints.copy(address().path, target, ttl_seconds=3600)
    assert copied == replace(
        original, address=target, created=copied.created, expires=copied.expires, copied_from=address().path
    )
    assert copied.expires - copied.created == timedelta(hours=1)
    assert checkpoints.copy(address().path, target) == copied, "a retry made another copy"
    checkpoints.write(address("two"), state(), base_model=BASE)
    with pytest.raises(CheckpointError, match="exists: choose another name"):
        checkpoints.copy(address("two").path, target)
    checkpoints.delete(address().path)
    loaded, _ = checkpoints.read(target.path, base_model=BASE, optimizer=True)
    assert_equal(loaded.second_moment, state().second_moment)


def test_copies_made_at_once_are_one(tmp_path, monkeypatch):
    Checkpoints(tmp_path).write(address(), state(), base_model=BASE)
    target, together = Address("other", "weights", "one"), threading.Barrier(2)
    read_all = Checkpoints._look_up

    def look_up_together(self, wanted):
        if wanted == address():  # neither has made its copy yet
            together.wait(timeout=20)
        return read_all(self, wanted)

    monkeypatch.setattr(Checkpoints, "_look_up", look_up_together)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: Checkpoints(tmp_path).copy(address().path, target), range(2))
    assert first == second


def test_external_weights_keep_their_files_and_cannot_be_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    target = address(kind="external_weights")
    contents = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"123"}
    info = checkpoints.write_external(target, contents, state(), base_model=BASE, ttl_seconds=3600)
    assert (info.lora, info.step, info.base_model, info.size_bytes) == (LORA, 3, BASE, 5)
    assert checkpoints.peft_files(target.path) == contents
    assert {name: file.read_bytes() for name, file in checkpoints.files(target.path).items()} == contents
    with pytest.raises(CheckpointError, match="an export for other programs: load one made by save_state"):
        checkpoints.read(target.path, base_model=BASE, optimizer=False)
    with pytest.raises(CheckpointError, match="exists: choose another name, or delete it first"):
        checkpoints.write_external(target, contents, state(), base_model=BASE)


def test_every_adapter_can_be_had_as_peft_files(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(), base_model=BASE)
    contents = checkpoints.peft_files(address().path)
    assert json.loads(contents["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in load(
        contents["adapter_model.safetensors"]
    )


def test_checkpoints_of_the_first_format_are_read_and_changed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    written = checkpoints.write(address(), state(), base_model=BASE)
    (index,) = tmp_path.rglob(store.INDEX)
    record = json.loads(index.read_text())
    arrays = record.pop("files")[store.ARRAYS]
    del record["public"], record["copied_from"]
    index.write_text(json.dumps(record | {"format": 1, "arrays": arrays}))
    assert checkpoints.info(address().path) == written
    checkpoints.publish(address().path, True)
    assert checkpoints.read(address().path, base_model=BASE, optimizer=True)[1] == replace(written, public=True)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 3}', '{"format": 2}', '{"format": 2, "files": {}}'])
def test_damaged_checkpoints_say_so(tmp_path, text):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(), base_model=BASE)
    (index,) = tmp_path.rglob(store.INDEX)
    index.write_text(text)
    with pytest.raises(CheckpointError, match=r"weights/one' cannot be read: its checkpoint.json"):
        checkpoints.info(address().path)


def test_lost_arrays_are_told(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(), base_model=BASE)
    checkpoints.files(address().path)[store.ARRAYS].unlink()
    with pytest.raises(CheckpointError, match=r"is damaged: .*adapter.safetensors is missing"):
        checkpoints.read(address().path, base_model=BASE, optimizer=False)


@pytest.mark.parametrize("step", ["sync", "save_file", "replace_json"])
def test_a_full_disk_is_told_and_leaves_the_old(tmp_path, monkeypatch, step):
    def full_disk(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(1.0), base_model=BASE)
    before = files(tmp_path)
    monkeypatch.setattr(store, step, full_disk)
    for name in ("one", "two"):
        with pytest.raises(CheckpointError, match=rf"{name}' could not be written under .*: No space left on device"):
            checkpoints.write(address(name), state(2.0), base_model=BASE, overwrite=True)
    assert files(tmp_path) == before
    assert not list(tmp_path.rglob("two"))


def test_a_root_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not be written under"):
        Checkpoints(tmp_path).write(address(), state(), base_model=BASE)


def test_another_process_that_holds_the_lock_is_waited_for_and_then_told(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.05)
    Checkpoints(tmp_path).write(address(), state(), base_model=BASE)
    with (
        filelock.FileLock(tmp_path / "checkpoints" / store.LOCK),
        pytest.raises(CheckpointError, match=r"another process has held .* for 0\.05 s"),
    ):
        Checkpoints(tmp_path).delete(address().path)
    Checkpoints(tmp_path).delete(address().path)


def _write_and_die(root: Path, where: str) -> None:
    """Overwrite a checkpoint, and be killed the moment ``where`` is called."""
    setattr(store, where, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
    Checkpoints(root).write(address(), state(2.0), base_model=BASE, overwrite=True)


@pytest.mark.parametrize(("where", "survivor"), [("save_file", 1.0), ("replace_json", 1.0), ("remove_files", 2.0)])
def test_kill_in_the_middle_leaves_the_old_or_the_new(tmp_path, where, survivor):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(1.0), base_model=BASE)
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(tmp_path, where))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    assert checkpoints.read(address().path, base_model=BASE, optimizer=True)[0].weights["q_proj.a"][0, 0, 0] == survivor
    checkpoints.write(address(), state(3.0), base_model=BASE, overwrite=True)
    assert len(files(tmp_path)) == 2, "what the killed process left was not swept"


def test_readers_and_writers_of_one_name_never_see_a_half(tmp_path, monkeypatch):
    read_arrays = store.read_arrays

    def read_slowly(*args):  # leaves a writer time to get in between index and arrays
        time.sleep(0.01)
        return read_arrays(*args)

    monkeypatch.setattr(store, "read_arrays", read_slowly)
    Checkpoints(tmp_path).write(address(), state(0.0), base_model=BASE)

    def write(value):  # each as another process would, with a lock object of its own
        Checkpoints(tmp_path).write(address(), state(float(value)), base_model=BASE, overwrite=True)

    def read(_):
        array = Checkpoints(tmp_path).read(address().path, base_model=BASE, optimizer=True)[0].weights["q_proj.a"]
        return len(np.unique(array))

    with ThreadPoolExecutor(4) as pool:
        writes, reads = pool.map(write, range(20)), pool.map(read, range(20))
        list(writes)
        assert set(reads) == {1}
    assert len(files(tmp_path)) == 2


def test_who_reads_while_it_is_deleted_gets_all_or_not_found(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(), base_model=BASE)
    read_arrays = store.read_arrays

    def deleted_first(*args):
        checkpoints.delete(address().path)
        return read_arrays(*args)

    monkeypatch.setattr(store, "read_arrays", deleted_first)
    with pytest.raises(CheckpointNotFoundError, match="does not exist"):
        checkpoints.read(address().path, base_model=BASE, optimizer=True)
