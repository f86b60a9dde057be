"""Two networks for benchmarks/any_order.py from one checkpoint, on the same texts.

Run: python benchmarks/any_order_train.py stories260K.bin tok512.bin tinystories.txt FOLDER

`FOLDER/left-to-right` goes on learning the next token. `FOLDER/any-order` learns to write in any order: of three texts
two are written as a whole (in random order, in random groups, from left to right), and of one a gap is written into
what is given. The last twentieth of the text is not learnt. Takes about half an hour on a busy core.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER
from anyorder.objectives import Autoregressive, Batch, Objective, summed_loss
from anyorder.objectives.permutation import Permutation
from anyorder.objectives.schedules import Schedule
from anyorder.orders.kinds import LeftToRight, Order, Random, RightToLeft, Spans
from anyorder.utils.rng import generator

LENGTH, BATCH, LEARNING_RATE, HELD_BACK = 96, 16, 3e-3, 0.05
ORDERS: tuple[tuple[float, Order], ...] = (
    (0.40, Random()), (0.60, LeftToRight()), (0.65, RightToLeft()), (0.80, Random(size=2)), (0.90, Random(size=4)),
    (1.00, Spans(length=4)),
)  # fmt: skip
"""Orders with the share of texts up to which each is drawn."""


class Several(Schedule):
    """Any of `ORDERS`."""

    def order(self, step: int, u: float) -> Order:
        return next(order for share, order in ORDERS if u <= share)


class WithGaps(Permutation):
    """In one of three texts, only a gap of 1 to 24 tokens is learnt; what stands around it is one group, given."""

    def plan(self, batch: Batch, seed: int) -> anyorder.GroupPlan:
        loss_mask_BL = batch.loss_mask_BL.clone()
        for row, sample in enumerate(batch.sample_B.tolist()):
            draws = generator("gap", seed, sample)
            if float(torch.rand((), generator=draws)) < 1 / 3:
                size = int(torch.randint(1, 25, (), generator=draws))
                start = int(torch.randint(1, LENGTH - size, (), generator=draws))
                loss_mask_BL[row, :start] = loss_mask_BL[row, start + size :] = False
        return super().plan(dataclasses.replace(batch, loss_mask_BL=loss_mask_BL), seed)


def rows_of(text: str, tokenizer: PreTrainedTokenizerBase, bos_token_id: int) -> tuple[Tensor, Tensor]:
    """Rows `[rows, LENGTH]` that begin with the token that begins a text: those to learn, and those held back."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    pieces_NL = ids[: len(ids) // (LENGTH - 1) * (LENGTH - 1)].view(-1, LENGTH - 1)
    rows_NL = torch.cat((torch.full((len(pieces_NL), 1), bos_token_id), pieces_NL), 1)
    cut = int(len(rows_NL) * (1 - HELD_BACK))
    return rows_NL[:cut], rows_NL[cut:]


def train(model: Llama, objective: Objective, rows_NL: Tensor, steps: int, name: str) -> None:
    """In place; says the loss now and then."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, betas=(0.9, 0.95))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    order = torch.randperm(len(rows_NL), generator=torch.Generator().manual_seed(0))
    begun, total = time.time(), 0.0
    for step in range(steps):
        sample_B = torch.arange(step * BATCH, (step + 1) * BATCH)
        ids_BL = rows_NL[order[sample_B % len(order)]]
        everywhere_BL = torch.ones_like(ids_BL, dtype=torch.bool)
        batch = Batch(
            ids_BL=ids_BL, valid_BL=everywhere_BL, loss_mask_BL=everywhere_BL & (torch.arange(LENGTH) > 0),
            document_BL=torch.zeros_like(ids_BL), position_BL=torch.arange(LENGTH).expand_as(ids_BL),
            sample_B=sample_B, step=step,
        )  # fmt: skip
        inputs = objective.inputs(batch, seed=0)
        loss = summed_loss(model, inputs) / inputs.count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(f"{name}: step {step + 1}, loss {total / 100:.3f}, {time.time() - begun:.0f} s", flush=True)
            total = 0.0
    model.eval()


def main(arguments: Sequence[str]) -> None:
    """Trains and saves both networks."""
    checkpoint, tokenizer_file, text_file, folder = arguments
    for name, objective, steps in (
        ("any-order", WithGaps(schedule=Several()), 1600),
        ("left-to-right", Autoregressive(), 400),  # it has little to learn
    ):
        model, tokenizer = anyorder.load(checkpoint, tokenizer=tokenizer_file, device="cpu")
        learnt_NL, _ = rows_of(Path(text_file).read_text(encoding="utf-8"), tokenizer, model.config.bos_token_id or 0)
        if name == "any-order":
            model = adapt(model, (ANY_ORDER,))
        train(model, objective, learnt_NL, steps, name)
        anyorder.save(model, tokenizer, Path(folder) / name)


if __name__ == "__main__":
    main(sys.argv[1:])
