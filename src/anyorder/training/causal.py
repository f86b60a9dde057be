"""Training from left to right, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import TrainerCallback

from anyorder.model.modes import refuse_unless_causal
from anyorder.objectives import Autoregressive
from anyorder.training.loop import fit
from anyorder.training.samples import TensorRows
from anyorder.training.settings import Training

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


def train_causal(
    model: Llama,
    ids_NL: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.1,
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> float:
    """Train a network on rows of tokens from left to right, with `fit`.

    Args:
        model: the network; trained in place, and ready to write afterwards.
        ids_NL: int64 `[rows, length]`, token ids.
        steps, batch_size, learning_rate, weight_decay, seed: see `Training`.
        callbacks: called at each step and, every 10, with the mean loss.

    Returns:
        Mean loss of the last steps (at most 10) in nats per token.

    Raises:
        UserError: the network does not write from left to right, or see `Training` and `fit`.
    """
    refuse_unless_causal(model.config.modes, model.config.default_mode)
    training = Training(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay, seed=seed
    )
    log = fit(model, Autoregressive(), TensorRows(ids_NL), training, callbacks=callbacks)
    return [entry["loss"] for entry in log if "loss" in entry][-1]
