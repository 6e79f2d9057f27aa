"""Adapters that go from this lab through PEFT, trained on there, and come back, and the other way: equal logprobs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.lora.test_peft import CONFIG, adapter, export, logits, ours
from tests.models.tiny import make_tiny
from txlab.config import ModelSettings
from txlab.lora.peft import from_peft
from txlab.lora.peft_options import PeftError
from txlab.lora.state import AdapterState, LoraConfig
from txlab.models.base import BaseModel, load_base
from txlab.models.config import ATTENTION, MLP, UNEMBED

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embed")
TOKENS = np.random.default_rng(1).integers(5, 300, 24).astype(np.int32)
CHOICES = [chosen for chosen in itertools.product((True, False), repeat=3) if any(chosen)]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("base") / "tiny", "llama", tie_word_embeddings=request.param)


@pytest.fixture(scope="module")
def base(folder) -> BaseModel:
    return load_base(ModelSettings(name=str(folder)))


@pytest.fixture(scope="module", params=CHOICES, ids=lambda chosen: "-".join(map(str, map(int, chosen))))
def lora(request) -> LoraConfig:
    attention, mlp, unembed = request.param
    return LoraConfig(4, train_attn=attention, train_mlp=mlp, train_unembed=unembed)


def open_base(folder: Path, dtype: Any = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")


def read(saved: Path, base: BaseModel) -> AdapterState:
    own = {"embedding": base.decoder.embedding[...], "head": base.decoder.head}
    return from_peft(saved, base.config, own)


def train(model: Any, steps: int = 3) -> None:
    """A few steps, so that what is saved is not what was loaded."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    tokens = torch.from_numpy(TOKENS[None].astype(np.int64))
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()


def logprobs(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def assert_same(model: Any, base: BaseModel, state: AdapterState) -> None:
    found, expected = logprobs(ours(base, state, TOKENS)), logprobs(logits(model, TOKENS))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-4)


def test_exported_trained_by_peft_and_imported(tmp_path, folder, base, lora):
    exported = export(tmp_path / "exported", adapter(lora))
    model = peft.PeftModel.from_pretrained(open_base(folder), exported, is_trainable=True)
    before = logits(model, TOKENS)
    train(model)
    assert np.abs(logits(model, TOKENS) - before).max() > 0.005, "it trains"
    model.save_pretrained(tmp_path / "saved")
    state = read(tmp_path / "saved", base)
    assert (state.lora.train_attn, state.lora.train_mlp, state.lora.train_unembed) == (
        lora.train_attn,
        lora.train_mlp,
        lora.train_unembed,
    )
    assert_same(model, base, state)


def test_made_by_peft_imported_and_exported(tmp_path, folder, base, lora):
    targets = [*ATTENTION * lora.train_attn, *MLP * lora.train_mlp, *UNEMBED * lora.train_unembed]
    settings = peft.LoraConfig(
        r=6, lora_alpha=9, target_modules=targets, init_lora_weights="gaussian", task_type="CAUSAL_LM"
    )
    made = peft.get_peft_model(open_base(folder), settings)
    train(made)
    made.save_pretrained(tmp_path / "made")
    state = read(tmp_path / "made", base)
    assert_same(made, base, state)
    again = peft.PeftModel.from_pretrained(open_base(folder), export(tmp_path / "again", state))
    assert_same(again, base, state)


@pytest.mark.parametrize("embeddings", [True, False, "auto"])
@pytest.mark.parametrize("unembed", [True, False])
def test_embeddings_saved_beside_the_adapter(tmp_path, folder, base, embeddings, unembed):
    exported = export(tmp_path / "exported", adapter(LoraConfig(4, train_unembed=unembed)))
    model = peft.PeftModel.from_pretrained(open_base(folder), exported)
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=embeddings)
    state, kept = read(tmp_path / "saved", base), adapter(LoraConfig(4, train_unembed=unembed))
    for name, array in kept.weights.items():
        np.testing.assert_array_equal(state.weights[name], array)
    assert_same(model, base, state)


