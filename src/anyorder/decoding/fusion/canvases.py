"""Fused questions as canvases, for decoding in any order and by masked diffusion.

A mode's own visibility holds here too, except that no phrasing sees another one. All other rows see all phrasings, with
the correction of fusion from left to right, so that N copies of a phrasing are the single one exactly.

Shape suffixes: B canvases, L positions of the longest, R positions that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anyorder.decoding.canvas import BLANK, CanvasLayout
from anyorder.decoding.fusion.layout import SEGMENT, Question, lay_out
from anyorder.decoding.fusion.method import Fusion
from anyorder.decoding.fusion.weighting import corrected
from anyorder.visibility import Visibility, key_is, query_is, same

APART = ~(query_is("part", SEGMENT) & key_is("part", SEGMENT)) | same("segment")
"""The visibility in which no phrasing sees another one, to narrow that of a mode."""


class FusedCanvases(CanvasLayout):
    """Canvases of fused questions and their answers.

    Args:
        questions: one for each canvas.
        fusion: the positions and the correction.
        answers: number of tokens to write to each.
        device: of the network.

    Attributes:
        canvases: token ids, `BLANK` where a token is to be written.
        lengths: positions that each canvas takes, fewer than it has tokens where segments share some.
    """

    def __init__(
        self, questions: Sequence[Question], fusion: Fusion, answers: Sequence[int], device: torch.device
    ) -> None:  # fmt: skip
        layouts = [
            question.layout(fusion.positions).extended([BLANK] * count)
            for question, count in zip(questions, answers, strict=True)
        ]
        self.canvases = [list(layout.token_ids) for layout in layouts]
        self.lengths = [layout.next_place for layout in layouts]
        self._rows = lay_out([layout.whole for layout in layouts], device)
        self._place_BL = self._rows.fractional_places
        self._corrections = corrected(questions, fusion.correction, device)

    def narrow(
        self, rows: Sequence[int], visibility: Visibility, labels: dict[str, Tensor]
    ) -> tuple[Visibility, dict[str, Tensor], dict[str, Any]]:
        """Keep phrasings apart, and let them share positions; see `CanvasLayout.narrow`."""
        at_BR = labels["position"]
        row_B = torch.tensor(rows, device=at_BR.device)
        own = {name: label_BL[row_B].gather(1, at_BR) for name, label_BL in self._rows.labels.items()}
        place_BR = None if self._place_BL is None else self._place_BL[row_B].gather(1, at_BR)
        others = {"rotary_positions": place_BR, "corrections": self._corrections.select(row_B)}
        return visibility & APART, {**labels, **own}, others
