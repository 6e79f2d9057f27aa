"""Losses of the user's own, evaluated on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from txlab.notebook.served import LabPart

if TYPE_CHECKING:
    from txlab.engine.user_losses import UserFunction


class OwnLosses(LabPart):
    """Makes functions losses that clients can name."""

    def register_loss(
        self,
        name: str,
        function: UserFunction,
        *,
        inputs: Sequence[str] = (),
        optional: Mapping[str, float] | None = None,
        options: Mapping[str, float] | None = None,
    ) -> None:
        """Make a JAX function a loss that every client of this lab can name: ``forward_backward(data, name)``.

        It is evaluated on the device, between the forward and the backward half of one pass, where
        ``forward_backward_custom`` needs two passes and a way to the client and back. The same name again replaces the
        function; requests that wait get the new one. It is there until the lab stops.

        ``function(logprobs, inputs, **options)`` gets one datum:

        * ``logprobs`` (T,) float32, of the datum's target tokens under the adapter that trains;
        * ``inputs``, a dict of (T,) float32 arrays of those names, and ``mask``: 1 at tokens, 0 in the padding to
          the width T (or what a datum brings as ``mask``). Everything else is 0 in padding;
        * its options as float32 scalars, by keyword.

        It returns the datum's loss: a scalar, in which ``inputs["mask"]`` must keep padding out, or one value per
        token (T,), of which tokens alone count. Or that and a dict of scalar metrics: ``name`` or ``name:mean`` is
        averaged over datums, ``name:sum`` summed. As ever, losses of datums are summed, and so are gradients.

        Args:
            name: what clients give as ``loss_fn``.
            function: pure, of ``jax.numpy``.
            inputs: names that every datum must have in ``loss_fn_inputs`` beside ``target_tokens``.
            optional: names that it may have, with the value at every token where it does not.
            options: names that ``loss_fn_config`` may set, with their defaults.

        Raises:
            LossError: a ValueError that says what is wrong with the function; it was traced, and its value and
                gradient tried on a small sample, alone and padded.
            TxlabError: the lab is stopped.

        Example:
            A policy gradient with a penalty on the distance to the sampling policy, normalised by length::

                def leashed(logprobs, inputs, beta):
                    mask = inputs["mask"]
                    distance = logprobs - inputs["logprobs"]
                    loss = -jnp.exp(distance) * inputs["advantages"] + beta * distance**2
                    length = mask.sum()
                    return (loss * mask).sum() / length, {"distance": (distance * mask).sum() / length}

                lab.register_loss("leashed", leashed, inputs=("logprobs", "advantages"), options={"beta": 0.1})
                client.forward_backward(data, "leashed", {"beta": 0.05}).result().metrics["distance:mean"]
        """
        from txlab.engine.user_losses import user_loss

        self._serving().engine.losses.add(user_loss(name, function, inputs, optional, options))
