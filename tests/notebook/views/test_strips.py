"""From datums to strips: what is predicted is shaded where it is read."""

from __future__ import annotations

import numpy as np
import pytest

from tests.notebook.synthetic import decode, encode
from txlab.engine.requests import Datum
from txlab.notebook.views.strips import datum_strip, measure, note, sample_strip
from txlab.notebook.views.tokens import strip_text


def datum(text: str, **inputs: list[float]) -> Datum:
    ids = encode(text)
    return Datum(ids[:-1], ids[1:], {name: np.array(values, np.float32) for name, values in inputs.items()})


def shading(found: Datum) -> list[float]:
    shade = datum_strip(found, decode).shade
    assert shade is not None
    return shade.values.round(3).tolist()


def test_a_weight_is_shown_at_the_token_that_it_trains() -> None:
    found = datum("abcde", weights=[0, 0, 1, 0.5])
    assert strip_text(datum_strip(found, decode)) == "4 tokens, 2 trained on, sum of weights 1.5\nabc⟦de⟧"
    assert shading(found) == [0, 0, 0, 1, 0.5], "nothing predicts the first"


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"weights": [0, 2, 1, 0]}, [0, 1, 0.5, 0]),  # larger than 1: the largest is full
        ({"weights": [0, -1, 0.25, 0]}, [0, -1, 0.25, 0]),
        ({"advantages": [0, -0.1, 0.2, 0]}, [0, -0.5, 1, 0]),
        ({"advantages": [0, 0, 0, 0]}, [0, 0, 0, 0]),
        ({"weights": [0, 1, 1, 0], "advantages": [3, 3, 3, 3]}, [0, 1, 1, 0]),
        ({"mask": [0, 0, 1, 1], "logprobs": [-1, -1, -1, -1]}, [0, 0, 1, 1]),
        ({"weights": [1, 1]}, [0, 0, 0, 0]),  # does not fit
        ({}, [1, 1, 1, 1]),
    ],
)
def test_the_first_figure_that_says_what_counts_is_shaded(
    inputs: dict[str, list[float]], expected: list[float]
) -> None:
    assert shading(datum("abcde", **inputs))[1:] == expected


def test_other_figures_are_kept_beside() -> None:
    strip = datum_strip(datum("abc", advantages=[1, -1], logprobs=[-0.5, -2], reference=[7, 8]), decode)
    assert {name: values[1:].tolist() for name, values in strip.figures.items()} == {
        "advantage": [1, -1],
        "logprob": [-0.5, -2],
        "reference": [7, 8],
    }


@pytest.mark.parametrize(
    ("tokens", "targets", "weights", "said"),
    [
        ("abcde", "bcdeX", [1, 1, 1, 1, 1], None),  # the last may be anything
        ("abcde", "abcde", [1, 1, 1, 1, 1], "targets are the inputs themselves: shift them, target i is input i + 1"),
        ("abcde", "abcde", [0, 0, 1, 1, 1], "targets are the inputs themselves: shift them, target i is input i + 1"),
        ("abcde", "cdeXY", [1, 1, 1, 1, 1], "targets are the inputs after the next: they are shifted twice"),
        ("abcde", "bXdee", [1, 1, 1, 1, 1], "1 of 4 targets not the next input"),
        ("abcde", "bXdee", [1, 0, 1, 1, 1], None),  # it counts for nothing
        ("aaaaa", "aaaaa", [1, 1, 1, 1, 1], None),  # both
        ("abcde", "abcde", [0, 0, 0, 0, 1], None),  # nothing tells
        ("a", "a", [1], None),
        ("abcde", "abc", [1, 1, 1, 1, 1], None),  # which is said elsewhere
    ],
)
def test_targets_that_are_not_shifted_are_told(
    tokens: str, targets: str, weights: list[float], said: str | None
) -> None:
    found = Datum(encode(tokens), encode(targets), {"weights": np.array(weights, np.float32)})
    _, *notes = datum_strip(found, decode).note.split(" · ")
    assert [one for one in notes if "do not fit" not in one] == ([said] if said else [])


def test_several_targets_of_a_position_are_no_shift() -> None:
    ids = encode("abc")
    found = Datum(ids, np.stack([ids, ids], axis=1), {"weights": np.ones((3, 2), np.float32)})
    assert "targets" not in datum_strip(found, decode).note
    one = Datum(ids, ids[:, None], {"weights": np.ones((3, 1), np.float32)})
    assert "targets are the inputs themselves" in datum_strip(one, decode).note


def test_targets_that_are_not_the_next_token_are_named() -> None:
    found = Datum(encode("abc"), encode("bXY"), {"weights": np.array([1, 1, 0.5], np.float32)})
    strip = datum_strip(found, decode)
    assert strip_text(strip).endswith("\na⟦bcY⟧")
    assert strip.targets == {2: "'X' (1)"}
    silent = Datum(encode("abc"), encode("bXY"), {"weights": np.array([1, 0, 0.5], np.float32)})
    assert datum_strip(silent, decode).targets == {}


def test_several_targets_of_a_position_are_named_with_their_weights() -> None:
    targets = np.stack([encode("bcd"), encode("xyz"), encode("000")], axis=1)
    weights = np.array([[1, 0, 0], [0.75, 0.25, 0], [0, 0, 0]], np.float32)
    strip = datum_strip(Datum(encode("abc"), targets, {"weights": weights}), decode)
    assert strip.targets == {2: "'c' (0.75), 'y' (0.25)"}
    assert strip.shade is not None
    assert strip.shade.values[1:].tolist() == [1, 1, 0]
    assert strip.note == "3 tokens, 2 trained on, sum of weights 2.0"


def test_what_does_not_fit_is_said() -> None:
    odd = Datum(encode("abc"), encode("bcde"), {"weights": np.ones(5, np.float32), "beta": np.array(0.5)})
    assert datum_strip(odd, decode).note == (
        "3 tokens, 0 trained on, sum of weights 0.0 · target_tokens do not fit: there are 4"
        " · weights do not fit: there are 5"
    )


@pytest.mark.parametrize("targets", [np.empty(0, np.int32), encode("xyzzy")])
def test_without_targets_of_its_length_the_tokens_are_shown(targets: np.ndarray) -> None:
    strip = datum_strip(Datum(encode("abc"), targets, {}), decode)
    assert strip_text(strip).endswith("\na⟦bc⟧")


def test_an_empty_datum_has_a_face() -> None:
    assert strip_text(datum_strip(Datum(encode(""), encode(""), {}), decode)) == "0 tokens, 0 trained on\n"


def test_totals_are_of_all() -> None:
    both = [datum("abcde", weights=[0, 0, 1, 1]), datum("abc", weights=[0.5, 0])]
    assert note(both) == "6 tokens, 3 trained on, sum of weights 2.5"
    assert note([datum("abc", advantages=[0.5, -1])]) == "2 tokens, 2 with an advantage, sum of advantages -0.5"
    assert measure(datum("abc"))[1].tolist() == [1, 1]


def test_samples_are_shaded_by_surprise() -> None:
    strip = sample_strip(encode("abc"), np.array([0.0, -2.5, -50.0]), decode, "n")
    assert strip.shade is not None
    certain, half, full = strip.shade.values.tolist()
    assert np.isnan(certain), "plain, but not dim"
    assert (half, full) == (-0.5, -1.0)
    assert sample_strip(encode("abc"), None, decode, "n").shade is None
