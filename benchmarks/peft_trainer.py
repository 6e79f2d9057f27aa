"""The peer: transformers and PEFT on torch (the ``parity`` extra), the same weights, adapters and losses."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.workloads import Work
from txlab.config import ModelSettings
from txlab.lora.state import ALPHA
from txlab.models.config import ATTENTION, MLP, UNEMBED
from txlab.models.sources import resolve

BATCH_TOKENS = 4096  # of one pass, padding included: what 16 GB of memory hold
IGNORED = -100  # the target of padding


class PeftTrainer:
    """One model, an optimizer per adapter. Adapters take turns (``set_adapter``): a pass knows only one."""

    def __init__(self, model: str, dtype: str):
        torch.set_num_threads(os.cpu_count() or 1)
        torch.manual_seed(0)
        self._model: PreTrainedModel | PeftModel = load_model(model, dtype)
        self._vocab_size = self._model.config.vocab_size
        self._optimizers: dict[str, torch.optim.Optimizer] = {}  # by adapter

    def warm_up(self, work: Work) -> None:
        """Make the adapters, and pass over one sequence: torch compiles nothing that more would prepare."""
        adapters = self._adapters_of(work)
        first = Work(work.name, work.ranks[:1], (work.lengths[0][:1],), work.backward)
        self._round(adapters[:1], first)

    def step(self, work: Work) -> dict[str, Any]:
        """One round: ``seconds``, and ``loss``, the sum over all tokens."""
        adapters = self._adapters_of(work)
        began = time.perf_counter()
        loss = self._round(adapters, work)
        return {"seconds": time.perf_counter() - began, "loss": loss}

    def _round(self, adapters: Sequence[str], work: Work) -> float:
        return sum(
            self._pass(adapter, texts, work.backward)
            for adapter, texts in zip(adapters, work.texts(self._vocab_size), strict=True)
        )

    def _pass(self, adapter: str, texts: Sequence[np.ndarray], backward: bool) -> float:
        self._model.set_adapter(adapter)
        total = 0.0
        for tokens, mask, targets in batches(texts):
            with torch.set_grad_enabled(backward):
                logits = self._model(input_ids=tokens, attention_mask=mask, use_cache=False).logits  # (B, T, V)
                loss = cross_entropy(
                    logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
                )
            if backward:
                loss.backward()
            total += loss.item()
        if backward:
            self._optimizers[adapter].step()
            self._optimizers[adapter].zero_grad()
        return total

    def _adapters_of(self, work: Work) -> list[str]:
        names = [f"{work.name}/{i}" for i in range(len(work.ranks))]
        for name, rank in zip(names, work.ranks, strict=True):
            if name not in self._optimizers:
                self._add(name, rank)
        return names

    def _add(self, name: str, rank: int) -> None:
        lora = LoraConfig(r=rank, lora_alpha=int(ALPHA), target_modules=[*ATTENTION, *MLP, *UNEMBED])
        if isinstance(self._model, PeftModel):
            self._model.add_adapter(name, lora)
        else:
            self._model = get_peft_model(self._model, lora, adapter_name=name)
        self._model.set_adapter(name)
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizers[name] = torch.optim.AdamW(
            trained, lr=1e-4, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0, fused=True
        )


def load_model(name: str, dtype: str) -> PreTrainedModel:
    """The weights that the lab would load, from the same files."""
    source = resolve(name, ModelSettings(name=name))
    kind = getattr(torch, dtype)
    if source.is_gguf:
        return AutoModelForCausalLM.from_pretrained(source.path.parent, gguf_file=source.path.name, dtype=kind)
    return AutoModelForCausalLM.from_pretrained(source.path, dtype=kind)


def batches(texts: Sequence[np.ndarray]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Tokens, mask and targets, each (B, T), of as many sequences as BATCH_TOKENS hold, padded to their longest."""
    chosen: list[torch.Tensor] = []
    for text in map(torch.from_numpy, texts):
        width = max(len(t) - 1 for t in (*chosen, text))
        if chosen and width * (len(chosen) + 1) > BATCH_TOKENS:
            yield _padded(chosen)
            chosen = []
        chosen.append(text)
    yield _padded(chosen)


def _padded(texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = pad_sequence([text[:-1] for text in texts], batch_first=True)
    targets = pad_sequence([text[1:] for text in texts], batch_first=True, padding_value=IGNORED)
    return tokens, (targets != IGNORED).long(), targets
