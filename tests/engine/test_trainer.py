"""What a pass and an optimizer step compute."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest

from tests.engine.tools import Client, datum, log_softmax, tokens
from tests.lora.plain import PlainLora
from tests.models.compute import segment_attention
from tests.models.tiny import make_tiny
from txlab.config import ModelSettings
from txlab.engine import trainer as trainer_module
from txlab.engine.losses import FUSED_INPUTS, LOSSES, Loss, Terms
from txlab.engine.packing import Item, Scored, head_slices, pack
from txlab.engine.passes import collect
from txlab.engine.programs import HeadLora, SliceInputs, head_backward
from txlab.engine.requests import AdamParams, Datum, ExportAdapter, RequestError
from txlab.engine.trainer import (
    LOSSES_COMPILED,
    Trainer,
    accumulate,
    activation_bytes,
    keep_tokens,
    loss_gradient,
    optim_step,
)
from txlab.lora.adapter import Adapter, Factors, Gradient, Weights, initial_weights, zero_gradient
from txlab.lora.state import ALPHA, LoraConfig
from txlab.models.base import BaseModel, load_base
from txlab.models.mesh import replicated

CE = LOSSES["cross_entropy"]


def noisy_adapter(base: BaseModel, rank: int = 4, seed: int = 0, **modules: bool) -> Adapter:
    """An adapter whose B is not zero, so that every factor has a gradient."""
    rng, lora = np.random.default_rng(seed), LoraConfig(rank=rank, seed=seed, **modules)
    weights = initial_weights(base.config, lora, replicated(base.mesh))
    noise = {n: Factors(f.a, f.b + rng.normal(0, 0.05, f.b.shape).astype(np.float32)) for n, f in weights.items()}
    return Adapter(lora, noise)


@dataclasses.dataclass
class Outcome:
    logprobs: list[np.ndarray]
    losses: list[float]
    gradients: list[Weights]  # of each adapter


def run(trainer: Trainer, adapters: list[Adapter], pairs, budget: int = 4096, losses=None) -> Outcome:
    """All (entry, datum) pairs through the trainer, each with its loss (cross_entropy)."""
    losses = losses or [CE] * len(pairs)
    items = [Item(0, i, entry, d, losses[i], {}) for i, (entry, d) in enumerate(pairs)]
    gradients = [zero_gradient(adapter.weights) for adapter in adapters]
    outputs = {}
    for batch in pack(items, budget):
        activations = trainer.forward(batch, adapters, backward=True)
        scored = [Scored(p, p.item.loss, p.item.inputs(p.item.loss), True) for p in batch.placements]
        parts = list(head_slices(scored, len(batch.tokens)))
        found = jax.device_get([trainer.score(activations, part) for part in parts])
        for entry, gradient in trainer.backward(activations):
            gradients[entry] = accumulate(gradients[entry], gradient)
        outputs |= {s.placement.item.index: out for s, out in zip(scored, collect(scored, parts, found), strict=True)}
    ordered = [outputs[i] for i in range(len(items))]
    totals = [jax.device_get(gradient.stacked()) for gradient in gradients]
    return Outcome([o.logprobs for o in ordered], [o.loss for o in ordered], totals)


def assert_close(one, two, rtol=1e-5):
    """Every leaf agrees within rtol of its largest element."""

    def check(x, y):
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * max(np.abs(y).max(), 1e-6))

    jax.tree.map(check, one, dict(two))


@pytest.fixture(scope="module")
def trainer(base):
    return Trainer(base.decoder, keep_tokens=1 << 20)


def reference(base: BaseModel, weights, d: Datum):
    """Logprobs of a datum, by the plain decoder and JAX's own derivatives."""
    n = len(d.tokens)
    project = PlainLora(weights, ALPHA / 4)
    attend = segment_attention(np.ones((1, n), np.int32))
    hidden, _ = base.decoder(d.tokens[None], np.arange(n)[None], attend, project=project)
    return jax.nn.log_softmax(base.decoder.unembed(hidden, project)[0])[np.arange(n), d.targets]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_logprobs_and_gradient_are_those_of_the_plain_model(family, tmp_path):
    base = load_base(ModelSettings(name=str(make_tiny(tmp_path, family, tie_word_embeddings=False))))
    adapter, weights = noisy_adapter(base), np.linspace(-1, 2, 30).astype(np.float32)
    outcome = run(Trainer(base.decoder, 256), [adapter], [(0, datum(30, 1, weights=weights))], budget=256)
    total = lambda factors: -(weights * reference(base, factors, datum(30, 1))).sum()  # noqa: E731
    np.testing.assert_allclose(outcome.logprobs[0], reference(base, adapter.weights, datum(30, 1)), atol=1e-5)
    assert outcome.losses[0] == pytest.approx(float(total(adapter.weights)), rel=1e-5)
    assert_close(outcome.gradients[0], jax.grad(total)(dict(adapter.weights)))


