"""Points of training runs: kept as they come, found by id and by name."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.store.test_records import T0, opened, run, session
from txlab.store.database import open_database
from txlab.store.records import Records
from txlab.store.tables import PointRow


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with opened(tmp_path) as records:
        yield records


def point(model_id: str, step: int, **metrics: float) -> PointRow:
    return PointRow(model_id=model_id, step=step, tokens=10 * step, time=1e9 + step / 8, metrics=metrics)


def test_points_of_a_run_come_back_in_order(records: Records):
    for step in (3, 1, 2):
        records.add(point("m", step, loss=step / 2))
        records.add(point("n", step, loss=9.0))
    assert records.points("m") == [
        (3, 30, 1e9 + 3 / 8, {"loss": 1.5}),
        (1, 10, 1e9 + 1 / 8, {"loss": 0.5}),
        (2, 20, 1e9 + 2 / 8, {"loss": 1.0}),
    ]
    assert records.points("nobody") == []


def test_numbers_come_back_as_they_were(records: Records):
    records.add(point("m", 1, third=1 / 3, tiny=5e-324, infinite=float("-inf"), none=float("nan")))
    ((*_, metrics),) = records.points("m")
    assert str(metrics) == str({"third": 1 / 3, "tiny": 5e-324, "infinite": float("-inf"), "none": float("nan")})


def test_points_outlive_the_server(tmp_path: Path):
    with opened(tmp_path) as first:
        for step in range(5000):
            first.add(point("m", step, loss=1.0))
    with opened(tmp_path) as second:
        second.add(point("m", 5000, loss=1.0))
        assert [step for step, *_ in second.points("m")] == list(range(5001))


def test_the_last_step_that_has_a_metric_is_found_whatever_its_numbers_are(records: Records):
    records.add(point("m", 1, rate=1.0))
    records.add(point("m", 3, rate=float("nan"), loss=float("inf")))
    records.add(point("m", 7, reward=float("nan")))
    records.add(point("n", 5, **{'a "rate": b': 1.0}))
    assert records.last_steps(["m", "n", "nobody"], "rate") == {"m": 3}


def test_a_run_is_found_by_its_id_or_as_the_newest_of_its_name(records: Records):
    records.add(session(records, "s"))
    for number, name in enumerate(("one", "two", "one", "s:train:0")):
        row = run("s", number, T0 + timedelta(seconds=number))
        row.name = name
        records.add(row)
    found = {name: records.find_run(name) for name in ("one", "two", "s:train:0", "s:train:2", "three")}
    assert {name: row and row.model_id for name, row in found.items()} == {
        "one": "s:train:2",
        "two": "s:train:1",
        "s:train:0": "s:train:0",
        "s:train:2": "s:train:2",
        "three": None,
    }


def test_a_database_that_has_no_points_yet_gets_them(tmp_path: Path):
    with opened(tmp_path) as records:
        records.add(session(records, "s"))
    with open_database(tmp_path).begin() as db:
        db.execute(text("DROP TABLE points"))
    with opened(tmp_path) as records:
        records.add(point("m", 1, loss=1.0))
        assert len(records.points("m")) == 1
        assert records.session("s") is not None


def test_a_runs_points_are_found_without_a_look_at_all_others(tmp_path: Path):
    with open_database(tmp_path).connect() as db:
        plan = db.execute(text("EXPLAIN QUERY PLAN SELECT step FROM points WHERE model_id = 'm' ORDER BY number"))
        assert [row.detail for row in plan] == ["SEARCH points USING INDEX ix_points_model_id (model_id=?)"]
