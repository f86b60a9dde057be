"""From scores to tokens: greedy or drawn, each row from a generator of its own.

Shapes: B rows, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from anyorder.errors import UserError
from anyorder.utils.annotations import check_fields, requirement
from anyorder.utils.ragged import pad
from anyorder.utils.reprs import changed_fields
from anyorder.utils.rng import generator

History = Sequence[Sequence[int]]
"""The token ids of each row so far, prompt and all."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most probable token; above 0, logits are divided by it and a token is drawn.
        top_k: only this many most probable tokens may be drawn (ties with the last of them stay).
        top_p: only the fewest tokens whose probabilities add up to this may be drawn.
        min_p: only tokens at least this many times as probable as the most probable one may be drawn.
        repetition_penalty: of tokens that the row has already, prompt included, positive logits are divided by
            this and negative ones multiplied by it; 1 changes nothing, more makes them rarer.
        seed: with the number of a row, decides the draws of that row.

    The filters are transformers', in its order: repetition penalty, temperature, top-k, top-p, min-p. All but the
    first keep the most probable token the most probable, so they change nothing at temperature 0, see `check_filters`.

    Raises:
        UserError: a field has a value that no distribution can have.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        require = requirement(self)
        warm = self.temperature >= 0
        require("temperature", warm, "give 0 for the most probable token, or a number above 0 to sample")
        some = self.top_k is None or self.top_k > 0
        require("top_k", some, "give a whole number above 0, or None to keep every token")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            holds = share is None or 0 < share <= 1
            require(name, holds, "give a probability above 0 and at most 1, or None to keep every token")
        penal = self.repetition_penalty > 0
        require("repetition_penalty", penal, "give a number above 0, such as 1.1, or 1 for no penalty")

    def __repr__(self) -> str:
        return changed_fields(self)

    def check_filters(self) -> None:
        """Refuse filters at temperature 0, where nothing is drawn; `top_p` 1, which keeps every token, may be given.

        Raises:
            UserError: see above.
        """
        for name, none in (("top_k", None), ("top_p", 1), ("min_p", None)):
            if self.temperature == 0 and getattr(self, name) not in (None, none):
                always = f"{name} is {getattr(self, name)!r} at temperature 0, where the most probable token is taken"
                raise UserError(f"{always}: give a temperature above 0, or leave out {name}.")

    @property
    def most_probable(self) -> bool:
        """Whether the choice is the network's most probable token, whatever came before."""
        return self.temperature == 0 and self.repetition_penalty == 1

    def generators(self, sample_ids: Iterable[int]) -> list[torch.Generator]:
        """Return a source of random numbers for each sample, which depends on the seed and its number alone."""
        return [generator(self.seed, sample_id) for sample_id in sample_ids]

    def _scores(self, logits_BV: Tensor, history: History | None) -> Tensor:
        """Return scores `[B, V]` after penalty and filters, in float32 at least, in float64 where tokens are drawn."""
        dtype = torch.float64 if self.temperature > 0 else torch.promote_types(logits_BV.dtype, torch.float32)
        scores_BV = self.penalized(logits_BV.to(dtype), history)
        for keep in self._filters():
            scores_BV = keep(None, scores_BV)  # type: ignore[arg-type]  # these read no ids
        return scores_BV

    def penalized(self, scores_BV: Tensor, history: History | None) -> Tensor:
        """Return the scores `[B, V]` after the repetition penalty; arguments and errors as in `choose`."""
        if self.repetition_penalty == 1:
            return scores_BV
        if history is None:
            raise UserError(f"repetition_penalty is {self.repetition_penalty} without ids before: give history.")
        # Whether a row has a token counts, not how often; an id beside the vocabulary pads, or is a row of an image.
        size = scores_BV.shape[-1]
        ids_BL = pad(history, scores_BV.device, filling=size)[0].clamp(max=size)
        penalize = RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty))
        return penalize(ids_BL, F.pad(scores_BV, (0, 1)))[:, :size]  # type: ignore[arg-type]

    def _filters(self) -> list[LogitsProcessor]:
        if self.temperature == 0:
            return []
        filters: list[LogitsProcessor] = [TemperatureLogitsWarper(float(self.temperature))]
        if self.top_k is not None:
            filters.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None and self.top_p < 1:
            filters.append(TopPLogitsWarper(self.top_p))
        if self.min_p is not None:
            filters.append(MinPLogitsWarper(self.min_p))
        return filters

    def choose(
        self, logits_BV: Tensor, generators: Sequence[torch.Generator], history: History | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose a token for each row.

        Args:
            logits_BV: the scores of one position of each row.
            generators: those of the same rows; each draws one number where tokens are drawn.
            history: the ids of the same rows so far; only a repetition penalty needs them.

        Returns:
            Token ids and the logarithms of their probabilities, both `[B]`: see `distribution`.

        Raises:
            UserError: there is a repetition penalty and no history.
        """
        scores_BV = self._scores(logits_BV, history)
        log_probs_BV = scores_BV.log_softmax(dim=-1)
        token_B = scores_BV.argmax(dim=-1) if self.temperature == 0 else draw(log_probs_BV.exp(), generators)
        return token_B, log_probs_BV.gather(-1, token_B[:, None])[:, 0]

    def distribution(self, logits_BV: Tensor, history: History | None = None) -> tuple[Tensor, Tensor]:
        """Return the distribution that `choose` draws from, in float64, and its logarithm, both `[B, V]`.

        At temperature 0, where nothing is drawn, the distribution is 1 for the most probable token, and the logarithm
        is the network's own after the repetition penalty: log softmax of the logits.
        """
        scores_BV = self._scores(logits_BV, history)
        log_probs_BV = scores_BV.log_softmax(dim=-1)
        if self.temperature > 0:
            return log_probs_BV.exp(), log_probs_BV
        return F.one_hot(scores_BV.argmax(dim=-1), scores_BV.shape[-1]).double(), log_probs_BV


def draw(probabilities_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw a token for each row, `[B]`, with one number of each generator; probabilities need not sum to 1."""
    # The inverse of the cumulative distribution: one number per row, the same on every device. A token of probability
    # 0 does not raise the sum, so "right" steps over it; and u < 1 keeps below the total.
    u_B = torch.cat([torch.rand(1, dtype=torch.float64, generator=source) for source in generators])
    total_BV = probabilities_BV.cumsum(dim=-1)
    drawn_B1 = u_B.to(total_BV.device)[:, None] * total_BV[:, -1:]
    return torch.searchsorted(total_BV, drawn_B1, right=True)[:, 0].clamp(max=total_BV.shape[-1] - 1)