def test_the_fused_loss_by_central_differences(base):
    """The head, its softmax and the loss in float64 NumPy, moved along random directions."""
    rng, rows, rank = np.random.default_rng(0), 64, 4
    config, table = base.config, np.asarray(base.decoder.head, np.float64)
    norm, scale = np.asarray(base.decoder.norm[...], np.float64), 8.0
    hidden = rng.normal(size=(rows, config.hidden_size)).astype(np.float32)
    factors = Factors(*(rng.normal(0, 0.1, shape) for shape in ((hidden.shape[1], rank), (rank, len(table)))))
    targets, weights = rng.integers(0, len(table), rows), rng.normal(size=rows)
    index = np.arange(rows, dtype=np.int32)

    def loss(x, a, b):
        h = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.rms_norm_eps) * norm
        logits = h @ table.T + h @ a @ b * scale
        return -(weights * log_softmax(logits)[index, targets]).sum()

    single = jax.tree.map(lambda array: jax.numpy.asarray(array, jax.numpy.float32), factors)
    inputs = {name: np.zeros(rows, np.float32) for name in FUSED_INPUTS} | {"weights": weights.astype(np.float32)}
    output, dhidden, dfactors = head_backward(
        config,
        base.decoder.norm[...],
        base.decoder.head,
        HeadLora(single, np.float32(scale)),
        np.int32(0),
        hidden,
        jax.numpy.zeros_like(hidden),
        jax.tree.map(jax.numpy.zeros_like, single),
        SliceInputs(index, targets.astype(np.int32), inputs),
    )
    at = (hidden.astype(np.float64), *factors)
    assert float(output.terms.loss.sum()) == pytest.approx(loss(*at), rel=1e-5)
    for place, gradient in enumerate((dhidden, *dfactors)):
        direction = rng.normal(size=at[place].shape)
        moved = [[x + sign * 1e-6 * direction if i == place else x for i, x in enumerate(at)] for sign in (1, -1)]
        measured = (loss(*moved[0]) - loss(*moved[1])) / 2e-6
        assert float((np.asarray(gradient) * direction).sum()) == pytest.approx(measured, rel=1e-4)


def test_packed_alone_and_among_other_adapters_agree(base, trainer):
    """A sequence has the same logprobs and gradient whatever shares its window or its batch, at any rank and loss."""
    adapters = [noisy_adapter(base, rank, seed) for rank, seed in ((4, 0), (8, 1), (4, 2))]
    lengths = (40, 7, 90, 33, 12, 61, 5, 20, 28)
    losses = [LOSSES[name] for name in ("cross_entropy", "ppo", "cispo", "importance_sampling", "cross_entropy")] * 2
    wide = {"clip_low_threshold": 0.0, "clip_high_threshold": 1e6}
    pairs = [(i % 3, datum(n, i) if losses[i] is CE else policy_datum(n, i, **wide)) for i, n in enumerate(lengths)]
    together = run(trainer, adapters, pairs, losses=losses)
    for entry, adapter in enumerate(adapters):
        own = [i for i, (e, _) in enumerate(pairs) if e == entry]
        total = None
        for i in own:
            alone = run(trainer, [adapter], [(0, pairs[i][1])], losses=[losses[i]])
            np.testing.assert_allclose(together.logprobs[i], alone.logprobs[0], rtol=1e-5, atol=1e-5)
            assert together.losses[i] == pytest.approx(alone.losses[0], rel=1e-4)
            total = alone.gradients[0] if total is None else jax.tree.map(np.add, total, alone.gradients[0])
        assert_close(together.gradients[entry], total)


def test_micro_batches_of_any_size_agree(base, trainer):
    adapter = noisy_adapter(base)
    pairs = [(0, datum(n, i)) for i, n in enumerate((40, 7, 90, 33, 12, 61))]
    whole, small = (run(trainer, [adapter], pairs, budget).gradients[0] for budget in (4096, 128))
    assert_close(small, whole)


