"""What the cookbook's check of sampling temperatures expects of a server."""

from __future__ import annotations

import numpy as np
import pytest
from tinker import types

from tests.compat.conftest import MODEL
from tests.server.conftest import Running

PROMPT = [11, 45, 97, 23]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_differences_of_logprobs_are_divided_by_the_temperature(lab: Running, temperature: float) -> None:
    sampler = lab.client().create_sampling_client(base_model=MODEL).result()
    params = types.SamplingParams(max_tokens=1, temperature=temperature, seed=3)
    drawn = sampler.sample(types.ModelInput.from_ints(PROMPT), 16, params).result(timeout=120).sequences
    tempered = {sequence.tokens[0]: sequence.logprobs[0] for sequence in drawn}
    assert len(tempered) > 1
    asked = [sampler.compute_logprobs(types.ModelInput.from_ints([*PROMPT, token])) for token in tempered]
    untempered = np.array([future.result(timeout=120)[-1] for future in asked])
    np.testing.assert_allclose(np.diff(list(tempered.values())), np.diff(untempered) / temperature, atol=1e-4)
