"""Images as rows: the vision encoder of Llama 4 and the projection of what it sees to the width of the text.

An image is cut into square tiles, each tile into patches. A transformer reads the patches of a tile at once; groups of
neighbouring patches are then joined, and each group becomes one row beside the embeddings of tokens. Parameters have
Hugging Face's names.

Shape suffixes: T tiles, P patches, R rows (P and the class row), H heads, D head dimension, V hidden size of the
encoder, E hidden size of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyorder.utils.annotations import AtMost, check_fields, requirement

Size = Annotated[int, AtMost(2**20)]

CHANNELS = 3
"""Red, green, blue."""

NORM_EPS = 1e-5
"""Of the layer norms, in all published networks."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision encoder of a network, and the tokens that stand for images in a text.

    Attributes:
        hidden_size: width of a row in the encoder.
        intermediate_size: inner width of its feed-forward networks.
        num_hidden_layers, num_attention_heads: of the encoder.
        output_size: width of the adapter, whose rows are projected to the width of the text.
        image_size: side of a square tile, in pixels.
        patch_size: side of a square patch, in pixels.
        merge: so many by so many neighbouring patches become one row (pixel shuffle with the ratio 1 / merge).
        rope_theta: base of the rotary embedding of the two coordinates of a patch.
        max_tiles: tiles that an image is cut into at most.
        image_token_id: the token that stands for a row of an image.

    Raises:
        UserError: a field has a value that no network can have.
    """

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Annotated[int, AtMost(4096)]
    num_attention_heads: Size
    output_size: Size
    image_size: Size
    patch_size: Size = 14
    merge: Size = 2
    rope_theta: float = 10_000.0
    max_tiles: Size = 16
    image_token_id: int = 200_092

    def __post_init__(self) -> None:
        check_fields(self, "vision field {!r}")
        require = requirement(self, "vision field {!r}")
        for name in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "output_size", "image_size",
            "patch_size", "merge", "rope_theta", "max_tiles",
        ):  # fmt: skip
            require(name, getattr(self, name) > 0, "give a number above 0")
        require("image_token_id", self.image_token_id >= 0, "give the id of a token")
        side = self.merge * self.patch_size
        remedy = f"give a multiple of {side}, patch_size times merge"
        require("image_size", self.image_size % side == 0, remedy)
        remedy = "give a multiple of 4 times num_attention_heads, since two coordinates turn pairs"
        require("hidden_size", self.hidden_size % (4 * self.num_attention_heads) == 0, remedy)

    @property
    def grid(self) -> int:
        """Patches along a side of a tile."""
        return self.image_size // self.patch_size

    @property
    def rows_of_tile(self) -> int:
        """Rows of text that a tile becomes."""
        return (self.grid // self.merge) ** 2

    @property
    def head_dim(self) -> int:
        """Width of a head of the encoder."""
        return self.hidden_size // self.num_attention_heads


class VisionModel(nn.Module):
    """Patches, class row, positions, layers, and an adapter: from tiles to rows of `output_size`."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.patch_embedding = PatchEmbedding(config)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding_vlm = nn.Parameter(torch.empty(config.grid**2 + 1, width))
        self.layernorm_pre = nn.LayerNorm(width, NORM_EPS)
        self.model = Encoder(config)
        self.layernorm_post = nn.LayerNorm(width, NORM_EPS)
        self.vision_adapter = Adapter(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the class row and the positions, as transformers does; the layers draw themselves."""
        for parameter in (self.class_embedding, self.positional_embedding_vlm):
            nn.init.normal_(parameter, std=self.config.hidden_size**-0.5)

    def forward(self, pixels_TCXX: Tensor) -> Tensor:
        """Rows `[tiles, rows_of_tile, output_size]` of tiles `[tiles, channels, image_size, image_size]`."""
        patch_TPV = self.patch_embedding(pixels_TCXX)
        # The class row is the last one, and turned by no angle.
        class_T1V = self.class_embedding.expand(len(patch_TPV), 1, -1)
        row_TRV = torch.cat((patch_TPV, class_T1V), 1) + self.positional_embedding_vlm
        row_TRV = self.layernorm_post(self.model(self.layernorm_pre(row_TRV), angles(self.config, pixels_TCXX.device)))
        merged: Tensor = self.vision_adapter(row_TRV[:, :-1])
        return merged


class PatchEmbedding(nn.Module):
    """A linear map of the pixels of each patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.linear = nn.Linear(CHANNELS * config.patch_size**2, config.hidden_size, bias=False)

    def forward(self, pixels_TCXX: Tensor) -> Tensor:
        unfolded = F.unfold(pixels_TCXX, kernel_size=self.patch_size, stride=self.patch_size)
        patch_TPV: Tensor = self.linear(unfolded.transpose(1, 2))
        return patch_TPV


class Encoder(nn.Module):
    """The layers of the encoder."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, row_TRV: Tensor, angle_RD: Tensor) -> Tensor:
        for layer in self.layers:
            row_TRV = layer(row_TRV, angle_RD)
        return row_TRV


class EncoderLayer(nn.Module):
    """`h = x + attention(norm(x))`, then `h + feed_forward(norm(h))`; every row of a tile sees every other."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, NORM_EPS)
        self.self_attn = EncoderAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, NORM_EPS)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_size)

    def forward(self, row_TRV: Tensor, angle_RD: Tensor) -> Tensor:
        h_TRV = row_TRV + self.self_attn(self.input_layernorm(row_TRV), angle_RD)
        out_TRV: Tensor = h_TRV + self.mlp(self.post_attention_layernorm(h_TRV))
        return out_TRV


