"""The benchmarks run, count what they say, and give both trainers the same work. Nothing here is a speed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import train
from benchmarks.command_line import Peer
from benchmarks.measure import table
from benchmarks.report import Measured, Pair, records
from benchmarks.txlab_trainer import TxlabTrainer, padding_share
from benchmarks.worker import Worker, WorkerError
from benchmarks.workloads import Row, Work, even, groups, ragged
from tests.models.tiny import make_tiny
from txlab.engine.bus import EventBus
from txlab.engine.events import BatchCompleted
from txlab.lora.state import LoraConfig
from txlab.profiling.flops import step_flops

MIXED = Work("mixed", (4, 8), ((5, 12, 9), (7,)))
ROW_KEYS = {"row", "tokens", "txlab", "peft", "ratio", "pair_ratio", "goal", "cost", "cost_goal"}
ROW_KEYS |= {"flops_per_token", "share", "matmul_gflops", "padding", "compiles"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied tiny model."""
    return make_tiny(tmp_path_factory.mktemp("benchmarks") / "tiny", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Iterator[TxlabTrainer]:
    """The engine's side of the benchmark."""
    trainer = TxlabTrainer(str(folder), "float32")
    yield trainer
    trainer.close()


# ---------------------------------------------------------------------------------------- rows


def test_rows_have_names_of_their_own_and_are_compared_within_their_group():
    rows = [row for group in groups() for row in group]
    assert len({row.name for row in rows}) == len(rows)
    for group in groups():
        tokens = {row.name: row.work.tokens for row in group}
        for row in group:
            assert all(tokens[name] == row.work.tokens for name in row.cost_of)
            assert sum(row.cost_of.values()) == pytest.approx(1.0 if row.cost_of else 0.0)


def test_adapters_share_the_same_tokens():
    one, eight = even("1", 8, 128), even("8", 8, 128, adapters=8, rank=4)
    assert (one.ranks, one.tokens) == ((32,), 1024)
    assert (eight.ranks, eight.lengths, eight.tokens) == ((4,) * 8, ((128,),) * 8, 1024)
    assert [len(text) for texts in MIXED.texts(320) for text in texts] == [6, 13, 10, 8]


def test_ragged_lengths_are_log_uniform_and_always_the_same():
    (lengths,) = ragged("r").lengths
    assert ragged("again").lengths == (lengths,)
    assert len(lengths) == 32
    assert all(16 <= n <= 512 for n in lengths)
    (many,) = ragged("many", sequences=4000).lengths
    assert statistics.median(many) == pytest.approx((16 * 512) ** 0.5, rel=0.1)


def test_a_row_brings_those_that_it_is_compared_with():
    assert [[row.name for row in group] for group in train.chosen(["8-adapters", "8x64"])] == [
        ["8x64"],
        ["8x128", "8-adapters"],
    ]


# ------------------------------------------------------------------------------------- figures


def test_figures_of_a_row():
    def measured(row: Row, seconds: list[float], theirs: list[float]) -> Measured:
        rates = ({"xla": 100.0, "numpy": 90.0}, {"xla": 120.0, "numpy": 95.0})
        steps = zip(seconds, theirs, strict=True)
        pairs = [
            Pair({"seconds": s, "loss": 6.0, "padding": None}, {"seconds": t, "loss": 6.0}, rates) for s, t in steps
        ]
        return Measured(row, flops=2 * 10**11, compiles={}, pairs=pairs, peak_gb=1.0)

    half = Row(Work("half", (1,), ((2,),)))
    row = Row(Work("row", (1,), ((2,),)), goal=1.5, cost_of={"half": 2.0}, cost_goal=1.1)
    _, record = records([measured(half, [1, 1, 4], [1, 1, 1]), measured(row, [2, 4, 5], [4, 4, 20])])
    assert record.keys() == ROW_KEYS
    assert record["txlab"]["tokens_per_s"] == 2 / 4
    assert record["txlab"]["best_tokens_per_s"] == 2 / 2
    assert (record["ratio"], record["pair_ratio"]) == (1.0, 2.0)  # 4 s and 4 s; 2, 1 and 4
    assert record["cost"] == 1.0  # of 1, 2 and 5/8
    assert record["share"] == pytest.approx(2e11 / 4 / 110e9)


def test_padding_is_that_of_the_batches_between_two_views():
    bus = EventBus()
    bus.publish(BatchCompleted(1, 100))
    before = bus.view()
    assert padding_share(before, before) is None
    bus.publish(BatchCompleted(30, 40))
    bus.publish(BatchCompleted(50, 60))
    assert padding_share(before, bus.view()) == pytest.approx(0.2)


def test_tables_are_aligned():
    assert table(("row", "a"), [("x", 1.5), ("long", None)]).splitlines() == ["row      a", "x     1.50", "long     -"]


# ----------------------------------------------------------------------------------- trainers


def test_a_whole_run_without_the_peer(folder: Path, capsys: pytest.CaptureFixture[str]):
    train.main(["--rows", "forward", "--repeat", "1", "--no-peer", "--model", str(folder)])
    line, _, header, row = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record.keys() == ROW_KEYS
    assert (record["row"], record["tokens"], record["peft"], record["ratio"]) == ("forward", 1024, None, None)
    assert len(record["txlab"]["seconds"]) == 1
    assert record["compiles"]["programs"] > 0
    assert record["share"] > 0
    assert 0 <= record["padding"] < 1
    assert header.split()[:2] == ["row", "txlab"]
    assert row.split()[0] == "forward"


def test_steps_train(trainer: TxlabTrainer):
    trainer.warm_up(MIXED)
    compiled = trainer.compiles()["programs"]
    losses = [trainer.step(MIXED)["loss"] for _ in range(3)]
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert compiled == trainer.compiles()["programs"]
    adapters = ((4, (5, 12, 9)), (8, (7,)))
    assert trainer.flops(MIXED) == sum(step_flops(trainer._config, LoraConfig(r), lengths) for r, lengths in adapters)


@pytest.mark.usefixtures("torch", "peft")
def test_the_peer_does_the_same_work(folder: Path, trainer: TxlabTrainer, monkeypatch: pytest.MonkeyPatch):
    from benchmarks import peft_trainer

    monkeypatch.setattr(peft_trainer, "BATCH_TOKENS", 24)  # two sequences with padding, then the third
    peft = peft_trainer.PeftTrainer(str(folder), "float32")
    fresh = replace(MIXED, name="fresh")
    for work in (replace(MIXED, name="passed", backward=False), fresh):
        assert peft.step(work)["loss"] == pytest.approx(trainer.step(work)["loss"], rel=1e-5)
    losses = [peft.step(fresh)["loss"] for _ in range(3)]
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_a_run_goes_on_without_a_peer_that_ended(capsys: pytest.CaptureFixture[str]):
    with Worker("nobody") as worker:
        peer = Peer(worker)
        assert [peer.call("step", MIXED), peer.call("step", MIXED)] == [None, None]
        assert capsys.readouterr().err.count("the nobody process ended with status 2; going on") == 1
        with pytest.raises(WorkerError, match="ended with status 2"):
            worker.call("step", MIXED)