@pytest.mark.parametrize("embeddings", [True, "auto"])
def test_an_adapter_on_another_base_is_refused(tmp_path, folder, base, embeddings):
    model = peft.PeftModel.from_pretrained(open_base(folder), export(tmp_path / "exported", adapter()))
    with torch.no_grad():
        model.get_output_embeddings().base_layer.weight[7] *= 1.01
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=embeddings)
    with pytest.raises(PeftError, match=r"lm_head\.base_layer\.weight.*not this model's.*save_embedding_layers=False"):
        read(tmp_path / "saved", base)
    model.save_pretrained(tmp_path / "alone", save_embedding_layers=False)
    read(tmp_path / "alone", base)


def test_an_adapter_of_a_longer_vocabulary_is_refused(tmp_path, folder, base):
    resized = open_base(folder)
    resized.resize_token_embeddings(330, mean_resizing=False)
    settings = peft.LoraConfig(r=4, target_modules=[*ATTENTION], task_type="CAUSAL_LM")
    peft.get_peft_model(resized, settings).save_pretrained(tmp_path / "saved")
    with pytest.raises(PeftError, match=r"shape \(330, 64\).*\(320, 64\): the adapter was trained with another vocab"):
        read(tmp_path / "saved", base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_on_peft_s_side_is_the_same_base(tmp_path, folder, base, dtype):
    exported = export(tmp_path / "exported", adapter())
    model = peft.PeftModel.from_pretrained(open_base(folder, dtype), exported, autocast_adapter_dtype=False)
    model.save_pretrained(tmp_path / "saved")
    state, kept = read(tmp_path / "saved", base), adapter()
    for name, array in state.weights.items():
        np.testing.assert_allclose(array, kept.weights[name], rtol=1e-2, atol=1e-3)
        assert array.dtype == np.float32


def test_a_named_adapter_and_all_linear(tmp_path, folder, base):
    """PEFT puts it into a folder of its own, and names every module by itself."""
    settings = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(open_base(folder), settings, adapter_name="mine")
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(PeftError, match="holds adapters in folders of their own: mine"):
        read(tmp_path / "saved", base)
    state = read(tmp_path / "saved" / "mine", base)
    assert (state.lora.train_attn, state.lora.train_mlp, state.lora.train_unembed) == (True, True, False)
    assert_same(model, base, state)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_pefts_conversion_is_the_cure_of_a_changed_base(tmp_path, folder, base, init):
    settings = peft.LoraConfig(
        r=4, target_modules=[*ATTENTION, *MLP], init_lora_weights=init, task_type="CAUSAL_LM", use_rslora=False
    )
    model = peft.get_peft_model(open_base(folder), settings)
    model.peft_config["default"].init_lora_weights = True  # as PEFT's documentation does for the untrained adapter
    model.save_pretrained(tmp_path / "untrained")
    model.peft_config["default"].init_lora_weights = init
    train(model)
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(PeftError, match=f"init_lora_weights='{init}'"):
        read(tmp_path / "saved", base)
    expected = logits(model, TOKENS)
    converted = tmp_path / "converted"
    model.save_pretrained(converted, path_initial_model_for_weight_conversion=str(tmp_path / "untrained"))
    state = read(converted, base)
    assert state.lora.rank == 8
    np.testing.assert_allclose(logprobs(ours(base, state, TOKENS)), logprobs(expected), rtol=1e-5, atol=5e-4)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "mica", True, False])
def test_initial_weights_that_leave_the_base_alone(tmp_path, folder, base, init):
    settings = peft.LoraConfig(
        r=4, target_modules=[*ATTENTION, *MLP], init_lora_weights=init, task_type="CAUSAL_LM", lora_alpha=16
    )
    model = peft.get_peft_model(open_base(folder), settings)
    train(model)
    model.save_pretrained(tmp_path / "saved")
    assert_same(model, base, read(tmp_path / "saved", base))


def test_keys_without_prefix_and_with_the_adapters_name(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = export(tmp_path / "exported", adapter())
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    renamed = {k.removeprefix("base_model.model.").replace(".weight", ".mine.weight"): v for k, v in tensors.items()}
    save_file(renamed, file)
    state = from_peft(folder, CONFIG)
    for name, array in adapter().weights.items():
        np.testing.assert_array_equal(state.weights[name], array)
    save_file(tensors | renamed, file)
    with pytest.raises(PeftError, match="holds several adapters"):
        from_peft(folder, CONFIG)
