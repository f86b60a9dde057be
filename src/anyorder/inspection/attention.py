"""What a network attends to: the weights of every head, statistics of them, and pictures.

The weights are those of the eager backend, which has a callback for them; the network is not changed.

Shape suffixes: N layers, H heads, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.huggingface.mixin import watch_attention
from anyorder.utils.files import whole_file

if TYPE_CHECKING:
    from anyorder.model.llama import Llama
    from anyorder.model.modes import Mode

MAPS = 64
"""Maps in a picture at most; beyond, there is one for each layer, the mean of its heads."""


class HeadStatistics(NamedTuple):
    """What a head does on average over the rows that are looked at; shares are of its weights.

    Attributes:
        layer, head: which one, from 0.
        entropy: of the weights of a row, in nats: 0 for a single token, log n for n tokens alike.
        distance: mean number of positions between a row and the tokens that it attends to.
        itself: share on the row's own token.
        first: share on the first token of the text, where heads rest that have nothing to do.
        ahead: share on tokens that come later.
        masks: share on mask tokens.
        prompt: share on the tokens of the prompt.
    """

    layer: int
    head: int
    entropy: float
    distance: float
    itself: float
    first: float
    ahead: float
    masks: float
    prompt: float


@dataclass(frozen=True)
class AttentionPatterns:
    """The attention of a pass over one text.

    Attributes:
        weights_NHLL: of each layer, head, row and key, float32 on the CPU; rows add up to 1.
        ids: the text.
        rows: those that the statistics are about.
        statistics: of each head.
    """

    weights_NHLL: Tensor
    ids: tuple[int, ...]
    rows: tuple[int, ...]
    statistics: tuple[HeadStatistics, ...]

    def of_layers(self) -> list[HeadStatistics]:
        """Means over the heads of each layer; their `head` is -1."""
        heads = self.weights_NHLL.shape[1]
        means = []
        for layer in range(len(self.weights_NHLL)):
            of_layer = self.statistics[layer * heads : (layer + 1) * heads]
            columns = [sum(column) / heads for column in list(zip(*of_layer, strict=True))[2:]]
            means.append(HeadStatistics(layer, -1, *columns))
        return means

    def save_plot(self, path: str | Path, labels: Sequence[str] | None = None) -> None:
        """Draw a picture with the map of every head, rows above each other, and the statistics of all heads.

        Args:
            path: new file; its ending decides the format, such as .png or .svg.
            labels: how the tokens read, to be written beside the maps of short texts.

        Raises:
            UserError: matplotlib is not installed, or does not know the kind of file, or the place is taken.
        """
        path = Path(path)
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise UserError("a plot needs matplotlib: install it with `pip install 'anyorder[plots]'`.") from error
        figure: Any = Figure(layout="constrained")
        maps = self.weights_NHLL
        if maps.shape[0] * maps.shape[1] > MAPS:
            maps = maps.mean(1, keepdim=True)
        n_layers, n_heads, length, _ = maps.shape
        fields = HeadStatistics._fields[2:]
        figure.set_size_inches(max(8.0, 1.5 * n_heads), 1.5 * n_layers + 2.4)
        above, below = figure.subfigures(2, 1, height_ratios=(1.5 * n_layers, 2.4))
        self._draw_maps(above, maps, labels if length <= 32 else None)
        values = torch.tensor([head[2:] for head in self.statistics])
        for axes, name, column in zip(below.subplots(1, len(fields)), fields, values.T, strict=True):
            high = column.max().item() if name in ("entropy", "distance") else 1.0
            image = axes.imshow(column.reshape(self.weights_NHLL.shape[:2]).numpy(), vmin=0, vmax=high, cmap="viridis")
            axes.set(title=name, xlabel="head", ylabel="layer" if name == fields[0] else None)
            axes.title.set_fontsize(9)
            axes.tick_params(labelsize=7)
            figure.colorbar(image, ax=axes, shrink=0.6).ax.tick_params(labelsize=6)
        try:
            with whole_file(path) as partial:
                figure.savefig(partial, dpi=110, format=path.suffix.removeprefix("."))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"plot {str(path)!r} is of an unknown kind: end its name in .png or .svg.") from error

    def _draw_maps(self, figure: Any, maps: Tensor, labels: Sequence[str] | None) -> None:
        n_layers, n_heads, length, _ = maps.shape
        for row, of_layer in enumerate(figure.subplots(n_layers, n_heads, squeeze=False)):
            for column, axes in enumerate(of_layer):
                axes.imshow(maps[row, column].sqrt().numpy(), vmin=0, vmax=1, cmap="magma", interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                if row == 0:
                    axes.set_title(f"head {column}" if n_heads > 1 else "mean of the heads", fontsize=8)
                if column == 0:
                    axes.set_ylabel(f"layer {row}", fontsize=8)
                if column == 0 and row == 0 and labels is not None:
                    axes.set_yticks(range(length), [repr(label)[1:-1] for label in labels], fontsize=3)


@torch.no_grad()
def analyze_attention_patterns(
    model: Llama,
    ids: Sequence[int] | Tensor,
    *,
    mode: Mode | str | None = None,
    prompt_length: int = 0,
    rows: Sequence[int] | None = None,
) -> AttentionPatterns:
    """Read a text once and measure the attention of every head.

    Args:
        model: the network, a transformers face too.
        ids: token ids of one text, mask tokens included.
        mode: the mode that writes, or its name, which says who may see whom; the network's default unless given.
            Content rows of "any-order" are read as if each came after those before it.
        prompt_length: tokens at the beginning that count as prompt.
        rows: those that the statistics are about, such as the masked ones; all unless given.

    Raises:
        UserError: the text is empty or has other ids, `rows` are not in it, or the network was not trained for `mode`.
    """
    config = model.config
    mode = config.mode(mode or config.default_mode) if mode is None or isinstance(mode, str) else mode
    text = torch.as_tensor(ids, dtype=torch.int64).reshape(-1) if isinstance(ids, Tensor) else torch.tensor([*ids])
    if not len(text) or not bool(((text >= 0) & (text < config.vocab_size)).all()):
        raise UserError(f"the text is {text.tolist()!r}: give at least one token id from 0 to {config.vocab_size - 1}.")
    chosen = tuple(range(len(text)) if rows is None else rows)
    if not chosen or not all(0 <= row < len(text) for row in chosen):
        raise UserError(f"rows is {list(chosen)!r}: give positions from 0 to {len(text) - 1}, at least one.")
    position_BL = torch.arange(len(text), device=model.device)[None]
    views, seen = watch_attention(model.prepare(mode.kind.visibility(mode), {"position": position_BL}, backend="eager"))
    model.hidden(text.to(model.device)[None], views)
    weights_NHLL = torch.cat(seen).float().cpu()
    masked_L = torch.zeros_like(text, dtype=torch.bool) if mode.mask_token_id is None else text == mode.mask_token_id
    return AttentionPatterns(
        weights_NHLL, tuple(text.tolist()), chosen, _statistics(weights_NHLL, chosen, masked_L, prompt_length)
    )


def _statistics(
    weights_NHLL: Tensor, rows: Sequence[int], masked_L: Tensor, prompt_length: int
) -> tuple[HeadStatistics, ...]:  # fmt: skip
    key_L = torch.arange(weights_NHLL.shape[-1])
    row_R = torch.tensor(rows)
    weights_NHRL = weights_NHLL[:, :, row_R].double()
    away_RL = key_L - row_R[:, None]
    amounts_RL = {
        "distance": away_RL.abs(),
        "itself": away_RL == 0,
        "first": (key_L == 0).expand_as(away_RL),
        "ahead": away_RL > 0,
        "masks": masked_L.expand_as(away_RL),
        "prompt": (key_L < prompt_length).expand_as(away_RL),
    }
    entropy_NH = torch.special.entr(weights_NHRL).sum(-1).mean(-1)
    means_NH = {name: (weights_NHRL * amount_RL).sum(-1).mean(-1) for name, amount_RL in amounts_RL.items()}
    n_layers, n_heads = entropy_NH.shape
    return tuple(
        HeadStatistics(
            layer, head, entropy_NH[layer, head].item(), **{name: m[layer, head].item() for name, m in means_NH.items()}
        )
        for layer in range(n_layers)
        for head in range(n_heads)
    )
