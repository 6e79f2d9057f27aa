"""The benchmark of training and sampling together runs, and counts what it says. Nothing here is a speed."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import mixed
from benchmarks.mixed_measure import (
    WORK,
    Part,
    every,
    sample_beside_training,
    seconds_per_round,
    train_under_light_sampling,
    training,
)
from tests.models.tiny import make_tiny


class Scripted:
    """Stands for an engine: training ends at once, with an error in one round; samples as told."""

    def __init__(self, sample: float | Exception = 0.0, fails: int | None = None):
        self.rounds = 0
        self._sample, self._fails = sample, fails

    def train(self) -> tuple[Future, Future]:
        passed, stepped = Future(), Future()
        if self.rounds == self._fails:
            passed.set_exception(RuntimeError("out of memory"))
        else:
            passed.set_result(None)
        stepped.set_result(None)
        self.rounds += 1
        return passed, stepped

    def sample(self) -> Future:
        future: Future = Future()
        if isinstance(self._sample, Exception):
            future.set_exception(self._sample)
        else:
            threading.Timer(self._sample, future.set_result, [None]).start()
        return future


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = make_tiny(tmp_path / "tiny", tie_word_embeddings=False)
    sizes = ["--samples", "3", "--rounds", "2", "--repeat", "2"]
    mixed.main(["--model", str(model), "--share", "0.3", "0.7", *sizes])
    out = capsys.readouterr().out.splitlines()
    told = [json.loads(line) for line in out if line.startswith("{")]
    repetitions, records = told[:4], told[4:]
    assert [line["share"] for line in repetitions] == [0.3, 0.7, 0.3, 0.7]
    assert all(len(line["repetition"]["waited"]) == 3 for line in repetitions)
    header, *rows = out[-3:]
    assert [record["share"] for record in records] == [0.3, 0.7]
    for record in records:
        beside, trained = record["beside_training"], record["training"]
        assert record["limit_s"] == pytest.approx(2 * record["sample_s"] + record["micro_batch_s"])
        assert 0 < beside["median_s"] <= beside["p95_s"]
        assert trained["ratio"] > 0
        assert trained["light_samples"] >= 2  # one at once in each repetition
        assert len(record["matmul_gflops"]) == 2
    assert header.split()[0] == "share"
    assert [row.split()[0] for row in rows] == ["0.30", "0.70"]


def test_figures_of_a_share():
    def part(sample: list[float], waited: list[float], lone: float, light: float) -> Part:
        return Part(sample, 4.0, lone, waited, light, [1.0], programs=1, gflops=100.0)

    record = mixed.record(0.5, [part([1, 1], [3, 6], 8.0, 10.0), part([1, 9], [3, 3], 4.0, 8.0)])
    assert (record["sample_s"], record["limit_s"]) == (1.0, 6.0)  # twice 1, and 4
    assert record["beside_training"]["median_of_limit"] == 0.5
    assert record["beside_training"]["p95_of_limit"] == pytest.approx((3 + 0.85 * 3) / 6)  # of 3, 3, 3, 6
    assert record["training"]["ratio"] == pytest.approx((8 / 10 + 4 / 8) / 2)
    assert record["training"]["tokens_per_s"] == WORK.tokens / 6
    assert record["programs"] == 2


def test_a_client_is_a_round_ahead():
    subject = Scripted()
    with closing(training(subject)) as ends:
        next(ends)
        assert subject.rounds == 2
        next(ends)
        assert subject.rounds == 3


def test_a_client_waits_for_all_that_it_asked():
    ends = training(Scripted(fails=1))
    next(ends)
    with pytest.raises(RuntimeError, match="out of memory"):
        ends.close()
    with pytest.raises(RuntimeError, match="out of memory"):
        seconds_per_round(training(Scripted(fails=1)), 2)


def test_rounds_are_counted_from_an_end_to_an_end():
    assert seconds_per_round(iter([10.0, 12.0, 15.0, 16.0, 99.0]), 3) == 2.0


def test_samples_are_asked_one_after_the_other_while_training_goes_on():
    subject = Scripted(sample=0.02)
    assert len(sample_beside_training(subject, [0.0, 0.01])) == 2
    assert subject.rounds > 2


@pytest.mark.parametrize(
    "run", [lambda s: sample_beside_training(s, [0.0]), lambda s: train_under_light_sampling(s, 2)]
)
def test_a_sample_that_fails_ends_the_measuring(run):
    with pytest.raises(RuntimeError, match="out of memory"):
        run(Scripted(sample=RuntimeError("out of memory")))


def test_light_sampling_asks_at_once_and_again_until_it_ends():
    times: list[int] = []
    enough = threading.Event()

    def act() -> None:
        times.append(len(times))
        if len(times) == 3:
            enough.set()

    with every(0.001, act):
        assert enough.wait(10)
    ended = len(times)
    time.sleep(0.01)
    assert len(times) == ended
    with every(60.0, act):
        pass
    assert len(times) == ended + 1  # the first at once