def test_recomputing_activations_changes_nothing(base, trainer):
    adapter = noisy_adapter(base)
    kept, again = (run(t, [adapter], [(0, datum(50))]) for t in (trainer, Trainer(base.decoder, keep_tokens=0)))
    assert_close(again.gradients[0], kept.gradients[0])


def test_several_targets_are_as_many_passes(base, trainer):
    """[N, 3] targets and weights: the logprobs of three passes, and the sum of their gradients; the bucket is 4."""
    adapter, rng = noisy_adapter(base), np.random.default_rng(0)
    n, k = 140, 3  # more positions than one slice of the head has
    targets = rng.integers(5, 300, (n, k)).astype(np.int32)
    weights = rng.normal(size=(n, k)).astype(np.float32)
    weights[:9] = 0  # a prompt
    whole = Datum(tokens(n), targets, {"weights": weights})
    beside = Datum(tokens(9, 1), targets[:9, :1], {"weights": np.ones((9, 1), np.float32)})
    outcome = run(trainer, [adapter], [(0, whole), (0, beside)])
    assert [lp.shape for lp in outcome.logprobs] == [(n, k), (9, 1)]
    singles = [Datum(tokens(n), targets[:, c], {"weights": weights[:, c]}) for c in range(k)]
    alone = run(trainer, [adapter], [(0, d) for d in [*singles, Datum(tokens(9, 1), targets[:9, 0])]])
    np.testing.assert_allclose(outcome.logprobs[0], np.stack(alone.logprobs[:k], axis=1), atol=1e-5)
    np.testing.assert_allclose(outcome.logprobs[1][:, 0], alone.logprobs[k], atol=1e-5)
    assert_close(outcome.gradients[0], alone.gradients[0])


@pytest.mark.parametrize("modules", [{"train_mlp": False}, {"train_attn": False}, {"train_unembed": False}])
def test_adapters_of_some_layers_only(base, trainer, modules):
    adapter = noisy_adapter(base, **modules)
    total = lambda factors: -reference(base, factors, datum(30, 1)).sum()  # noqa: E731
    gradient = run(trainer, [adapter], [(0, datum(30, 1))]).gradients[0]
    assert_close(gradient, jax.grad(total)(dict(adapter.weights)))


def policy_datum(n: int, seed: int, **inputs) -> Datum:
    rng = np.random.default_rng(seed)
    q, advantages = rng.normal(-5, 2, n), rng.normal(0, 1, n)
    return datum(n, seed, **({"logprobs": q, "advantages": advantages} | inputs))


def test_a_loss_across_positions_is_the_same_among_others():
    """Each row by itself, and the gradient by central differences in float64."""
    gspo, rng = LOSSES["gspo"], np.random.default_rng(0)
    lengths, width = np.array([5, 9, 2]), 16
    real = np.arange(width) < lengths[:, None]
    logprobs = rng.normal(-2, 0.3, real.shape).astype(np.float32)
    inputs = {name: np.zeros(real.shape, np.float32) for name in gspo.inputs}
    inputs["logprobs"] = (logprobs + rng.normal(0, 0.1, real.shape)).astype(np.float32)
    inputs |= {"advantages": rng.normal(size=real.shape).astype(np.float32), "sequence_ratio_mask": 1.0 * real}
    inputs |= {"clip_low_threshold": inputs["logprobs"] * 0, "clip_high_threshold": inputs["logprobs"] * 0 + 1e6}
    terms, gradient = loss_gradient(gspo, logprobs, inputs, real)
    assert not gradient[~real].any()
    for row, n in enumerate(lengths):
        own = {name: values[row : row + 1, :n] for name, values in inputs.items()}
        one, slope = loss_gradient(gspo, logprobs[row : row + 1, :n], own, real[row : row + 1, :n])
        np.testing.assert_allclose(terms.loss[row, :n], one.loss[0], rtol=1e-5)
        np.testing.assert_allclose(gradient[row, :n], slope[0], rtol=1e-5)


