"""The benchmark of the board runs, and counts what it says. Nothing here is a speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import board
from benchmarks.board import Part, Spell, Wire, live_board
from tests.models.tiny import make_tiny
from tests.notebook.synthetic import train
from txlab.engine.bus import EventBus


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = make_tiny(tmp_path / "tiny", tie_word_embeddings=False)
    board.main(["--model", str(model), "--adapters", "1", "3", "--rounds", "2", "--repeat", "2"])
    out = capsys.readouterr().out.splitlines()
    told = [json.loads(line) for line in out if line.startswith("{")]
    assert [line["adapters"] for line in told] == [1, 3, 1, 3, 1, 3]
    for record in told[4:]:
        assert record["ratio"] > 0
        assert len(record["matmul_gflops"]) == 2
    header, *rows = out[-3:]
    assert header.split()[0] == "adapters"
    assert [row.split()[0] for row in rows] == ["1", "3"]


def test_figures_of_a_number_of_adapters():
    slow, fast = Spell((4.0, 4.0, 4.0), 6.0), Spell((2.0, 3.0, 3.0), 6.0)
    parts = [
        Part((fast, fast), (slow, slow), 3.0, 0.01, 1000.0, 10.0),
        Part((slow, fast), (fast, slow), 2.0, 0.02, 3000.0, 20.0),
    ]
    record = board.record(64, parts)
    assert (record["ratio"], record["fastest_ratio"], record["processor_ratio"]) == (0.75, 1.0, 1.0)
    assert (record["draws_per_s"], record["drawing"]) == (2.5, 0.015)
    assert record["bytes_per_s"] == 2000.0
    assert record["matmul_gflops"] == [10.0, 20.0]


def test_a_board_sends_what_a_page_would_get():
    bus, wire = EventBus(), Wire()
    train(bus, "pirate", steps=5)
    with live_board(bus, wire) as shown:
        assert wire.bytes > 10_000, "the widget's state"
        before = wire.messages
        train(bus, "later", steps=5)
    assert wire.messages > before
    assert shown.draws >= 1
    assert 0 < shown.drawing < 60
