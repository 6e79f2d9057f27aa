"""Checkpoints on a real disk, with the process killed where it hurts most."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from txlab.lora.state import AdapterState, LoraConfig
from txlab.store import checkpoints as store
from txlab.store.checkpoints import Address, CheckpointError, CheckpointNotFoundError, Checkpoints

BASE = "some/base"
LORA = LoraConfig(rank=4, seed=7, train_unembed=False)


def state(value: float = 1.0, *, moments: bool = True, step: int = 3) -> AdapterState:
    def arrays(scale):
        return {
            "q_proj.a": np.full((2, 3, 4), value * scale, np.float32),
            "q_proj.b": np.full((2, 4, 3), scale, np.float32),
        }

    return AdapterState(LORA, arrays(1), step, arrays(10) if moments else None, arrays(100) if moments else None)


def address(name: str = "one", kind: store.Kind = "weights") -> Address:
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
    return [path for path in root.rglob("*") if path.is_file()]


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


def test_model_ids_cannot_leave_the_root(tmp_path):
    Checkpoints(tmp_path / "root").write(Address("..", "weights", "x"), state(), base_model=BASE)
    assert not list(tmp_path.glob("weights"))


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


def test_expired_checkpoints_are_gone_and_their_name_is_free(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(), base_model=BASE, ttl_seconds=3600)
    (index,) = tmp_path.rglob(store.INDEX)
    record = json.loads(index.read_text())
    record["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    index.write_text(json.dumps(record))

    with pytest.raises(CheckpointNotFoundError, match="expired"):
        checkpoints.info(address().path)
    checkpoints.write(address(), state(2.0), base_model=BASE)
    assert checkpoints.info(address().path).expires is None


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError("no space left")

    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(1.0), base_model=BASE)
    before = files(tmp_path)
    monkeypatch.setattr(store, "_replace_json", full_disk)
    with pytest.raises(OSError, match="no space"):
        checkpoints.write(address(), state(2.0), base_model=BASE, overwrite=True)
    assert files(tmp_path) == before


def _write_and_die(root: Path, where: str) -> None:
    """Overwrite a checkpoint, and be killed the moment ``where`` is called."""
    setattr(store, where, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
    Checkpoints(root).write(address(), state(2.0), base_model=BASE, overwrite=True)
    Checkpoints(root).write(address("two"), state(2.0), base_model=BASE)


@pytest.mark.parametrize(("where", "survivor"), [("_replace_json", 1.0), ("_sweep", 2.0)])
def test_kill_in_the_middle_leaves_the_old_or_the_new(tmp_path, where, survivor):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(1.0), base_model=BASE)
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(tmp_path, where))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    assert checkpoints.read(address().path, base_model=BASE, optimizer=True)[0].weights["q_proj.a"][0, 0, 0] == survivor
    with pytest.raises(CheckpointNotFoundError):
        checkpoints.info(address("two").path)
    checkpoints.write(address(), state(3.0), base_model=BASE, overwrite=True)
    assert len(files(tmp_path)) == 2, "what the killed process left was not swept"


def test_readers_and_writers_of_one_name_never_see_a_half(tmp_path, monkeypatch):
    read_arrays = store._read_arrays

    def read_slowly(*args):  # leaves a writer time to get in between index and arrays
        time.sleep(0.01)
        return read_arrays(*args)

    monkeypatch.setattr(store, "_read_arrays", read_slowly)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(address(), state(0.0), base_model=BASE)

    def write(value):
        checkpoints.write(address(), state(float(value)), base_model=BASE, overwrite=True)

    def read(_):
        array = checkpoints.read(address().path, base_model=BASE, optimizer=True)[0].weights["q_proj.a"]
        return len(np.unique(array))

    with ThreadPoolExecutor(4) as pool:
        writes, reads = pool.map(write, range(20)), pool.map(read, range(20))
        list(writes)
        assert set(reads) == {1}
    assert len(files(tmp_path)) == 2
