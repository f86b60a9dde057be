"""A mode of your own: blocks from both ends in turn. Run: python examples/own_mode.py CHECKPOINT"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.checkpoints.mask_token import with_mask_token
from anyorder.decoding.canvas import BLANK, PLAIN, CanvasLayout, check_canvases
from anyorder.decoding.loop import Choice, Queries, Reader, Text, by_sampling, decode
from anyorder.model.llama import Llama
from anyorder.model.modes import Mode
from anyorder.modes import Decoder, LearningOptions, ModeEntry, ModeKind, Options, exact_log_probs, register
from anyorder.objectives import Batch, Objective, TrainingInputs, predictions
from anyorder.orders.names import read_order
from anyorder.training import Training, fit
from anyorder.utils.ragged import log_probs_of, pad_right
from anyorder.visibility import block_diffusion, documents, not_after


def turns(blank_BL: Tensor, size: int) -> Tensor:
    """The turn of each position: 0 for given tokens; then the first block of blanks, the last, the second, ..."""
    block_BL, last_B1 = (blank_BL.cumsum(1) - 1) // size, (blank_BL.sum(1, keepdim=True) - 1) // size
    return torch.where(blank_BL, 1 + torch.minimum(2 * block_BL, 2 * (last_B1 - block_BL) + 1), 0)


class BothEndsText(Text):
    """A canvas, of which the block with the lowest turn is written next."""

    def __init__(self, sample_id: int, canvas: Sequence[int], rng: Any, ends: Sequence[int], size: int) -> None:
        super().__init__(sample_id, canvas, rng, ends)
        self.turns = turns(torch.tensor([canvas]) == BLANK, size)[0].tolist()
        self.turn = 1

    def queries(self) -> Sequence[int]:
        return [at for at, turn in enumerate(self.turns) if turn == self.turn]

    def commit(self, choices: Sequence[Choice]) -> Sequence[Choice]:
        for choice in choices:
            self.tokens[choice.position] = choice.token_id
        self.turn += 1
        return choices

    @property
    def remaining(self) -> bool:
        return self.turn <= max(self.turns)


class BothEndsReader(Reader[BothEndsText]):
    """Reads each canvas up to the block whose turn it is, without a cache."""

    def __init__(self, model: Llama, mask_token_id: int) -> None:
        self.model, self.mask_token_id = model, mask_token_id

    def logits(self, queries: Queries[BothEndsText]) -> Tensor:
        self.passes += 1
        starts, device = [0] * len(queries), self.model.device
        ids_BL, position_BL, valid_BL = pad_right([text.tokens for text in queries], starts, device)
        block_BL = pad_right([text.turns for text in queries], starts, device)[0]
        turn_B1 = torch.tensor([[text.turn] for text in queries], device=device)
        valid_BL &= block_BL <= turn_B1
        views = self.model.prepare(not_after("block"), {"position": position_BL, "block": block_BL}, valid=valid_BL)
        hidden_BLE = self.model.hidden(ids_BL.masked_fill(ids_BL == BLANK, self.mask_token_id), views)
        rows = [(sample, at) for sample, positions in enumerate(queries.values()) for at in positions]
        return self.model.logits(hidden_BLE[tuple(torch.tensor(rows, device=device).T)])


@dataclass(frozen=True, kw_only=True)
class BothEndsFilling(Objective):
    """All blocks in one pass: masks for the text, which see earlier blocks of the text itself, behind them."""

    mode: Mode

    @property
    def modes(self) -> tuple[Mode, ...]:
        return (self.mode,)

    def inputs(self, batch: Batch, seed: int) -> TrainingInputs:
        predicted_BL = batch.valid_BL & batch.loss_mask_BL
        sample_N, row_N = predicted_BL.nonzero(as_tuple=True)
        block_BL, mask = turns(predicted_BL, self.mode.block_length or 1), self.mode.mask_token_id or 0
        noised_BR = torch.cat((torch.ones_like(block_BL), torch.zeros_like(block_BL)), 1)
        labels = {"position": batch.position_BL, "document": batch.document_BL, "block": block_BL}
        return TrainingInputs(
            ids_BR=torch.cat((torch.full_like(block_BL, mask), batch.ids_BL), 1), n_keys=noised_BR.shape[1],
            labels={name: label_BL.repeat(1, 2) for name, label_BL in labels.items()} | {"noised": noised_BR},
            visibility=block_diffusion() & documents(), valid_BR=torch.cat((predicted_BL, batch.valid_BL), 1),
            sample_N=sample_N, row_N=row_N, target_N=batch.ids_BL[sample_N, row_N],
            weight_N=torch.ones(len(row_N), dtype=torch.float64), count=float(len(row_N)),
        )  # fmt: skip


class BothEndsMode(ModeEntry):
    kind = ModeKind(
        name="both-ends", objective="both-ends-filling", mask_token=True, blocks=True,
        visibility=lambda mode: not_after("block"),
        labels=lambda mode, position_BL, valid_BL: {"block": turns(valid_BL, mode.block_length or 1)},
    )  # fmt: skip

    def decoder(self, model: Llama, mode: Mode, order: Any, options: Options, layout: CanvasLayout = PLAIN) -> Decoder:
        self.refuse_fused(layout)
        size = read_order(order).number or mode.block_length or 1  # "both-ends:8", or "both-ends"

        def steps(canvases: Any, sample_ids: Any, stop: Any) -> Any:
            check_canvases(model.config, canvases, sample_ids)
            rows = zip(sample_ids, canvases, options.sampling.generators(sample_ids), strict=True)
            texts = [BothEndsText(*row, model.config.eos_token_ids, size) for row in rows]
            return decode(texts, BothEndsReader(model, mode.mask_token_id or 0), by_sampling(options.sampling), stop)

        return steps

    def log_probs(self, model: Llama, mode: Mode, texts: Any, scored: Any, **_: Any) -> Any:
        batch = Batch.of(texts)
        loss_mask_BL = torch.zeros_like(batch.valid_BL)
        for sample, positions in enumerate(scored):
            loss_mask_BL[sample, list(positions)] = True
        inputs = BothEndsFilling(mode=mode).inputs(batch.replace(loss_mask_BL=loss_mask_BL), 0).to(model.device)
        log_prob_N = log_probs_of(predictions(model, inputs), inputs.target_N).detach()
        log_prob_B = log_prob_N.new_zeros(len(texts)).index_add(0, inputs.sample_N, log_prob_N)
        return exact_log_probs(log_prob_B.tolist(), scored)

    def objective(self, mode: Mode, options: LearningOptions) -> Objective:
        return BothEndsFilling(mode=mode)


def main() -> None:
    register(BothEndsMode())
    model, tokenizer = anyorder.load(sys.argv[1] if len(sys.argv) > 1 else "demo")
    assert tokenizer is not None, "the checkpoint comes without a tokenizer"
    model, mask = with_mask_token(model, tokenizer, "<|mask|>")
    mode = Mode(name="both-ends", shifted=False, mask_token_id=mask, block_length=4)
    model = adapt(model, [mode])
    text = tokenizer("Once upon a time there was a little girl named Lily.")["input_ids"]
    for _ in range(2):
        print(BothEndsMode().log_probs(model, mode, [text], [range(4, len(text))])[0])
        fit(model, "both-ends", [{"input_ids": text}], Training(steps=20, batch_size=1, learning_rate=1e-2))
    out = anyorder.generate(model, tokenizer, "Once [...] Lily.", order="both-ends:2", gap_tokens=12)
    print([(event.step, event.position) for event in out.trace.events], repr(out.full_text))


if __name__ == "__main__":
    main()