def test_programs_of_losses_that_were_replaced_are_let_go():
    seen = []
    for scale in range(LOSSES_COMPILED + 2):
        loss = Loss("mine", lambda lp, inputs, scale=scale: Terms(scale * lp), alone=True)
        seen.append(weakref.ref(loss.function))
        if scale < 2:
            _, gradient = loss_gradient(loss, np.ones((1, 4), np.float32), {}, np.ones((1, 4), bool))
            np.testing.assert_array_equal(gradient, np.full((1, 4), scale))
        else:
            trainer_module._loss_program(loss)
    del loss
    gc.collect()
    assert seen[0]() is None
    assert seen[-1]() is not None


def test_what_activations_take_decides_how_many_are_kept(base):
    config = dataclasses.replace(base.config, num_layers=30, hidden_size=576, intermediate_size=1536, num_heads=9)
    config = dataclasses.replace(config, num_kv_heads=3, head_dim=64)
    a_token = 4 * 30 * (576 + 576 + 2 * 192 + 576 + 576 + 2 * 1536 + 9)
    assert activation_bytes(config, 4) == a_token
    assert keep_tokens(config, 4, 1 << 30) == 1024
    assert keep_tokens(config, 4, 2048 * a_token) == 2048
    assert keep_tokens(config, 2, 1 << 20) == 128, "never fewer than a block of attention"
    assert keep_tokens(base.config, 4, 1 << 30) == 4096, "buffers of a tiny model stay small"


def reference_adamw(p, gradients, adam: AdamParams):
    """AdamW (arXiv:1711.05101, algorithm 2) in float64, with torch's gradient clipping."""
    m = v = np.zeros_like(p, dtype=np.float64)
    for t, g in enumerate(gradients, 1):
        if adam.grad_clip_norm:
            g = g * min(1.0, adam.grad_clip_norm / (np.linalg.norm(g) + 1e-6))
        m = adam.beta1 * m + (1 - adam.beta1) * g
        v = adam.beta2 * v + (1 - adam.beta2) * g * g
        step = m / (1 - adam.beta1**t) / (np.sqrt(v / (1 - adam.beta2**t)) + adam.eps)
        p = p - adam.learning_rate * (step + adam.weight_decay * p)
    return p


@pytest.mark.parametrize(
    "adam",
    [
        AdamParams(learning_rate=0.01),
        AdamParams(learning_rate=0.01, beta1=0.5, beta2=0.7, eps=1e-2),
        AdamParams(learning_rate=0.1, weight_decay=0.3),
        AdamParams(learning_rate=0.01, grad_clip_norm=0.5),
        AdamParams(learning_rate=0.01, grad_clip_norm=1e6),
    ],
    ids=["plain", "betas and eps", "weight decay", "clipped", "not clipped"],
)
def test_optim_step_is_adamw(adam):
    rng = np.random.default_rng(0)
    p = rng.normal(size=(3, 5)).astype(np.float32)
    gradients = [rng.normal(size=(3, 5)).astype(np.float32) * scale for scale in (1, 10, 0.01)]
    adapter = Adapter(LoraConfig(rank=5), {"x": Factors(jax.numpy.asarray(p), jax.numpy.zeros((3, 0)))})
    for step, g in enumerate(gradients, 1):
        adapter.gradient = Gradient(tuple({"x": Factors(row, row[:0])} for row in g), None)
        result = optim_step(adapter, adam)
        assert result.metrics["grad_norm"] == pytest.approx(np.linalg.norm(g), rel=1e-5)
        assert result.metrics["step"] == adapter.step == step
        assert adapter.gradient is None
    np.testing.assert_allclose(adapter.weights["x"].a, reference_adamw(p, gradients, adam), rtol=2e-5, atol=1e-6)


def test_a_step_without_gradient_decays_only(client: Client):
    before = client.send(ExportAdapter, optimizer=True).result(60)
    client.step(AdamParams(learning_rate=0.5, weight_decay=0.5))
    after = client.send(ExportAdapter, optimizer=True).result(60)
    for name, array in after.weights.items():
        np.testing.assert_allclose(array, 0.75 * before.weights[name], rtol=1e-6)


def test_a_gradient_that_is_not_finite_is_dropped(base):
    adapter = noisy_adapter(base)
    before = jax.tree.map(np.array, dict(adapter.weights))
    adapter.gradient = jax.tree.map(lambda x: x + np.inf, zero_gradient(adapter.weights))
    with pytest.raises(RequestError, match="not finite; it was dropped and the adapter is unchanged"):
        optim_step(adapter, AdamParams())
    jax.tree.map(np.testing.assert_array_equal, dict(adapter.weights), before)
    assert (adapter.step, adapter.gradient) == (0, None)


