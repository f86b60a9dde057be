"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864) on explicit positions.

Each way to choose the frequencies is a small frozen object. Angles are computed in float64 and
cast at the end: float32 angles alone cost 4e-6 in the logits after a shift of 37 positions.

Shape suffixes: B batch, R rows, H heads, K head dimension, F = K / 2 frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.utils.annotations import AtMost, check_fields

Real = Annotated[float, AtMost(1e15)]
"""Published bases go up to 1e11."""

Length = Annotated[int, AtMost(2**31 - 1)]


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Plain rotary embedding: frequency f turns by `theta ** (-2 f / head_dim)` radians a position.

    Attributes:
        theta: base of the geometric series of frequencies.
        partial_rotary_factor: share of a head, its first dimensions, that turns; the others stay as they are.
        float32_angles: compute frequencies and angles as transformers does, in float32, operation by
            operation. For parity only: embeddings that differ in this alone are equal.
    """

    theta: Real
    partial_rotary_factor: Annotated[float, AtMost(1)] = 1.0
    float32_angles: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise UserError(f"rotary field {name!r} is {value}: give a number above 0.")
        check_fields(self, "rotary field {!r}")

    def frequencies(self, head_dim: int, length_B: Tensor | None = None) -> Tensor:
        """Radians per position, float64 (unless `float32_angles`).

        Args:
            head_dim: dimensions of a head, of those that turn.
            length_B: tokens of each text so far, for those that depend on it; None: no more than trained on.

        Returns:
            `[head_dim / 2]`, or `[batch, 1, head_dim / 2]` if they differ between texts.
        """
        return 1 / self.theta ** self._exponents(head_dim)

    def _exponents(self, head_dim: int) -> Tensor:
        """`2 f / head_dim` for each frequency f."""
        precision = torch.float32 if self.float32_angles else torch.float64
        return torch.arange(0, head_dim, 2, dtype=precision) / head_dim

    def turning(self, head_dim: int) -> int:
        """The dimensions of a head that turn."""
        return int(head_dim * self.partial_rotary_factor)

    def scale(self) -> float:
        """Factor of cosine and sine."""
        return 1.0

    def reach(self, max_position_embeddings: int) -> int:
        """The longest text, in tokens, that a network of this trained length can continue."""
        return max_position_embeddings

    @property
    def cacheable(self) -> int | None:
        """Tokens up to which all texts have the same frequencies, so that keys can be cached; None: any number."""
        return None

    def cos_sin(
        self, position_BR: Tensor, head_dim: int, dtype: torch.dtype, length_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every row's angles, each `[batch, rows, 1, turning / 2]` in `dtype`."""
        frequencies = self.frequencies(self.turning(head_dim), length_B).to(position_BR.device)
        angle_BR1F = (position_BR.to(frequencies.dtype)[..., None] * frequencies).unsqueeze(2)
        return (angle_BR1F.cos() * self.scale()).to(dtype), (angle_BR1F.sin() * self.scale()).to(dtype)


@dataclass(frozen=True, kw_only=True)
class LinearRotary(Rotary):
    """Position interpolation (Chen et al. 2023, arXiv 2306.15595): positions divided by `factor`."""

    factor: Real

    def frequencies(self, head_dim: int, length_B: Tensor | None = None) -> Tensor:
        return super().frequencies(head_dim, length_B) / self.factor


@dataclass(frozen=True, kw_only=True)
class DynamicRotary(Rotary):
    """Dynamic NTK: the base grows with the text once it passes the trained length.

    `factor` and `original_max_position_embeddings` (the trained length, tokens) as in transformers'
    "dynamic". Each text has its own base, so that a batch equals its rows one by one. Beyond the trained
    length every new token changes the base, and with it what all layers but the first made of the tokens
    before: no cache is exact there, turned or unturned, and a text is read anew for each token.
    """

    factor: Real
    original_max_position_embeddings: Length

    def reach(self, max_position_embeddings: int) -> int:
        return max(max_position_embeddings, int(self.factor * self.original_max_position_embeddings))

    @property
    def cacheable(self) -> int | None:
        return self.original_max_position_embeddings

    def frequencies(self, head_dim: int, length_B: Tensor | None = None) -> Tensor:
        if length_B is None:
            return super().frequencies(head_dim)
        exponents_F = self._exponents(head_dim).to(length_B.device)
        trained = self.original_max_position_embeddings
        length_B11 = length_B.clamp(min=trained).to(exponents_F.dtype)[:, None, None]
        growth_B11 = self.factor * length_B11 / trained - (self.factor - 1)
        base_B11 = self.theta * growth_B11 ** (head_dim / (head_dim - 2))
        return 1 / base_B11**exponents_F


