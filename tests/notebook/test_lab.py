"""The lab as a Python object, in this process and on a thread of its own."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jax
import pytest

import txlab
from txlab.config import ModelSettings, ServerSettings, Settings
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab, serve


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TXLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("TINKER_BASE_URL", "http://elsewhere")
    monkeypatch.delenv("TINKER_API_KEY", raising=False)


@pytest.fixture
def lab(tiny_llama: Path) -> Iterator[Lab]:
    running = serve(str(tiny_llama))
    yield running
    running.stop(keep_port=False)


def test_serve_points_the_sdk_here_and_stop_restores(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert os.environ["TINKER_BASE_URL"] == lab.url
    assert os.environ["TINKER_API_KEY"] == lab.api_key
    assert httpx.get(f"{lab.url}/api/v1/healthz").status_code == 200
    assert "TINKER_BASE_URL is http://elsewhere again" in lab.stop()
    assert os.environ["TINKER_BASE_URL"] == "http://elsewhere"
    assert "TINKER_API_KEY" not in os.environ
    assert Lab.current is None
    lab.stop()  # harmless


def test_a_stopped_lab_has_given_its_memory_back(tiny_llama: Path) -> None:
    """Engine and server know each other: left to Python, weights stay until its collector runs."""
    gc.disable()
    try:
        others = jax.live_arrays()  # held, so that no array of the lab's takes the place of one
        lab = serve(str(tiny_llama))
        lab.sample("a", max_tokens=1)
        mine = {id(array) for array in jax.live_arrays()} - {id(array) for array in others}
        assert len(mine) > 10
        lab.stop()
        assert not [array.shape for array in jax.live_arrays() if id(array) in mine]
    finally:
        gc.enable()


def test_the_same_call_gives_the_running_lab(lab: Lab) -> None:
    port = int(lab.url.rsplit(":", 1)[1])
    assert serve() is lab
    assert serve(lab.model, port=port, api_key=lab.api_key, loop="thread") is lab


@pytest.mark.parametrize(
    "asked", [{"model": "other"}, {"port": 1}, {"api_key": "tml-x"}, {"loop": "control"}, {"root": "/x"}]
)
def test_another_lab_needs_restart(lab: Lab, asked: dict[str, object]) -> None:
    with pytest.raises(TxlabError, match="restart=True"):
        serve(**asked)  # type: ignore[arg-type]
    assert Lab.current is lab


def test_a_second_lab_beside_it_is_refused(lab: Lab) -> None:
    with pytest.raises(TxlabError, match="already serves"):
        Lab(lab.settings).start()


def test_it_shows_itself(lab: Lab) -> None:
    assert lab.url in repr(lab)
    assert "txlab key" in lab._repr_html_()
    assert "txlab key" in lab.exports()
    assert "no adapters yet" in repr(lab.status())
    lab.stop()
    assert "stopped" in repr(lab) + lab._repr_html_() + repr(lab.status())
    assert "Started server process" in lab.logs()
    with pytest.raises(TxlabError, match="stopped"):
        lab.board()


def test_a_profile_leaves_the_lab_as_it_was(lab: Lab) -> None:
    report = lab.profile(rows=1, length=16, rank=2)
    assert "1 x 16 tokens, rank 2" in report
    assert "host: nothing ran" in report
    (adapter,) = lab.status().view.adapters
    assert adapter.state == "unloaded"
    with pytest.raises(TxlabError, match="rows is 0"):
        lab.profile(rows=0)
    with jax.profiler.trace(os.environ["TXLAB_HOME"]), pytest.raises(TxlabError, match="one profile"):
        lab.profile(rows=1, length=16, rank=2)
    lab.stop()
    with pytest.raises(TxlabError, match="stopped"):
        lab.profile()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(model=ModelSettings(name="nobody/nothing")), "txlab fetch nobody/nothing"),
        (Settings(server=ServerSettings(api_key="secret")), "tml-"),
        (Settings(server=ServerSettings(port=70000)), "70000 is not a port"),
    ],
)
def test_a_start_that_fails_leaves_nothing_open(settings: Settings, message: str) -> None:
    with pytest.raises(TxlabError, match=message):
        Lab(settings).start()
    assert Lab.current is None
    assert os.environ["TINKER_BASE_URL"] == "http://elsewhere"


def test_a_failed_start_frees_its_port() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(TxlabError, match="was not found"):
        serve("nobody/nothing", port=port)
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_a_model_that_disagrees_with_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(TxlabError, match=r"(?i)bert"):
        serve(str(tmp_path))


def test_a_registered_loss_is_any_clients_loss(lab: Lab) -> None:
    """Length-normalised SFT of the user's own, against the weights of cross_entropy that say the same."""
    import jax.numpy as jnp
    import tinker
    from tinker import types

    def normalised(logprobs, inputs, power):
        length = inputs["mask"].sum()
        return -(logprobs * inputs["mask"]).sum() / length**power, {"length": length}

    def datum(n: int, **inputs: list[float]) -> types.Datum:
        tokens = list(range(5, 6 + n))
        return types.Datum(types.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], **inputs})

    with pytest.raises(txlab.LossError, match="depends on padding"):
        lab.register_loss("normalised", lambda logprobs, inputs: -jnp.mean(logprobs))
    lab.register_loss("normalised", normalised, options={"power": 1.0})
    service = tinker.ServiceClient()
    losses, norms = [], []
    for data, *loss in (
        ([datum(4), datum(9)], "normalised", {"power": 1.0}),
        ([datum(4, weights=[1 / 4] * 4), datum(9, weights=[1 / 9] * 9)], "cross_entropy"),
    ):
        client = service.create_lora_training_client(base_model=lab.model, rank=4, seed=1).result()
        output = client.forward_backward(data, *loss).result(timeout=120)
        losses.append(output.metrics["loss:sum"])
        norms.append(client.optim_step(types.AdamParams()).result(timeout=60).metrics["grad_norm"])
        if len(loss) == 2:
            assert output.metrics["length:mean"] == 6.5
            with pytest.raises(tinker.RequestFailedError, match=r"this server has .*gspo, normalised"):
                client.forward_backward(data, "no_such_loss").result(timeout=60)
    service.close("success").result(timeout=20)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    lab.stop()
    with pytest.raises(TxlabError, match="stopped"):
        lab.register_loss("normalised", normalised, options={"power": 1.0})