def test_losses_and_gradients_are_sums(client: Client, another: Client):
    data = [datum(20, 1), datum(33, 2), datum(9, 3)]
    whole = client.forward_backward(*data)
    parts = [another.forward_backward(d) for d in data]
    assert whole.metrics["loss:sum"] == pytest.approx(sum(p.metrics["loss:sum"] for p in parts), rel=1e-5)
    assert whole.metrics["loss:sum"] == pytest.approx(-sum(lp.sum() for lp in whole.logprobs), rel=1e-5)
    norms = [c.step(AdamParams()).metrics["grad_norm"] for c in (client, another)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_weights_scale_the_gradient_and_zero_is_nothing(client: Client, another: Client):
    d = datum(20)
    client.forward_backward(d)
    another.forward_backward(dataclasses.replace(d, inputs={"weights": np.full(20, -3, np.float32)}))
    one, three = (c.step(AdamParams()).metrics["grad_norm"] for c in (client, another))
    assert three == pytest.approx(3 * one, rel=1e-5)
    client.forward_backward(dataclasses.replace(d, inputs={"weights": np.zeros(20, np.float32)}))
    assert client.step(AdamParams()).metrics["grad_norm"] == 0


def test_training_learns_and_forward_does_not(client: Client):
    text = tokens(21, 5)
    d = Datum(text[:-1], text[1:])
    first = client.forward(d).metrics["loss:sum"]
    assert client.forward(d).metrics["loss:sum"] == first
    assert client.step(AdamParams()).metrics["grad_norm"] == 0, "forward accumulates nothing"
    for _ in range(8):
        client.forward_backward(d)
        client.step(AdamParams(learning_rate=0.02))
    assert client.forward(d).metrics["loss:sum"] < first / 2


def test_policy_metrics_of_a_pass(client: Client):
    """Means over the action tokens of all datums; the first tokens of each are a prompt."""
    data, adapted = [policy_datum(20, 1), policy_datum(33, 2)], []
    logprobs = client.forward(*[datum(20, 1), datum(33, 2)]).logprobs
    for d, lp in zip(data, logprobs, strict=True):
        q = (lp + np.random.default_rng(3).normal(0, 0.3, len(lp))).astype(np.float32)
        prompt = np.arange(len(lp)) < 5
        inputs = {"logprobs": np.where(prompt, 0, q), "advantages": np.where(prompt, 0, d.inputs["advantages"])}
        adapted.append(dataclasses.replace(d, inputs={k: v.astype(np.float32) for k, v in inputs.items()}))
    metrics = client.forward_backward(*adapted, loss="ppo").metrics
    lp, q = np.concatenate([x[5:] for x in logprobs]), np.concatenate([d.inputs["logprobs"][5:] for d in adapted])
    x = lp - q
    assert metrics["action_tokens:sum"] == len(x) == 15 + 28
    assert metrics["tokens:sum"] == 53
    expected = {"ratio": np.exp(x), "kl_k1": -x, "kl_k3": np.exp(x) - 1 - x, "entropy": -lp}
    for name, values in expected.items():
        assert metrics[f"{name}:mean"] == pytest.approx(values.mean(), rel=1e-3, abs=1e-4), name
    assert 0 < metrics["clip_fraction:mean"] < 1
    no_action = client.forward(datum(5, logprobs=0, advantages=0), loss="ppo").metrics
    assert set(no_action) == {"loss:sum", "tokens:sum", "action_tokens:sum"}, "a mean of nothing is left out"


def test_the_weight_of_a_pass(client: Client):
    metrics = client.forward(datum(4, weights=0.5), datum(3)).metrics
    assert metrics == {"loss:sum": metrics["loss:sum"], "tokens:sum": 7, "weights:sum": 5}


def test_a_loss_that_is_not_finite_fails_its_request_and_no_gradient(client: Client):
    with pytest.raises(RequestError, match=r"importance_sampling loss of data\[1\] is -inf") as error:
        client.forward_backward(
            datum(4, logprobs=-1, advantages=1), datum(4, logprobs=-1e4, advantages=1), loss="importance_sampling"
        )
    assert error.value.category == "user"
    client.nothing_is_left()
