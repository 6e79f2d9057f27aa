"""The sampling benchmark runs, counts what it says, and gives both sides the same work. Nothing here is a speed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest

from benchmarks import sample
from benchmarks.sample import Setup
from benchmarks.sampling.report import Measured, Round, record, rows_table, trace_record, trace_table
from benchmarks.sampling.trace import Trace, Visit, figures, play
from benchmarks.sampling.txlab_sampler import TxlabSampler
from benchmarks.sampling.workloads import Draw, Row, Span, decoding, prefilling, rows
from tests.models.tiny import make_tiny

RATES = ({"xla": 100.0, "numpy": 90.0}, {"xla": 120.0, "numpy": 95.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied tiny model."""
    return make_tiny(tmp_path_factory.mktemp("benchmarks") / "tiny", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def sampler(folder: Path) -> Iterator[TxlabSampler]:
    """The engine's side of the benchmark."""
    sampler = TxlabSampler(str(folder), "float32")
    yield sampler
    sampler.close()


# ---------------------------------------------------------------------------------------- rows


def test_rows_have_names_of_their_own_and_each_has_a_goal():
    assert len({row.name for row in rows()}) == len(rows())
    assert all((row.goal is None) != (row.cost_goal is None) for row in rows())


def test_spans_count_the_tokens_that_they_time():
    draw = Draw(4, 16, 8, samples=2)
    assert decoding(draw) == Span(draw, 4 * 2 * 7, before=replace(draw, max_tokens=1))
    assert prefilling(draw) == Span(replace(draw, max_tokens=1), 4 * 16)
    by_name = {row.name: row for row in rows()}
    assert by_name["decode-32"].span.tokens == 32 * 63
    adapters = by_name["adapters-8"]
    assert adapters.span.tokens == adapters.beside["base"].tokens
    assert adapters.span.whole == replace(adapters.beside["base"].whole, adapters=True)


def test_prompts_are_fresh_for_each_seed():
    draw = Draw(3, 16, 8)
    assert draw.prompts(320).shape == (3, 16)
    assert (draw.prompts(320) == draw.prompts(320)).all()
    assert (draw.prompts(320) != replace(draw, seed=1).prompts(320)).any(axis=1).all()


# --------------------------------------------------------------------------------------- trace


def test_a_trace_is_log_uniform_poisson_and_always_the_same():
    trace = Trace(requests=4000, rate=5.0)
    visits = trace.visits()
    assert visits == trace.visits()
    assert {visit.adapter for visit in visits} == {-1, 0, 1, 2, 3}
    for sizes, (low, high) in (
        ([visit.prompt_tokens for visit in visits], trace.prompt_tokens),
        ([visit.max_tokens for visit in visits], trace.max_tokens),
    ):
        assert low <= min(sizes) <= max(sizes) <= high
        assert np.median(sizes) == pytest.approx((low * high) ** 0.5, rel=0.1)
    arrivals = np.array([visit.arrival for visit in visits])
    assert arrivals[0] == 0
    gaps = np.diff(arrivals)
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.1)
    assert gaps.std() == pytest.approx(1 / 5, rel=0.1)  # of an exponential distribution as its mean


def test_the_rate_moves_nothing_but_the_arrivals():
    slow, fast, full = (Trace(requests=50, rate=rate).visits() for rate in (1.0, 10.0, None))
    assert [visit.arrival for visit in slow] == pytest.approx([10 * visit.arrival for visit in fast])
    assert {visit.arrival for visit in full} == {0.0}
    assert [replace(visit, arrival=0.0) for visit in slow] == full


