"""What a pass and an optimizer step compute."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest

from tests.engine.tools import Client, datum, tokens
from txlab.engine import trainer as trainer_module
from txlab.engine.losses import LOSSES, Loss, Terms
from txlab.engine.packing import Item, pack
from txlab.engine.requests import AdamParams, Datum, ExportAdapter, RequestError
from txlab.engine.trainer import LOSSES_COMPILED, Trainer, accumulate, optim_step
from txlab.lora.adapter import Adapter, Factors, initial_weights
from txlab.lora.linear import combine, entry_gradient
from txlab.lora.state import LoraConfig
from txlab.models.attention import segment_attention
from txlab.models.base import BaseModel
from txlab.models.mesh import replicated

CE = LOSSES["cross_entropy"]


def noisy_adapter(base: BaseModel, rank: int = 4, seed: int = 0) -> Adapter:
    """An adapter whose B is not zero, so that every factor has a gradient."""
    rng = np.random.default_rng(seed)
    weights = initial_weights(base.config, LoraConfig(rank=rank, seed=seed), replicated(base.mesh))
    noise = {n: Factors(f.a, f.b + rng.normal(0, 0.05, f.b.shape).astype(np.float32)) for n, f in weights.items()}
    return Adapter(LoraConfig(rank=rank, seed=seed), noise)


def run(trainer: Trainer, adapters: list[Adapter], pairs, budget: int = 4096, loss: Loss = CE):
    """All (entry, datum) pairs through the trainer: logprobs in order, and each adapter's gradient."""
    adapter_set = combine(adapters, len(adapters))
    items = [Item(0, i, entry, d, {}) for i, (entry, d) in enumerate(pairs)]
    logprobs, gradients = {}, [None] * len(adapters)
    for batch in pack(items, loss, budget):
        output, gradient = trainer.forward_backward(adapter_set, batch, loss)
        for p in batch.placements:
            logprobs[p.item.index] = p.cells(output.logprobs)
        for entry in {p.item.adapter for p in batch.placements}:
            own = entry_gradient(gradient, adapters[entry], entry, adapter_set.stacked)
            gradients[entry] = accumulate(gradients[entry], jax.tree.map(np.copy, own))
    return [logprobs[i] for i in range(len(items))], gradients


def assert_close(one, two, rtol=1e-5):
    """Every leaf agrees within rtol of its largest element."""

    def check(x, y):
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * max(np.abs(y).max(), 1e-6))

    jax.tree.map(check, one, dict(two))


@pytest.fixture(scope="module")
def trainer(base):
    return Trainer(base.decoder, remat_tokens=1 << 20)


def test_logprobs_are_those_of_the_whole_softmax(base, trainer):
    d = datum(30, 1)
    positions, segments = np.arange(30)[None], np.ones((1, 30), np.int32)
    hidden, _ = base.decoder(d.tokens[None], positions, segment_attention(segments))
    expected = jax.nn.log_softmax(base.decoder.unembed(hidden)[0])[np.arange(30), d.targets]
    batch = next(pack([Item(0, 0, 0, d, {})], CE, 256))
    output = trainer.forward(None, batch, CE)
    np.testing.assert_allclose(output.logprobs[0, :30], expected, atol=1e-5)
    assert (output.logprobs[0, 30:] == 0).all()


def test_packed_alone_and_among_other_adapters_agree(base, trainer):
    """A sequence has the same logprobs and gradient whatever shares its row or its batch."""
    adapters = [noisy_adapter(base, rank, seed) for rank, seed in ((4, 0), (8, 1), (4, 2))]
    pairs = [(i % 3, datum(n, i)) for i, n in enumerate((40, 7, 90, 33, 12, 61, 5, 20, 28))]
    together, gradients = run(trainer, adapters, pairs)
    for entry, adapter in enumerate(adapters):
        own = [i for i, (e, _) in enumerate(pairs) if e == entry]
        alone = None
        for i in own:
            (logprobs,), (gradient,) = run(trainer, [adapter], [(0, pairs[i][1])])
            np.testing.assert_allclose(together[i], logprobs, atol=1e-4)
            alone = accumulate(alone, gradient)
        assert_close(gradients[entry], alone)


def test_micro_batches_of_any_size_agree(base, trainer):
    adapter = noisy_adapter(base)
    pairs = [(0, datum(n, i)) for i, n in enumerate((40, 7, 90, 33, 12, 61))]
    _, (whole,) = run(trainer, [adapter], pairs)
    _, (small,) = run(trainer, [adapter], pairs, budget=128)
    assert_close(small, whole)


def test_recomputing_activations_changes_nothing(base, trainer):
    adapter = noisy_adapter(base)
    _, (kept,) = run(trainer, [adapter], [(0, datum(50))])
    _, (again,) = run(Trainer(base.decoder, remat_tokens=0), [adapter], [(0, datum(50))])
    assert_close(again, kept)


