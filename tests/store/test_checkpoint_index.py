"""Lists of checkpoints say what the folders say, whoever wrote them."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from txlab.lora.state import AdapterState, LoraConfig
from txlab.store import checkpoints as store
from txlab.store.checkpoint_index import CheckpointIndex
from txlab.store.checkpoint_info import Address, Kind
from txlab.store.checkpoints import Checkpoints
from txlab.store.database import FILE, open_database


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path)


@pytest.fixture
def index(tmp_path: Path, checkpoints: Checkpoints) -> CheckpointIndex:
    return CheckpointIndex(checkpoints, open_database(tmp_path))


def write(checkpoints: Checkpoints, name: str, run: str = "a:train:0", kind: Kind = "weights", **kwargs):
    state = AdapterState(LoraConfig(rank=2), {"q_proj.a": np.zeros((1, 2, 2), np.float32)})
    return checkpoints.write(Address(run, kind, name), state, base_model="some/base", **kwargs)


def names(infos) -> list[str]:
    return [info.address.name for info in infos]


def test_pages_are_newest_first_and_know_the_total(checkpoints, index):
    written = [write(checkpoints, f"n{i}", run=f"run{i % 2}") for i in range(5)]
    assert index.page(2, 0) == ([written[4], written[3]], 5)
    assert index.page(2, 4) == ([written[0]], 5)
    assert index.page(10, 5) == ([], 5)
    assert index.of_run("run1") == [written[3], written[1]]
    assert index.of_run("no-such-run") == []


def test_what_was_overwritten_counts_once_and_as_new(checkpoints, index):
    write(checkpoints, "one")
    write(checkpoints, "two")
    assert names(index.page(10, 0)[0]) == ["two", "one"]
    again = write(checkpoints, "one", overwrite=True, user_metadata={"a": "b"})
    assert index.page(10, 0)[0][0] == again
    assert index.page(10, 0)[1] == 2


def test_changes_show_at_once(checkpoints, index):
    path = write(checkpoints, "one").path
    for public in (True, False, True):
        checkpoints.publish(path, public)
        assert index.of_run("a:train:0")[0].public is public
    checkpoints.set_ttl(path, 3600)
    assert index.page(1, 0)[0][0].expires is not None
    checkpoints.delete(path)
    assert index.page(1, 0) == ([], 0)
    assert index.of_run("a:train:0") == []


def test_expired_ones_vanish_before_their_files_do(tmp_path, checkpoints, index, monkeypatch):
    write(checkpoints, "old", ttl_seconds=3600)
    write(checkpoints, "young")
    assert index.page(10, 0)[1] == 2

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=2)

    monkeypatch.setattr("txlab.store.checkpoint_index.datetime", Later)
    monkeypatch.setattr("txlab.store.checkpoints.datetime", Later)
    assert (names(index.page(10, 0)[0]), index.page(10, 0)[1]) == (["young"], 1)
    assert names(index.of_run("a:train:0")) == ["young"]
    assert list(tmp_path.rglob("old"))


def test_a_deleted_database_and_a_folder_copied_in_lose_nothing(tmp_path, checkpoints, index):
    info = write(checkpoints, "one", user_metadata={"a": "b"})
    assert index.page(10, 0)[0] == [info]
    other = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "checkpoints" / "a%3Atrain%3A0", other / "checkpoints" / "b%3Atrain%3A7")
    elsewhere = CheckpointIndex(Checkpoints(other), open_database(other))
    (found,) = elsewhere.page(10, 0)[0]
    assert (found.path, found.user_metadata) == ("tinker://b:train:7/weights/one", {"a": "b"})
    for file in tmp_path.glob(f"{FILE}*"):
        file.unlink()
    assert CheckpointIndex(checkpoints, open_database(tmp_path)).page(10, 0)[0] == [info]


def test_what_another_process_does_shows(tmp_path, checkpoints, index):
    write(checkpoints, "mine")
    assert index.page(10, 0)[1] == 1
    theirs = Checkpoints(tmp_path)
    write(theirs, "theirs")
    assert names(index.page(10, 0)[0]) == ["theirs", "mine"]
    theirs.publish("tinker://a:train:0/weights/mine", True)
    assert index.page(10, 0)[0][1].public
    theirs.delete("tinker://a:train:0/weights/mine")
    assert names(index.page(10, 0)[0]) == ["theirs"]


def test_folders_that_are_none_of_ours_and_damaged_ones_are_left_out(tmp_path, checkpoints, index, caplog):
    write(checkpoints, "good")
    write(checkpoints, "bad")
    assert index.page(10, 0)[1] == 2
    (file,) = tmp_path.rglob(f"bad/{store.INDEX}")
    file.write_text("{")
    root = tmp_path / "checkpoints"
    for junk in (".trash/weights/x", "m/other/x", "m/weights/bad name", "m:n/weights/x", "m/weights/empty"):
        (root / junk).mkdir(parents=True)
        if "empty" not in junk:
            (root / junk / store.INDEX).write_text("{}")
    (root / "m" / "weights" / "file").write_text("")
    assert names(index.page(10, 0)[0]) == ["good"]
    assert "weights/bad' cannot be read" in caplog.text
    assert len(list(root.rglob("*/*/*"))) > 5, "other people's files were touched"


def test_many_at_once_agree(tmp_path, checkpoints):
    indexes = [CheckpointIndex(checkpoints, open_database(tmp_path)) for _ in range(3)]

    def work(i):
        write(checkpoints, f"n{i}")
        return indexes[i % 3].page(100, 0)[1]

    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(work, range(18))) == 18
    assert {index.page(100, 0)[1] for index in indexes} == {18}


def test_a_row_is_made_again_only_when_the_folder_changed(checkpoints, index, monkeypatch):
    write(checkpoints, "one")
    index.page(1, 0)
    monkeypatch.setattr(checkpoints, "info", lambda path: pytest.fail("read again"))
    assert index.page(1, 0)[1] == 1


def test_times_come_back_in_utc(checkpoints, index):
    info = write(checkpoints, "one", ttl_seconds=3600)
    (found,) = index.of_run("a:train:0")
    assert found.created.tzinfo is not None
    assert abs(found.created - datetime.now(UTC)) < timedelta(minutes=5)
    assert found == info
    assert json.loads(json.dumps(found.to_record()))["expires"].endswith("+00:00")
