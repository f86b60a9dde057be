"""Training from left to right."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from anyorder.errors import UserError
from anyorder.model.llama import Llama


class _Rows(Dataset):
    """Texts as `Trainer` wants them: labels are the tokens themselves, and the network's loss shifts them by one."""

    def __init__(self, ids_NL: Tensor) -> None:
        self.ids_NL = ids_NL

    def __len__(self) -> int:
        return len(self.ids_NL)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids_NL[index], "labels": self.ids_NL[index]}


class _CausalLoss(nn.Module):
    """What `Trainer` trains: it writes into a model's `config`, and ours is frozen."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": self.model(input_ids, labels=labels).loss}


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
    """Train a network on rows of tokens with transformers' `Trainer`: AdamW, warm-up, then a cosine down to 0.

    Args:
        model: the network; trained in place, on the device that `Trainer` chooses, and ready to write afterwards.
        ids_NL: int64 `[rows, length]`, token ids.
        steps: optimizer steps.
        batch_size: rows in each step.
        learning_rate: the highest, at the end of the warm-up (5 % of the steps).
        weight_decay: of the matrices; norms and biases have none.
        seed: decides the order of the rows.
        callbacks: told about each step and, every 10, of the mean loss.

    Returns:
        Mean loss of the last steps (at most 10) in nats per token.

    Raises:
        UserError: a number is not above 0, the seed has more than 32 bits, or accelerate, which `Trainer` needs, is
            not installed.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}: give a whole number from 0 to {2**32 - 1}.")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("learning_rate", learning_rate)):
        if not value > 0:
            raise UserError(f"{name} is {value}: give a number above 0.")
    if importlib.util.find_spec("accelerate") is None:
        raise UserError("training needs the package accelerate, which is not installed: pip install 'anyorder[train]'.")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            adam_beta2=0.95,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,  # below 1: a share of the steps
            logging_steps=min(10, steps),
            save_strategy="no",
            report_to=[],
            seed=seed,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=_CausalLoss(model), args=arguments, train_dataset=_Rows(ids_NL), callbacks=list(callbacks)
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1])