class Server:
    """Ends what is submitted together after a while, and notes who was submitted with whom."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.batches: list[list[int]] = []
        self.running = self.most_running = 0

    def submit(self, visits: Sequence[Visit]) -> list[Future]:
        self.batches.append([visit.max_tokens for visit in visits])
        self.running += len(visits)
        self.most_running = max(self.most_running, self.running)
        futures: list[Future] = [Future() for _ in visits]
        Timer(self.seconds, self._end, (visits, futures)).start()
        return futures

    def _end(self, visits: Sequence[Visit], futures: Sequence[Future]) -> None:
        self.running -= len(visits)
        for visit in visits:
            visit.tell(0, np.zeros(visit.max_tokens, np.int32), np.zeros(visit.max_tokens, np.float32))
        for future in futures:
            future.set_result(None)


def test_an_open_loop_submits_whoever_arrives():
    server = Server(seconds=1.0)
    played = play([Visit(0.02 * i, 1, 1, -1) for i in range(5)], server.submit)
    assert sum(map(len, server.batches)) == 5
    assert len(server.batches) > 1
    assert server.most_running == 5
    assert played["new_tokens"] == 5


def test_static_batches_take_who_has_arrived_and_wait_for_all_of_them():
    server = Server(seconds=0.2)
    visits = [Visit(arrival, 1, i, -1) for i, arrival in enumerate((0.0, 0.0, 0.0, 0.05, 0.1, 1.5), start=1)]
    play(visits, server.submit, rows=2)
    assert server.batches == [[1, 2], [3, 4], [5], [6]]
    assert server.most_running == 2


def test_a_failed_request_fails_the_trace():
    future: Future = Future()
    future.set_exception(RuntimeError("no room"))
    with pytest.raises(RuntimeError, match="no room"):
        play([Visit(0.0, 1, 1, -1)], lambda visits: [future])


def test_figures_of_a_trace():
    began = time.perf_counter()
    visits = [
        Visit(0.0, 1, 4, -1, told=[(began + 1.0, 3), (began + 3.0, 1)]),
        Visit(1.5, 1, 2, -1, told=[(began + 2.0, 1), (began + 4.0, 1)]),
    ]
    said = figures(visits, began)
    assert said["seconds"] == pytest.approx(4.0)
    assert (said["new_tokens"], said["tokens_per_s"]) == (6, pytest.approx(6 / 4))
    assert said["busy_tokens_per_s"] == pytest.approx(4 / 2)  # until the second one began to draw
    assert said["first_token_s"] == pytest.approx({"p50": 0.75, "p95": 0.975})  # of 1.0 and 0.5


# ------------------------------------------------------------------------------------- figures


def test_figures_of_a_row():
    row = Row("row", Span(Draw(1, 1, 8), tokens=8), goal=1.5)
    rounds = [
        Round({"seconds": s, "tokens": [[1, 2, 3, 4]], "cached": 0}, {"seconds": t, "tokens": [[1, 2, 3, 9]]}, RATES)
        for s, t in ((2, 4), (4, 4), (5, 20))
    ]
    said = record(Measured(row, compiles={}, rounds=rounds))
    assert said["txlab"]["tokens_per_s"] == 8 / 4
    assert said["txlab"]["best_tokens_per_s"] == 8 / 2
    assert (said["beside"], said["ratio"], said["pair_ratio"]) == ("transformers", 1.0, 2.0)  # 4 s and 4 s; 2, 1 and 4
    assert (said["same"], said["cost"]) == (0.75, None)
    assert said["matmul_gflops"]["xla"] == 110


def test_cost_of_a_row():
    span = Span(Draw(1, 1, 8), tokens=8)
    row = Row("row", span, beside={"prefill": span, "decoding": span}, cost_goal=1.3)
    rounds = [Round({"seconds": s, "cached": 0}, {"seconds": 2.0}, RATES) for s in (2, 3, 8)]
    said = record(Measured(row, compiles={}, rounds=rounds))
    assert (said["beside"], said["cost"], said["same"]) == ("prefill + decoding", 1.5, None)


def test_figures_of_the_trace_compare_runs_of_one_kind():
    def run(kind: str, rate: float | None, speed: float) -> dict:
        waits = {"p50": 1.0, "p95": speed}
        return {"trace": kind, "rate": rate, "tokens_per_s": speed, "first_token_s": waits, "programs": 1}

    opened = [run(kind, 2.0, speed) for kind, speed in (("continuous", 30), ("static", 10), ("continuous", 50))]
    said = trace_record([run("continuous", None, 90), run("static", None, 45), *opened, run("static", 2.0, 10)])
    assert said["beforehand"]["ratio"] == 2.0
    assert said["open"]["ratio"] == 4.0  # of 3 and 5
    assert said["open"]["continuous"] == {
        "rate": 2.0,
        "tokens_per_s": 40,
        "first_token_s": {"p50": 1.0, "p95": 40},
        "programs": 2,
    }


# --------------------------------------------------------------------------------------- sides


@dataclass(frozen=True)
class Here(Setup):
    """A setup whose process is this one."""

    sampler: TxlabSampler
    draws: list[Draw] = field(default_factory=list)

    @contextmanager
    def txlab(self, kind: str) -> Iterator[Here]:
        yield self

    def call(self, name: str, *work: Any) -> Any:
        if name == "draw":
            self.draws.extend(work)
        return 0.0 if name == "peak_gb" else getattr(self.sampler, name)(*work)


@pytest.fixture
def here(folder: Path, sampler: TxlabSampler) -> Here:
    return Here(str(folder), "float32", folder, False, sampler)


def test_a_whole_run_without_the_peer(folder: Path, capsys: pytest.CaptureFixture[str]):
    sample.main(["--rows", "start", "decode-1", "--repeat", "1", "--no-peer", "--model", str(folder)])
    captured = capsys.readouterr()
    lines, starts, measured = captured.out.strip().split("\n\n")
    cold, warm, decode = map(json.loads, lines.splitlines())
    assert (cold["start"], warm["start"]) == ("cold", "warm")
    assert (cold["compiles"]["from_cache"], warm["compiles"]["from_cache"]) == (0, cold["compiles"]["programs"])
    assert cold["seconds"] == pytest.approx(cold["loading_s"] + cold["first_call_s"])
    assert (decode["row"], decode["tokens"], decode["other"]) == ("decode-1", 63, None)
    assert len(decode["txlab"]["seconds"]) == 1
    assert [text.split()[0] for text in (starts, measured)] == ["start", "row"]
    assert "decode-1: " in captured.err


def test_a_row_that_the_lab_is_compared_with_itself(here: Here):
    shared = Draw(1, 24, 4, samples=4)
    parts = {"prefill": prefilling(replace(shared, samples=1)), "decoding": decoding(replace(shared, prompt_tokens=1))}
    row = Row("shared", Span(shared, shared.new_tokens), parts, cost_goal=1.3)
    (said,) = sample.measure_rows([row], here, repeat=2)
    assert (said["tokens"], said["beside"], said["late_programs"]) == (16, "prefill + decoding", 0)
    assert len(said["txlab"]["seconds"]) == len(said["other"]["seconds"]) == 2
    assert len({draw.seed for draw in here.draws}) == len(here.draws) > 6  # all prompts are new
    assert rows_table([said]).splitlines()[1].startswith("shared ")


def test_runs_of_the_trace(here: Here):
    trace = Trace(requests=6, prompt_tokens=(2, 20), max_tokens=(1, 8), adapters=1)
    runs = list(sample.measure_trace(here, trace, load=0.5, rate=None, repeat=1))
    assert [(run["trace"], run["rate"] is None) for run in runs] == [
        ("continuous", True),
        ("static", True),
        ("continuous", False),
        ("static", False),
    ]
    waits = [run["first_token_s"] for run in runs]
    assert all(0 < wait["p50"] <= wait["p95"] < run["seconds"] for wait, run in zip(waits, runs, strict=True))
    tokens = sum(visit.max_tokens for visit in trace.visits())
    assert [run["new_tokens"] for run in runs] == [tokens] * 4
    assert runs[2]["rate"] == runs[3]["rate"] == pytest.approx(0.5 * runs[0]["busy_tokens_per_s"] * 6 / tokens)
    assert len(trace_table(trace_record(runs)).splitlines()) == 5


def test_adapters_have_snapshots_of_their_own(sampler: TxlabSampler):
    draw = Draw(3, 8, 4, adapters=True)
    adapted = sampler.draw(draw)
    assert adapted["tokens"] == sampler.draw(replace(draw, adapters=False))["tokens"]  # fresh adapters change nothing
    assert len(sampler._snapshots) >= 3


def test_samples_of_one_prompt(sampler: TxlabSampler):
    drawn = sampler.draw(Draw(2, 8, 4, samples=3))
    assert np.shape(drawn["tokens"]) == (6, 4)
    assert drawn["seconds"] > 0


@pytest.mark.usefixtures("torch", "peft")
def test_the_peer_draws_the_same_tokens(folder: Path, sampler: TxlabSampler):
    from benchmarks.sampling.transformers_sampler import TransformersSampler

    peer = TransformersSampler(str(folder), "float32")
    for draw in (Draw(4, 16, 12), Draw(3, 20, 1, seed=7)):
        ours = sampler.draw(draw)["tokens"]
        assert peer.draw(draw)["tokens"] == ours
        assert peer.prefill(draw)["tokens"] == [tokens[:1] for tokens in ours]


@pytest.mark.usefixtures("torch", "peft")
def test_no_token_ends_what_the_peer_generates(folder: Path):
    from benchmarks.generate_peer import GeneratePeer

    peer = GeneratePeer.load(str(folder), "float32")
    drawn = peer.generate(np.random.default_rng(0).integers(320, size=(64, 4)), 100, temperature=1.0)
    assert drawn.shape == (64, 100)
    beyond_eos = [row[50:] for row in drawn if 2 in row[:50]]
    assert beyond_eos
    assert all(len(set(row)) > 1 for row in beyond_eos)  # not padding
