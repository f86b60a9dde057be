"""Balance between the experts of a mixture in training: a term of the loss, or steps of their biases.

Shape suffixes: M layers that have experts, X experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.experts import Router, Routing, balance_loss
from anyorder.model.llama import Llama
from anyorder.training.gradients import like
from anyorder.training.settings import Training


class Balance(TrainerCallback):
    """Counts the rows that experts read, and keeps the counts equal.

    Args:
        model: a network, with experts or without.
        training: `balance_loss` and `balance_bias`.
        reduced: adds a tensor up over processes.
    """

    def __init__(self, model: Llama, training: Training, reduced: Callable[[Tensor], Tensor]) -> None:
        self.routers = [module for module in model.modules() if isinstance(module, Router)]
        self.weight, self.bias_step = training.balance_loss, training.balance_bias
        self.reduced = reduced
        self._of_step: Tensor | None = None
        self._of_log: Tensor | None = None

    def term(self, routings: Sequence[Routing], count: float) -> Tensor | float:
        """What a pass adds to the summed loss: the mean over layers of `balance_loss`, for each unit of the count."""
        if not routings:
            return 0.0
        load_MX = torch.stack([routing.load for routing in routings])
        self._of_step = load_MX if self._of_step is None else self._of_step + load_MX
        if not self.weight:
            return 0.0
        return self.weight * count * torch.stack([balance_loss(routing) for routing in routings]).mean()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Lower the biases of experts with more rows than the mean, and raise those of the others.

        By a fixed step, without any gradient (Wang et al. 2024, arXiv 2408.15664).
        """
        if self._of_step is None:
            return
        load_MX = self.reduced(self._of_step)
        self._of_step = None
        self._of_log = load_MX if self._of_log is None else self._of_log + load_MX
        if self.bias_step:
            change_MX = self.bias_step * (load_MX.float().mean(1, keepdim=True) - load_MX).sign()
            with torch.no_grad():
                for router, change_X in zip(self.routers, change_MX, strict=True):
                    assert router.expert_bias is not None, "checked by check_balance"
                    router.expert_bias.add_(like(router.expert_bias, change_X))

    def logged(self) -> dict[str, float]:
        """Share of rows of each expert since the last call, over all layers, and the largest of a layer; 1 is even."""
        if self._of_log is None:
            return {}
        share_MX = self._of_log / self._of_log.sum(1, keepdim=True).clamp(min=1) * self._of_log.shape[1]
        self._of_log = None
        loads = {f"expert_load_{expert}": load for expert, load in enumerate(share_MX.mean(0).tolist())}
        return loads | {"expert_load_max": float(share_MX.max())}


def check_balance(training: Training, config: ModelConfig) -> None:
    """Refuse a balance between experts of a network that cannot have it.

    Raises:
        UserError: there are no experts, or none of them has a bias.
    """
    for name in ("balance_loss", "balance_bias"):
        if getattr(training, name) and config.experts is None:
            raise UserError(
                f"{name} is {getattr(training, name):g}, but the network has no experts: leave it out, or make some "
                "with anyorder convert --experts."
            )
    if training.balance_bias and config.experts is not None and config.experts.bias == "none":
        raise UserError(
            f"balance_bias is {training.balance_bias:g}, but the experts have no biases: give balance_loss, or a "
            "network whose experts have bias 'choice'."
        )
