"""The peer of sampling: ``generate`` of transformers on torch (the ``parity`` extra), with the weights of the lab."""

from __future__ import annotations

import os
from typing import Self

import numpy as np
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.peft_trainer import load_model


class GeneratePeer:
    """A model that continues prompts of one length, all at once, to one length: no token ends a sequence.

    Takes over the generation config of ``model``, which may be one with adapters of PEFT.
    """

    def __init__(self, model: PreTrainedModel | PeftModel):
        self._model = model.eval()
        self._model.generation_config = GenerationConfig(pad_token_id=0)  # without the model's EOS, top-k and top-p
        self.vocab_size: int = model.config.vocab_size

    @classmethod
    def load(cls, name: str, dtype: str) -> Self:
        """The weights that the lab would load, and threads for all cores."""
        torch.set_num_threads(os.cpu_count() or 1)
        torch.manual_seed(0)
        return cls(load_model(name, dtype))

    @torch.inference_mode()
    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        """The likeliest next token of each prompt, int64 (B,), of prompts (B, P): one forward that fills a cache."""
        tokens = torch.from_numpy(prompts).long()
        logits = self._model(input_ids=tokens, use_cache=True, logits_to_keep=1).logits  # (B, 1, V)
        return logits[:, 0].argmax(-1).numpy()

    @torch.inference_mode()
    def generate(self, prompts: np.ndarray, max_tokens: int, temperature: float = 0.0) -> np.ndarray:
        """Continuations, int64 (B, max_tokens), of prompts (B, P); greedy at temperature 0."""
        tokens = torch.from_numpy(prompts).long()
        drawing = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        out = self._model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=max_tokens, **drawing
        )  # (B, P + max_tokens)
        return out[:, tokens.shape[1] :].numpy()
