"""What all objectives share: `Batch`, the samples, and `TrainingInputs`, the rows, visibility, targets and weights.

An objective knows no network. It makes training inputs of a batch, on the CPU and without weights, so that they can be
tested by hand and made ahead by the workers that load data; `loss` runs a network on them. The same sample with the
same seed has the same training inputs in any batch.

Shape suffixes: B batch, L tokens of a sample, R rows, N predictions of the whole batch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anyorder.errors import UserError
from anyorder.model.modes import Mode
from anyorder.visibility import Visibility, query_is


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of a step, padded on the right.

    Attributes:
        ids_BL: token ids, int64; any id where there is padding.
        valid_BL: which entries are tokens, boolean.
        loss_mask_BL: which tokens may be predicted, boolean: all in pre-training, the answer (with the end tokens
            behind it) in fine-tuning.
        document_BL: number of each token's document within its sample; all 0 unless documents are packed.
        position_BL: position of each token within its document.
        sample_B: number of each sample since training began, never used twice: it decides the sample's draws.
        step: number of the optimizer step, from 0: it decides what is drawn once a step, and how far schedules are.
    """

    ids_BL: Tensor
    valid_BL: Tensor
    loss_mask_BL: Tensor
    document_BL: Tensor
    position_BL: Tensor
    sample_B: Tensor
    step: int = 0

    @classmethod
    def of(
        cls, texts: Sequence[Sequence[int]], prompt_lengths: Sequence[int] | None = None, first_sample: int = 0,
        step: int = 0,
    ) -> Batch:  # fmt: skip
        """Pad lists of token ids. Of each, tokens before its prompt length are not in the loss mask.

        Raises:
            UserError: there is no text, an empty one, or not one prompt length for each.
        """
        if not texts or not all(texts):
            raise UserError(f"texts is {texts!r}: give at least one text, and a token in each.")
        prompt_lengths = [0] * len(texts) if prompt_lengths is None else prompt_lengths
        if len(prompt_lengths) != len(texts):
            raise UserError(
                f"there are {len(prompt_lengths)} prompt lengths for {len(texts)} texts: give one for each."
            )
        at_L = torch.arange(max(map(len, texts)))
        valid_BL = at_L < torch.tensor([len(text) for text in texts]).unsqueeze(1)
        return cls(
            ids_BL=torch.tensor([[*text, *[0] * (len(at_L) - len(text))] for text in texts]),
            valid_BL=valid_BL,
            loss_mask_BL=valid_BL & (at_L >= torch.tensor(prompt_lengths).unsqueeze(1)),
            document_BL=torch.zeros(valid_BL.shape, dtype=torch.int64),
            position_BL=at_L.expand(valid_BL.shape),
            sample_B=torch.arange(first_sample, first_sample + len(texts)),
            step=step,
        )

    @property
    def count(self) -> float:
        """Number of tokens in the loss mask."""
        return float((self.loss_mask_BL & self.valid_BL).sum())

    @property
    def begins_document(self) -> Tensor:
        """Which tokens are the first of their document, boolean `[batch, length]`."""
        return begins(self.document_BL)

    def samples(self) -> Iterator[tuple[int, int]]:
        """Yield the number of each sample, and how many tokens it has."""
        return zip(self.sample_B.tolist(), self.valid_BL.sum(1).tolist(), strict=True)

    def replace(self, **changes: Any) -> Batch:
        """Copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def only(self, rows: Sequence[int]) -> Batch:
        """Select these samples, without columns in which none of them has a token."""
        chosen = {name: value[list(rows)] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return self.replace(**chosen).trimmed()

    def trimmed(self) -> Batch:
        """Remove columns behind the end of the longest sample."""
        longest = int(self.valid_BL.sum(1).max())
        return self._with_columns(lambda value_BL: value_BL[:, :longest])

    def padded(self, length: int) -> Batch:
        """Append columns of padding, up to `length`."""
        more = length - self.ids_BL.shape[1]
        return self._with_columns(lambda value_BL: F.pad(value_BL, (0, more)))

    def _with_columns(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Change all that has a column for each token."""
        return self.replace(**{name: change(value) for name, value in vars(self).items() if name.endswith("_BL")})


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """The rows that the network reads, and the tokens that it predicts.

    Attributes:
        ids_BR: token ids of the rows, int64. Rows behind the first `n_keys` are query rows, whose ids are not read.
        labels: of each row, each int64 `[batch, rows]`, "position" among them.
        visibility: who sees whom.
        n_keys: the first `n_keys` rows are those of tokens, which are keys, too; the others are query rows.
        valid_BR: which rows are no padding, boolean.
        sample_N, row_N: the rows whose logits count, by sample in the batch and by row.
        target_N: the token that each of them predicts.
        weight_N: what its cross-entropy is multiplied by, float64.
        count: what the sum is divided by. It adds up over batches, so that the loss of several is that of one large
            batch.
    """

    ids_BR: Tensor
    labels: Mapping[str, Tensor]
    visibility: Visibility
    n_keys: int
    valid_BR: Tensor
    sample_N: Tensor
    row_N: Tensor
    target_N: Tensor
    weight_N: Tensor
    count: float

    def to(self, device: torch.device) -> TrainingInputs:
        """Move to another device."""

        def moved(values: Mapping[str, Any]) -> dict[str, Any]:
            tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        return dataclasses.replace(self, labels=moved(self.labels), **moved(vars(self)))

    @classmethod
    def join(cls, all_inputs: Sequence[TrainingInputs]) -> TrainingInputs:
        """Join several for one pass, each with its own visibility; samples are concatenated in this order."""
        if len(all_inputs) == 1:
            return all_inputs[0]
        n_keys = max(inputs.n_keys for inputs in all_inputs)
        n_queries = max(inputs.ids_BR.shape[1] - inputs.n_keys for inputs in all_inputs)

        def joined(values: Sequence[Tensor]) -> Tensor:
            """Rows of tokens padded to `n_keys`, query rows to `n_queries`."""
            padded = []
            for inputs, value_BR in zip(all_inputs, values, strict=True):
                tokens, queries = value_BR[:, : inputs.n_keys], value_BR[:, inputs.n_keys :]
                more = (n_keys - tokens.shape[1], n_queries - queries.shape[1])
                padded.append(torch.cat((F.pad(tokens, (0, more[0])), F.pad(queries, (0, more[1]))), 1))
            return torch.cat(padded)

        rules = [query_is(_PART, part) & inputs.visibility for part, inputs in enumerate(all_inputs)]
        firsts = itertools.accumulate((len(inputs.ids_BR) for inputs in all_inputs), initial=0)
        labels = {
            name: joined([inputs.labels.get(name, torch.zeros_like(inputs.ids_BR)) for inputs in all_inputs])
            for name in sorted({name for inputs in all_inputs for name in inputs.labels})
        }
        labels[_PART] = joined([torch.full_like(inputs.ids_BR, part) for part, inputs in enumerate(all_inputs)])
        return cls(
            ids_BR=joined([inputs.ids_BR for inputs in all_inputs]),
            labels=labels,
            visibility=functools.reduce(operator.or_, rules),
            n_keys=n_keys,
            valid_BR=joined([inputs.valid_BR for inputs in all_inputs]),
            sample_N=torch.cat([first + inputs.sample_N for first, inputs in zip(firsts, all_inputs, strict=False)]),
            row_N=torch.cat(
                [inputs.row_N + (n_keys - inputs.n_keys) * (inputs.row_N >= inputs.n_keys) for inputs in all_inputs]
            ),
            target_N=torch.cat([inputs.target_N for inputs in all_inputs]),
            weight_N=torch.cat([inputs.weight_N for inputs in all_inputs]),
            count=sum(inputs.count for inputs in all_inputs),
        )


_PART = "inputs"
"""Label of the rows of several inputs: the number of their own."""


class Objective(ABC):
    """Turns samples into training inputs, with draws that depend on (seed, sample) or (seed, step) alone.

    Attributes:
        unit: what `TrainingInputs.count` counts.
    """

    unit: ClassVar[Literal["token", "sample"]] = "token"

    @property
    @abstractmethod
    def modes(self) -> tuple[Mode, ...]:
        """The modes that it trains."""

    @abstractmethod
    def inputs(self, batch: Batch, seed: int) -> TrainingInputs:
        """Make the training inputs of these samples."""


def begins(label: Tensor) -> Tensor:
    """Which entries are the first of a run of equal ones along the last dimension, boolean."""
    return F.pad(label.diff() != 0, (1, 0), value=True)
