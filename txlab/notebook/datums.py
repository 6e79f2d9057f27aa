"""Training data as seen: tokens with what each counts for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from txlab.engine.requests import Datum
from txlab.models.detokenizer import Tokens, Vocabulary, vocabulary_of
from txlab.notebook.errors import TxlabError
from txlab.notebook.served import LabPart
from txlab.notebook.views.frame import Decode
from txlab.notebook.views.strips import datum_strip, note, unshifted
from txlab.notebook.views.tables import face_html, line_html, plural
from txlab.notebook.views.tokens import GALLERY, TOKEN_STYLE, Strip, legend_html, strip_html, strip_text

if TYPE_CHECKING:
    import tinker
    from transformers import PreTrainedTokenizerBase

SHOWN = 8  # datums of a gallery


class Datums(Sequence[Datum]):
    """Datums on display, a sequence of the engine's ``Datum``: tokens shaded by their weight or advantage."""

    def __init__(self, data: Iterable[Datum], decode: Decode):
        self._data = tuple(data)
        self._decode = decode

    @overload
    def __getitem__(self, index: int) -> Datum: ...

    @overload
    def __getitem__(self, index: slice) -> Datums: ...

    def __getitem__(self, index: int | slice) -> Datum | Datums:
        return Datums(self._data[index], self._decode) if isinstance(index, slice) else self._data[index]

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        strips = self._strips()
        if len(strips) == 1:
            return strip_text(strips[0])
        return "\n".join(
            [self._note(), *(f"[{i}] {strip_text(strip, 160)}" for i, strip in enumerate(strips)), *self._more()]
        )

    def _repr_html_(self) -> str:
        strips = self._strips()
        legend = legend_html(strips[0].shade) if strips else ""
        if len(strips) == 1:
            parts = [line_html(strips[0].note, legend), strip_html(strips[0])]
        else:
            blocks = [line_html(f"[{i}] {strip.note}") + strip_html(strip, GALLERY) for i, strip in enumerate(strips)]
            parts = [line_html(self._note(), legend), *blocks, *map(line_html, self._more())]
        return face_html("training data", *parts, style=TOKEN_STYLE)

    def _strips(self) -> list[Strip]:
        return [datum_strip(datum, self._decode) for datum in self._data[:SHOWN]]

    def _note(self) -> str:
        if not self._data:
            return "no datums"
        lengths = [len(datum.tokens) for datum in self._data]
        shortest, longest = min(lengths), max(lengths)
        size = f"{shortest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
        parts = [f"{plural(len(self), 'datum')} of {size} tokens", note(self._data)]
        if odd := sum(bool(unshifted(datum)) for datum in self._data):
            parts.append(f"{odd:,} with targets that are not the next inputs")
        return " · ".join(parts)

    def _more(self) -> list[str]:
        hidden = len(self) - SHOWN
        return [f"… and {hidden:,} more"] if hidden > 0 else []


class Faces(LabPart):
    """What is looked at rather than called."""

    _tokenizer: PreTrainedTokenizerBase | None = None  # of the model that is or was served

    def show(self, data: tinker.Datum | Datum | Iterable[tinker.Datum | Datum]) -> Datums:
        """Training data with their tokens shaded by what is trained on: one datum, or several.

        Raises TxlabError where something else is among them, or the lab never ran.
        """
        several = data if isinstance(data, Iterable) else [data]
        return Datums(map(as_datum, several), self._pieces)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones included; also after the lab was stopped.

        Raises TxlabError where it never ran.
        """
        return self._vocabulary.decode(tokens, special=True)

    @property
    def _pieces(self) -> Decode:
        return self._vocabulary.pieces

    @property
    def _vocabulary(self) -> Vocabulary:
        if self._tokenizer is None:
            raise TxlabError("This lab never ran. Start it with %txserve or txlab.serve().")
        return vocabulary_of(self._tokenizer)


def as_datum(datum: Any) -> Datum:
    """A datum of the SDK or of the engine as the engine's; TxlabError where it is neither, or holds no text."""
    if isinstance(datum, Datum):
        return datum
    try:
        inputs = {name: np.asarray(tensor.to_numpy()) for name, tensor in datum.loss_fn_inputs.items()}
        tokens = np.array(datum.model_input.to_ints(), np.int64)
    except (AttributeError, ValueError) as error:
        raise TxlabError(f"Expected tinker.Datum of text tokens, found {type(datum).__name__}: {error}") from None
    if len(tokens) and tokens.min() < 0:
        raise TxlabError(f"Token ids are 0 or more, found {tokens.min()}.")
    return Datum(tokens, inputs.pop("target_tokens", np.empty(0, np.int64)), inputs)


def ids_only(tokens: Tokens, prompt: Tokens = (), *, special: bool = False, growing: bool = False) -> list[str]:
    """Stands for a decoder where there is no tokenizer."""
    return [f"{token} " for token in tokens]
