"""What a user waits for, through the real SDK on the default model: start, first step, training, sampling, overhead.

``python benchmarks/first_minutes.py`` prints JSON lines, then a table. Each start is a process of its own, first with
an empty compilation cache, then with the one that it left. The matmul rate of NumPy in the same process says how fast
the machine was at that moment; ``share`` is tokens/s over what the counted FLOPs of training would allow at that rate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.measure import best, numpy_matmul_gflops, table

TRAIN_FLOPS = 0.6e9  # a token of SmolLM2-135M, LoRA rank 32 on all linear layers: forward, backward, no base gradient


def measure(compile_cache: Path) -> dict[str, float]:
    """One start in this process."""
    os.environ["TINKER_TELEMETRY"] = "0"
    began = time.perf_counter()
    import numpy as np
    import tinker
    from tinker import types

    import txlab
    from txlab.config import EngineSettings

    settings = replace(txlab.Settings(), engine=EngineSettings(compile_cache=compile_cache))
    imported = time.perf_counter()
    lab = txlab.serve(settings=settings)
    served = time.perf_counter()
    training = tinker.ServiceClient().create_lora_training_client(base_model=lab.model, rank=32).result()
    adam = types.AdamParams(learning_rate=1e-4)

    def data(rows: int, width: int) -> list[types.Datum]:
        text = np.random.default_rng(0).integers(100, 40_000, (rows, width + 1))
        return [
            types.Datum(types.ModelInput.from_ints(t[:-1].tolist()), loss_fn_inputs={"target_tokens": t[1:]})
            for t in text
        ]

    def step(batch: list[types.Datum]) -> None:
        passed, stepped = training.forward_backward(batch, "cross_entropy"), training.optim_step(adam)
        passed.result(), stepped.result()

    small = data(8, 64)
    training.forward_backward(small, "cross_entropy").result()
    figures = {"import_s": imported - began, "serve_s": served - imported}
    figures["serve_to_first_forward_backward_s"] = time.perf_counter() - imported
    figures["matmul_gflops"] = rate = numpy_matmul_gflops()
    for rows, width in ((8, 64), (8, 128)):
        tokens_per_second = rows * width / best(partial(step, data(rows, width)))
        figures[f"train_{rows}x{width}_tokens_per_s"] = tokens_per_second
        figures[f"train_{rows}x{width}_share"] = tokens_per_second * TRAIN_FLOPS / (rate * 1e9)
    sampler = training.save_weights_and_get_sampling_client().result()
    prompt = types.ModelInput.from_ints(list(range(100, 164)))
    greedy = types.SamplingParams(max_tokens=64, temperature=0.0, stop=[])

    def sample(count: int) -> None:
        sampler.sample(prompt, num_samples=count, sampling_params=greedy).result()

    for count in (1, 8, 32):
        figures[f"sample_{count}_tokens_per_s"] = 64 * count / best(partial(sample, count))
    lab.stop()
    return figures


def overhead_ms(folder: Path) -> float:
    """Median milliseconds of a forward of one token on a tiny random model, through the real SDK."""
    os.environ["TINKER_TELEMETRY"] = "0"
    import numpy as np
    import tinker
    from tinker import types

    import txlab
    from tests.models.tiny import make_tiny

    lab = txlab.serve(str(make_tiny(folder / "tiny")))
    training = tinker.ServiceClient().create_lora_training_client(base_model=lab.model, rank=8).result()
    datum = types.Datum(types.ModelInput.from_ints([5]), loss_fn_inputs={"target_tokens": np.array([6])})
    seconds = []
    for _ in range(220):
        began = time.perf_counter()
        training.forward([datum], "cross_entropy").result()
        seconds.append(time.perf_counter() - began)
    lab.stop()
    return 1e3 * statistics.median(seconds[20:])


def main() -> None:
    """Run each measurement in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", choices=("start", "overhead"))
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.folder) if args.child == "start" else {"overhead_ms": overhead_ms(args.folder)}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        runs = {}
        for name, child in (("cold", "start"), ("warm", "start"), ("tiny", "overhead")):
            command = [sys.executable, "-m", "benchmarks.first_minutes", "--child", child, "--folder", temporary]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs[name] = json.loads(output.splitlines()[-1])
            print(json.dumps({"run": name, **runs[name]}), flush=True)
    rows = [(figure, cold, runs["warm"][figure]) for figure, cold in runs["cold"].items()]
    rows.append(("forward of one token, tiny model, ms", None, runs["tiny"]["overhead_ms"]))
    print(f"\n{table(('', 'cold', 'warm'), rows)}")


if __name__ == "__main__":
    main()
