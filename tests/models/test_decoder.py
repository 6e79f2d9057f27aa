"""Parity with transformers: on tiny random models of each family, and on the default model itself."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import processors

from tests.models.compute import full_logits, greedy, segment_attention
from tests.models.golden import make_golden as golden
from tests.models.tiny import make_tiny
from txlab.config import ModelSettings
from txlab.models.base import BaseModel, load_base
from txlab.models.config import projection_shapes
from txlab.models.decoder import BaseProjector, rms_norm

ATOL = 1e-4  # absolute, of float32 logits


@pytest.fixture(scope="module", params=golden.CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, BaseModel]:
    folder = make_tiny(tmp_path_factory.mktemp(request.param), **golden.CASES[request.param])
    return request.param, folder, load_base(ModelSettings(name=str(folder)))


@pytest.fixture(scope="module")
def tiny_golden() -> dict[str, np.ndarray]:
    return dict(np.load(golden.HERE / "tiny.npz"))


@pytest.fixture(scope="module")
def smollm2_golden() -> dict:
    return json.loads((golden.HERE / "smollm2.json").read_text())


def test_golden_logits(case, tiny_golden):
    name, _, base = case
    logits = full_logits(base, golden.PROMPT)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[0, -golden.KEPT :], tiny_golden[f"{name}.logits"], rtol=0, atol=ATOL)


def test_golden_greedy_text(case, tiny_golden):
    name, _, base = case
    assert greedy(base, golden.PROMPT[0].tolist(), golden.GREEDY) == tiny_golden[f"{name}.greedy"].tolist()


@pytest.mark.usefixtures("torch")
def test_transformers_agrees(case):
    _, folder, base = case
    logits, tokens = golden.tiny_reference(folder)
    np.testing.assert_allclose(full_logits(base, golden.PROMPT), logits, rtol=0, atol=ATOL)
    assert greedy(base, golden.PROMPT[0].tolist(), golden.GREEDY) == tokens


def test_smollm2_perplexity(smollm2, smollm2_golden):
    tokens = smollm2.tokenizer(golden.TEXT)["input_ids"]
    ours = golden.perplexity(full_logits(smollm2, np.asarray([tokens])), tokens)
    assert ours == pytest.approx(smollm2_golden["perplexity"], rel=5e-3)


def test_smollm2_greedy_text(smollm2, smollm2_golden):
    prompt = smollm2.tokenizer(golden.STORY)["input_ids"]
    assert greedy(smollm2, prompt, 32) == smollm2_golden["greedy"]


def test_smollm2_answers_a_question(smollm2):
    prompt = smollm2.tokenizer.apply_chat_template(golden.QUESTION, add_generation_prompt=True)["input_ids"]
    answer = greedy(smollm2, prompt, 32)
    assert answer[-1] in smollm2.eos_ids
    assert "Paris" in smollm2.tokenizer.decode(answer)


@pytest.mark.usefixtures("torch")
def test_smollm2_golden_is_what_transformers_says(smollm2, smollm2_golden):
    model, tokenizer = golden.smollm2_reference()
    if tokenizer("")["input_ids"]:  # transformers 5.5, which the cookbook asks for, puts a token of its own in front
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    text, story = tokenizer(golden.TEXT)["input_ids"], tokenizer(golden.STORY)["input_ids"]
    logits = golden.reference_logits(model, np.asarray([text]))
    assert golden.perplexity(logits, text) == pytest.approx(smollm2_golden["perplexity"], rel=1e-4)
    greedy_tokens = smollm2_golden["greedy"]
    logits = golden.reference_logits(model, np.asarray([story + greedy_tokens]))
    assert logits[0, len(story) - 1 : -1].argmax(-1).tolist() == greedy_tokens
    assert [tokenizer(string)["input_ids"] for string in golden.STRINGS] == smollm2_golden["encodings"]


class LowRank(BaseProjector):
    """An adapter of rank 2 on every projection of every layer."""

    def __init__(self, layers):
        self.layers = layers

    def layer(self, index):
        def project(name, x, kernel):
            a, b = (array[index] for array in self.layers[name])
            return x @ kernel.T + x @ a @ b

        return project


def test_gradients_reach_every_layer_of_the_projector(tiny_llama):
    base = load_base(ModelSettings(name=str(tiny_llama)))
    rng = np.random.default_rng(0)
    shapes = {name: shape for name, shape in projection_shapes(base.config).items() if name != "lm_head"}
    layers = {
        name: (jnp.asarray(rng.normal(size=(2, size_in, 2)), jnp.float32), jnp.zeros((2, 2, size_out)))
        for name, (size_in, size_out) in shapes.items()
    }
    tokens = jnp.asarray(golden.PROMPT[:, :8])

    @jax.jit
    def loss(layers):
        positions = jnp.arange(8)[None]
        hidden, _ = base.decoder(tokens, positions, segment_attention(jnp.ones_like(tokens)), project=LowRank(layers))
        return jnp.sum(hidden * jnp.arange(hidden.shape[-1]))

    gradients = jax.grad(loss)(layers)
    for name, (a, b) in gradients.items():
        assert not a.any(), name  # b is zero
        assert (jnp.abs(b).max(axis=(1, 2)) > 0).all(), name
    # One entry against a central difference.
    step = 1e-3
    a, b = layers["k_proj"]
    above, below = (loss(layers | {"k_proj": (a, b.at[0, 1, 5].add(s))}) for s in (step, -step))
    np.testing.assert_allclose((above - below) / (2 * step), gradients["k_proj"][1][0, 1, 5], rtol=0.02)


def test_projector_head_is_the_seam_of_the_unembedding(tiny_llama):
    base = load_base(ModelSettings(name=str(tiny_llama)))

    class Doubled(BaseProjector):
        def head(self, hidden, embedding):
            return 2 * super().head(hidden, embedding)

    hidden = jnp.ones((3, base.config.hidden_size))
    logits = base.decoder.unembed(hidden)
    np.testing.assert_allclose(logits, hidden @ base.decoder.head.T, rtol=1e-5)
    np.testing.assert_allclose(base.decoder.unembed(hidden, Doubled()), 2 * logits, rtol=1e-6)


def test_bfloat16_weights_give_float32_logits_close_to_float32(tiny_llama):
    full = load_base(ModelSettings(name=str(tiny_llama)))
    half = load_base(ModelSettings(name=str(tiny_llama), dtype="bfloat16"))
    assert half.memory_bytes * 2 == full.memory_bytes
    ours, reference = full_logits(half, golden.PROMPT), full_logits(full, golden.PROMPT)
    assert ours.dtype == np.float32
    assert np.abs(ours - reference).mean() < 0.05 * reference.std()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_derivative_of_the_norm_is_its_own(dtype):
    """It is written out: compared with differences of the formula in float64; bfloat16 rounds it."""
    rng = np.random.default_rng(0)
    x, weight, upstream = rng.normal(size=(3, 5, 8)), rng.normal(size=8), rng.normal(size=(3, 5, 8))
    total = lambda x, w: (rms_norm(x, w, 1e-5) * upstream).sum()  # noqa: E731
    dx, dweight = jax.grad(total, (0, 1))(jnp.asarray(x, dtype), jnp.asarray(weight, dtype))
    x, weight = (np.asarray(jnp.asarray(a, dtype), np.float64) for a in (x, weight))
    step, expected = 1e-6, np.zeros_like(x)
    plain = lambda x: (x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight * upstream).sum()  # noqa: E731
    for at in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[at] = step
        expected[at] = (plain(x + moved) - plain(x - moved)) / (2 * step)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(np.asarray(dx, np.float64), expected, atol=tolerance)
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(np.asarray(dweight, np.float64), (normed * upstream).sum((0, 1)), atol=tolerance)
