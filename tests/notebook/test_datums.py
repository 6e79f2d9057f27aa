"""``lab.show``: the SDK's datums and the engine's, one and many."""

from __future__ import annotations

import numpy as np
import pytest
import tinker

from tests.notebook.synthetic import decode, encode
from tests.notebook.views.html import Page
from txlab.config import Settings
from txlab.engine.requests import Datum
from txlab.notebook.datums import SHOWN, Datums, as_datum, ids_only
from txlab.notebook.errors import TxlabError
from txlab.notebook.lab import Lab


def sdk(text: str, weights: list[float]) -> tinker.Datum:
    ids = encode(text).tolist()
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(ids[:-1]), loss_fn_inputs={"target_tokens": ids[1:], "weights": weights}
    )


def own(text: str, weights: list[float]) -> Datum:
    ids = encode(text)
    return Datum(ids[:-1], ids[1:], {"weights": np.array(weights, np.float32)})


def test_the_sdks_datum_is_the_engines() -> None:
    found = as_datum(sdk("abc", [0, 1]))
    assert (found.tokens.tolist(), found.targets.tolist()) == ([97, 98], [98, 99])
    assert {name: values.tolist() for name, values in found.inputs.items()} == {"weights": [0, 1]}
    same = own("abc", [0, 1])
    assert as_datum(same) is same


def test_one_is_shown_in_full_and_several_as_a_gallery() -> None:
    one = Datums([own("abc", [0, 1])], decode)
    assert repr(one) == "2 tokens, 1 trained on, sum of weights 1.0\nab⟦c⟧"
    page = Page(one._repr_html_())
    assert [e.text for e in page.all("div", "line")] == ["2 tokens, 1 trained on, sum of weights 1.0\u2002weight 0 1"]
    assert ".txlab-tokens" in page.all("style")[0].text
    many = Datums([own("abc", [0, 1]), *[own("abcde", [0, 1, 1, 0])] * SHOWN], decode)
    assert repr(many).splitlines()[0] == "9 datums of 2 to 4 tokens · 34 tokens, 17 trained on, sum of weights 17.0"
    assert repr(many).splitlines()[-1] == "… and 1 more"
    page = Page(many._repr_html_())
    assert len(page.all("div", "txlab-tokens")) == SHOWN
    said = [e.text for e in page.all("div", "line")]
    assert said[0].endswith("sum of weights 17.0\u2002weight 0 1")
    assert said[1:3] == [
        "[0] 2 tokens, 1 trained on, sum of weights 1.0",
        "[1] 4 tokens, 2 trained on, sum of weights 2.0",
    ]
    assert said[-1] == "… and 1 more"
    assert repr(many).splitlines()[1:3] == ["[0] 2 tokens, 1 trained on, sum of weights 1.0", "ab⟦c⟧"]
    assert "and 0 more" not in repr(many[1:])
    assert repr(many[:1]) == repr(one), "a part of a gallery is one"
    assert repr(many[1:3]).startswith("2 datums of 4 tokens")
    assert repr(many[1:][0].tokens) == repr(many[1].tokens)
    assert (len(many), len(many[:3])) == (9, 3)
    assert repr(Datums([], decode)) == "no datums"
    assert "no datums" in Page(Datums([], decode)._repr_html_()).elements[0].text


def test_unshifted_targets_are_told_of_one_and_of_many() -> None:
    ids = encode("abcd")
    wrong = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(ids.tolist()),
        loss_fn_inputs={"target_tokens": ids.tolist(), "weights": [1.0] * 4},
    )
    said = "targets are the inputs themselves: shift them"
    assert said in repr(Datums([as_datum(wrong)], decode))
    assert said in Datums([as_datum(wrong)], decode)._repr_html_()
    many = Datums([*[own("abc", [0, 1])] * (SHOWN + 1), as_datum(wrong)], decode)
    assert "1 with targets that are not the next inputs" in repr(many).splitlines()[0]
    assert "not the next" not in repr(many[:-1])


def test_thousands_take_little_room() -> None:
    many = Datums([own("ab" * 2000, [0.0, 1.0] * 1999 + [1.0])] * 1000, decode)
    assert len(many._repr_html_()) < 400_000
    assert "1,000 datums" in repr(many)
    assert repr(many).count("a") < 200 * SHOWN


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("text", "found str"),
        ([1], "found int"),
        ({"a": 1}, "found str"),
        (tinker.Datum(model_input=tinker.ModelInput.from_ints([-100]), loss_fn_inputs={}), "found -100"),
        (
            tinker.Datum(
                model_input=tinker.ModelInput(chunks=[tinker.types.ImageChunk(data=b"", format="png")]),
                loss_fn_inputs={},
            ),
            "text tokens",
        ),
    ],
)
def test_what_is_no_datum_is_refused(wrong: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(Settings())
    monkeypatch.setattr(Lab, "_pieces", staticmethod(decode))
    with pytest.raises(TxlabError, match=message):
        lab.show(wrong)  # type: ignore[arg-type]


def test_a_lab_that_never_ran_has_no_tokenizer() -> None:
    with pytest.raises(TxlabError, match="never ran"):
        Lab(Settings()).show(own("abc", [0, 1]))


def test_numbers_stand_for_tokens_without_a_tokenizer() -> None:
    assert repr(Datums([own("abc", [0, 1])], ids_only)).endswith("97 98 ⟦99 ⟧")