def test_the_gradient_is_that_of_the_summed_loss(base, trainer):
    """Central differences along random directions, one per factor."""
    adapter = noisy_adapter(base)
    d = datum(24, weights=np.linspace(-1, 2, 24))
    _, (gradient,) = run(trainer, [adapter], [(0, d)])
    rng = np.random.default_rng(0)
    batch = next(pack([Item(0, 0, 0, d, {})], CE, 256))

    def loss(weights):
        output = trainer.forward(combine([Adapter(adapter.lora, weights)], 1), batch, CE)
        return output.loss.sum(dtype=np.float64)

    for name in adapter.weights:
        for factor in ("a", "b"):
            array = getattr(adapter.weights[name], factor)
            direction = rng.normal(size=array.shape).astype(np.float32)
            direction *= 0.02 / np.linalg.norm(direction)

            def moved(sign, name=name, factor=factor, array=array, direction=direction):
                changed = adapter.weights[name]._replace(**{factor: array + sign * direction})
                return loss({**adapter.weights, name: changed})

            measured = (moved(1) - moved(-1)) / 2
            expected = float((np.asarray(getattr(gradient[name], factor)) * direction).sum())
            scale = np.linalg.norm(getattr(gradient[name], factor)) * 0.02
            assert abs(measured - expected) < 0.02 * scale + 2e-4, (name, factor)


def test_several_targets_are_as_many_passes(base, trainer):
    """[N, 3] targets and weights: the logprobs of three passes, and the sum of their gradients; the bucket is 4."""
    adapter, rng = noisy_adapter(base), np.random.default_rng(0)
    n, k = 140, 3  # more positions than one slice of the head has
    targets = rng.integers(5, 300, (n, k)).astype(np.int32)
    weights = rng.normal(size=(n, k)).astype(np.float32)
    whole = Datum(tokens(n), targets, {"weights": weights})
    beside = Datum(tokens(9, 1), targets[:9, :1], {"weights": weights[:9, :1]})
    (logprobs, one), (gradient,) = run(trainer, [adapter], [(0, whole), (0, beside)])
    assert logprobs.shape == (n, k)
    alone = None
    for column in range(k):
        single = Datum(tokens(n), targets[:, column], {"weights": weights[:, column]})
        (expected,), (part,) = run(trainer, [adapter], [(0, single)])
        np.testing.assert_allclose(logprobs[:, column], expected, atol=1e-5)
        alone = accumulate(alone, part)
    single = Datum(tokens(9, 1), targets[:9, 0], {"weights": weights[:9, 0]})
    (expected,), (part,) = run(trainer, [adapter], [(0, single)])
    np.testing.assert_allclose(one, expected, atol=1e-5)
    assert_close(gradient, accumulate(alone, part))


def policy_datum(n: int, seed: int, **inputs) -> Datum:
    rng = np.random.default_rng(seed)
    q, advantages = rng.normal(-5, 2, n), rng.normal(0, 1, n)
    return datum(n, seed, **({"logprobs": q, "advantages": advantages} | inputs))


def test_a_loss_of_whole_sequences_is_the_same_among_others(base, trainer):
    adapters, loss = [noisy_adapter(base, 4, 0), noisy_adapter(base, 4, 1)], LOSSES["gspo"]
    mask = lambda n: (np.arange(n) >= 2).astype(np.float32)  # noqa: E731
    wide = {"clip_low_threshold": 0.0, "clip_high_threshold": 1e6}
    pairs = [(i % 2, policy_datum(n, i, sequence_ratio_mask=mask(n), **wide)) for i, n in enumerate((20, 7, 33, 12))]
    together, gradients = run(trainer, adapters, pairs, loss=loss)
    for entry, adapter in enumerate(adapters):
        alone = None
        for i in (i for i, (e, _) in enumerate(pairs) if e == entry):
            (logprobs,), (gradient,) = run(trainer, [adapter], [(0, pairs[i][1])], loss=loss)
            np.testing.assert_allclose(together[i], logprobs, atol=1e-4)
            alone = accumulate(alone, gradient)
        assert_close(gradients[entry], alone)


def test_programs_of_losses_that_were_replaced_are_let_go(base, trainer):
    batch = next(pack([Item(0, 0, 0, datum(4), {})], CE, 64))
    seen = []
    for scale in range(LOSSES_COMPILED + 2):
        loss = Loss("mine", lambda lp, inputs, scale=scale: Terms(scale * inputs["weights"] * lp), ("weights",))
        seen.append(weakref.ref(loss.function))
        if scale < 2:
            assert trainer.forward(None, batch, loss).loss.sum() == pytest.approx(
                scale * trainer.forward(None, batch, CE).logprobs.sum(), rel=1e-5
            )
        else:
            trainer_module._programs(loss)
    del loss
    gc.collect()
    assert seen[0]() is None
    assert seen[-1]() is not None


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
    adapter = Adapter(LoraConfig(rank=5), {"x": Factors(jax.numpy.asarray(p), jax.numpy.zeros((5, 0)))})
    for step, g in enumerate(gradients, 1):
        adapter.gradient = {"x": Factors(jax.numpy.asarray(g), jax.numpy.zeros((5, 0)))}
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
    adapter.gradient = jax.tree.map(lambda x: x * np.inf, dict(adapter.weights))
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
    assert client.step(AdamParams()).metrics["grad_norm"] == 0