def test_adapters_leave_and_come_back_as_peft_folders(lab: Lab, tmp_path: Path) -> None:
    import tinker
    from tinker import types

    service = tinker.ServiceClient()
    client = service.create_lora_training_client(base_model=lab.model, rank=4, seed=1).result()
    data = [types.Datum(types.ModelInput.from_ints([5, 6, 7]), {"target_tokens": [6, 7, 8], "weights": [1.0] * 3})]
    client.forward_backward(data, "cross_entropy")
    client.optim_step(types.AdamParams(learning_rate=0.01))
    learned = client.forward(data, "cross_entropy").result(timeout=120).metrics["loss:sum"]
    path = client.save_weights_for_sampler("x").result(timeout=60).path
    folder = lab.export_peft(path, tmp_path / "adapter")
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    external = client.save_weights_external("x").result(timeout=60).path
    assert lab.export_peft(external, tmp_path / "again").joinpath("adapter_config.json").exists()
    again = service.create_training_client_from_state(lab.import_peft(folder, "mine")).result()
    assert again.forward(data, "cross_entropy").result(timeout=120).metrics["loss:sum"] == pytest.approx(learned)
    service.close("success").result(timeout=20)
    for wrong, message in (
        (lambda: lab.import_peft(folder, "mine"), "exists: choose another name, or delete it first"),
        (lambda: lab.import_peft(tmp_path, "other"), "is no PEFT adapter"),
        (lambda: lab.export_peft("tinker://a/weights/b", folder), "does not exist"),
        (lambda: lab.export_peft("b", folder), "is no checkpoint path"),
        (lambda: lab.export_peft(path, folder / "adapter_config.json"), "exists"),
    ):
        with pytest.raises(TxlabError, match=message):
            wrong()


def test_an_adapter_that_peft_trained_on_comes_back(lab: Lab, tmp_path: Path, torch: Any, peft: Any) -> None:
    """The model's embeddings are tied, and PEFT stores the base weights of an adapted ``lm_head`` beside it."""
    import tinker
    from tinker import types
    from transformers import AutoModelForCausalLM

    service = tinker.ServiceClient()
    client = service.create_lora_training_client(base_model=lab.model, rank=4, seed=1).result()
    path = client.save_weights_for_sampler("x").result(timeout=60).path
    base = AutoModelForCausalLM.from_pretrained(lab.model, dtype=torch.float32, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, lab.export_peft(path, tmp_path / "exported"), is_trainable=True)
    tokens = torch.tensor([[5, 6, 7, 8]])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    expected = torch.log_softmax(model(tokens).logits[0, :-1].detach(), -1).gather(1, tokens[0, 1:, None])[:, 0]
    again = service.create_training_client_from_state(lab.import_peft(tmp_path / "trained", "trained")).result()
    inputs = {"target_tokens": [6, 7, 8], "weights": [1.0] * 3}
    passed = again.forward([types.Datum(types.ModelInput.from_ints([5, 6, 7]), inputs)], "cross_entropy")
    found = passed.result(timeout=120).loss_fn_outputs[0]["logprobs"].to_numpy()
    service.close("success").result(timeout=20)
    assert found == pytest.approx(expected.numpy(), abs=1e-4)


@pytest.mark.parametrize("inside", [False, True])
def test_a_root_that_cannot_be_written_is_told_before_a_model_is_loaded(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "home" if inside else tmp_path / "file"
    monkeypatch.setattr("txlab.models.base.open_model", lambda *_: pytest.fail("a model was opened"))
    monkeypatch.setenv("TXLAB_HOME", str(root))
    for options in ({}, {"root": root}):
        with pytest.raises(TxlabError, match=rf"Checkpoints cannot be kept in {root}: .*TXLAB_HOME"):
            serve(str(tiny_llama), **options)  # type: ignore[arg-type]
    assert Lab.current is None
