"""Canvases in which phrasings stand side by side, for ways of writing that fill canvases.

Whatever a network sees in its way of writing, it sees here too, but no phrasing sees another one. All other rows see
all phrasings, corrected as in fusion from left to right, so that N copies of a phrasing are the single one exactly.

Shape suffixes: B canvases, L places of the longest, R places that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anyorder.attention import BiasTerm, Tempered
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.fusion.layout import SEGMENT, FusionLayout
from anyorder.decoding.fusion.weighting import Correction, corrected
from anyorder.visibility import Visibility, key_is, query_is, same


def apart() -> Visibility:
    """Phrasings do not see each other; narrows another visibility."""
    return ~(query_is("part", SEGMENT) & key_is("part", SEGMENT)) | same("segment")


class Sight(NamedTuple):
    """How places of canvases are read, besides what the way of writing says.

    Attributes:
        labels: "position", "part" and "segment", each `[batch, places]`.
        bias, tempered, rotary_positions: as `Llama.prepare` takes them.
    """

    labels: dict[str, Tensor]
    bias: list[BiasTerm]
    tempered: Tempered | None
    rotary_positions: Tensor | None


class FusedCanvases:
    """Where the tokens of fused questions and of their answers stand.

    Args:
        layouts: of the questions.
        answers: tokens to be written to each.
        weights, correction: as `corrected` takes them.
        device: of the network.
    """

    def __init__(
        self,
        layouts: Sequence[FusionLayout],
        answers: Sequence[int],
        weights: Sequence[Sequence[float]],
        correction: Correction,
        device: torch.device,
    ) -> None:
        self.canvases = [[*layout.token_ids, *[BLANK] * new] for layout, new in zip(layouts, answers, strict=True)]
        self.lengths = [layout.next_place + new for layout, new in zip(layouts, answers, strict=True)]
        self._bias, self._tempered = corrected(layouts, weights, correction)
        shape = (len(layouts), max(map(len, self.canvases)))
        self._place_BL = torch.zeros(shape, dtype=torch.float64, device=device)
        self._label_BL = {name: torch.zeros(shape, dtype=torch.long, device=device) for name in LABELS}
        for b, (layout, new) in enumerate(zip(layouts, answers, strict=True)):
            self._place_BL[b, : layout.length + new] = layout.rotary_positions(new, device)[0]
            labels = layout.labels(new, device)
            for name in LABELS:
                self._label_BL[name][b, : layout.length + new] = labels[name][0]
        self._whole = bool((self._place_BL == self._label_BL["position"]).all())

    def sight(self, rows: Sequence[int], at_BR: Tensor) -> Sight:
        """How these places are read, of the canvases with these indices."""
        row_B = torch.tensor(rows, device=at_BR.device)
        return Sight(
            labels={name: label_BL[row_B].gather(1, at_BR) for name, label_BL in self._label_BL.items()},
            bias=[BiasTerm(term.relation, term.value_per_sample(at_BR.device)[row_B]) for term in self._bias],
            tempered=self._tempered,
            rotary_positions=None if self._whole else self._place_BL[row_B].gather(1, at_BR),
        )


LABELS = ("position", "part", "segment")
"""What rows carry."""