@dataclass(frozen=True, kw_only=True)
class Llama3Rotary(Rotary):
    """Llama 3.1's bands: long waves are slowed by `factor`, short ones kept, those between blended.

    `original_max_position_embeddings` is the length (tokens) that the network was trained on before
    its context was extended.
    """

    factor: Real
    low_freq_factor: Real
    high_freq_factor: Real
    original_max_position_embeddings: Length

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high_freq_factor < self.low_freq_factor:
            raise UserError(
                f"rotary field 'high_freq_factor' is {self.high_freq_factor}: give a number not below "
                f"low_freq_factor, which is {self.low_freq_factor}."
            )

    def frequencies(self, head_dim: int, length_B: Tensor | None = None) -> Tensor:
        plain_F = super().frequencies(head_dim, length_B)
        turns_F = self.original_max_position_embeddings / (2 * math.pi / plain_F)
        blended = self.high_freq_factor - self.low_freq_factor or 1e-9  # none where they are equal, as in Llama 4
        share_kept_F = (turns_F - self.low_freq_factor) / blended
        share_kept_F = share_kept_F.clamp(0, 1)
        return (1 - share_kept_F) * plain_F / self.factor + share_kept_F * plain_F


@dataclass(frozen=True, kw_only=True)
class YarnRotary(Rotary):
    """YaRN (Peng et al. 2023, arXiv 2309.00071): fast frequencies kept, slow ones interpolated, scores sharpened.

    Attributes:
        factor: how many times longer texts may become.
        original_max_position_embeddings: trained length in tokens.
        beta_fast, beta_slow: turns within the trained length at which the ramp between the two begins and ends.
        truncate: whether the ends of the ramp are rounded to whole frequencies.
        attention_factor: factor of cosine and sine; derived from the others unless given.
        mscale, mscale_all_dim: what it is derived from in DeepSeek's variant.
    """

    factor: Real
    original_max_position_embeddings: Length
    beta_fast: Real = 32.0
    beta_slow: Real = 1.0
    truncate: bool = True
    attention_factor: Real | None = None
    mscale: Real | None = None
    mscale_all_dim: Real | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.theta > 1:
            raise UserError(f"rotary field 'theta' is {self.theta}: give a number above 1.")

    def reach(self, max_position_embeddings: int) -> int:
        return max(max_position_embeddings, int(self.factor * self.original_max_position_embeddings))

    def frequencies(self, head_dim: int, length_B: Tensor | None = None) -> Tensor:
        plain_F = super().frequencies(head_dim)
        low, high = self._frequency_of(self.beta_fast, head_dim), self._frequency_of(self.beta_slow, head_dim)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        index_F = torch.arange(head_dim // 2, dtype=plain_F.dtype)
        slowed_F = ((index_F - low) / ((high - low) or 0.001)).clamp(0, 1)
        return plain_F * (1 - slowed_F) + plain_F / self.factor * slowed_F

    def _frequency_of(self, turns: float, head_dim: int) -> float:
        """Index of the frequency that makes this many turns within the trained length (section 3.2)."""
        wavelength = self.original_max_position_embeddings / turns
        return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(self.theta))

    def scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._sharpening(self.mscale) / self._sharpening(self.mscale_all_dim)
        return self._sharpening(1.0)

    def _sharpening(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1 if self.factor > 1 else 1.0


ROTARY_EMBEDDINGS: dict[str, type[Rotary]] = {
    "rotary": Rotary,
    "linear": LinearRotary,
    "dynamic": DynamicRotary,
    "llama3": Llama3Rotary,
    "yarn": YarnRotary,
}
"""By name; a network can name any that is registered here: a frozen dataclass derived from `Rotary`."""


def registered_name(rotary: Rotary) -> str:
    """The name that this kind of rotary embedding has in `ROTARY_EMBEDDINGS`.

    Raises:
        UserError: it has none.
    """
    for name, kind in ROTARY_EMBEDDINGS.items():
        if kind is type(rotary):
            return name
    raise UserError(f"rotary is of the kind {type(rotary).__name__}: register it in ROTARY_EMBEDDINGS under a name.")


def rotate(x_BRHK: Tensor, cos_BR1F: Tensor, sin_BR1F: Tensor) -> Tensor:
    """Turn every pair (f, f + K/2) of each head by its row's angle: Hugging Face's half layout.

    Where there are fewer angles, these are the pairs of the first `2 F` dimensions, and the others stay.
    """
    turning = 2 * cos_BR1F.shape[-1]
    first, second = x_BRHK[..., :turning].chunk(2, dim=-1)
    turned = first * cos_BR1F - second * sin_BR1F, second * cos_BR1F + first * sin_BR1F
    return torch.cat((*turned, x_BRHK[..., turning:]) if turning < x_BRHK.shape[-1] else turned, dim=-1)