class EncoderAttention(nn.Module):
    """Multi-head attention with biases, whose queries and keys are turned by the two coordinates of their patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, row_TRV: Tensor, angle_RD: Tensor) -> Tensor:
        q_THRD, k_THRD, v_THRD = (
            project(row_TRV).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed_THRD = F.scaled_dot_product_attention(turned(q_THRD, angle_RD), turned(k_THRD, angle_RD), v_THRD)
        out_TRV: Tensor = self.o_proj(mixed_THRD.transpose(1, 2).flatten(2))
        return out_TRV


class MLP(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, width: int, inner: int, out: int, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner, bias=bias)
        self.fc2 = nn.Linear(inner, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Adapter(nn.Module):
    """Joins neighbouring patches, and maps each group to a row of `output_size`."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merge = config.merge
        self.mlp = MLP(config.hidden_size * config.merge**2, config.output_size, config.output_size, bias=False)

    def forward(self, patch_TPV: Tensor) -> Tensor:
        return F.gelu(self.mlp(merged(patch_TPV, self.merge)))


class Projector(nn.Module):
    """From the adapter's width to that of the text."""

    def __init__(self, config: VisionConfig, text_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.output_size, text_size, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        projected: Tensor = self.linear_1(rows)
        return projected


def merged(patch_TPV: Tensor, merge: int) -> Tensor:
    """Join each square of `merge` by `merge` patches: `[tiles, P, V]` to `[tiles, P / merge**2, V * merge**2]`.

    Squares follow each other as their patches do, row by row; within one, too.
    """
    grid = round(patch_TPV.shape[1] ** 0.5)
    square_TYyXxV = patch_TPV.unflatten(1, (grid // merge, merge, grid // merge, merge))
    return square_TYyXxV.transpose(2, 3).flatten(3).flatten(1, 2)


def angles(config: VisionConfig, device: torch.device) -> Tensor:
    """Angles of the rows of a tile, in radians, float64 `[P + 1, head_dim / 2]`; those of the class row are zero.

    Half of the pairs turn by the column, counted from 1, the other half by the row (as in Pixtral).
    """
    pairs = config.head_dim // 4
    exponent_D = torch.arange(pairs, dtype=torch.float64, device=device) / pairs
    frequency_D = config.rope_theta**-exponent_D
    index_P = torch.arange(config.grid**2, device=device)
    column_P1, row_P1 = (index_P % config.grid + 1).unsqueeze(1), (index_P // config.grid + 1).unsqueeze(1)
    patch_PD = torch.cat((column_P1 * frequency_D, row_P1 * frequency_D), 1)
    return torch.cat((patch_PD, patch_PD.new_zeros(1, patch_PD.shape[1])))


def turned(x_THRD: Tensor, angle_RD: Tensor) -> Tensor:
    """Turn each pair of neighbouring components by its angle, in float32 or wider."""
    wide = torch.promote_types(x_THRD.dtype, torch.float32)
    cos_RD, sin_RD = angle_RD.cos().to(wide), angle_RD.sin().to(wide)
    even_THRD, odd_THRD = x_THRD.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    pair = torch.stack((even_THRD * cos_RD - odd_THRD * sin_RD, even_THRD * sin_RD + odd_THRD * cos_RD), -1)
    return pair.flatten(-2).to(x_THRD.dtype)
