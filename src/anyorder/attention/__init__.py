"""One attention, several backends: `compile_mask` once per forward pass, `attend` in every layer."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder.attention.backends import SDPA, Backend, Capabilities, Eager, Traced
from anyorder.attention.flash import Flash
from anyorder.attention.flex import Flex
from anyorder.attention.hints import Hint, kernel_hint
from anyorder.attention.mask import AttentionMask, BiasTerm, Request
from anyorder.attention.tempered import Tempered, TemperedMasks, attend_in_parts, split
from anyorder.errors import UserError

__all__ = [
    "BACKENDS", "AttentionMask", "Backend", "BiasTerm", "Capabilities", "Choice", "Hint", "Request", "Tempered",
    "attend", "compile_mask", "kernel_hint", "resolve_backend",
]  # fmt: skip

logger = logging.getLogger(__name__)

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Eager(), SDPA(), Flex(), Flash(), Traced())}

_REFERENCE = Eager()

TRANSFORMERS_NAMES = {
    "flash_attention_2": "flash",
    "flex_attention": "flex",
    "sdpa": "sdpa",
    "eager": "eager",
}
"""transformers' name of an attention implementation -> ours."""


@dataclass(frozen=True)
class Choice:
    """A backend by name, and why it was chosen."""

    name: str
    reason: str


def resolve_backend(
    name: str, device: torch.device | str, dtype: torch.dtype | None = None, backward: bool = False
) -> Choice:
    """The backend that a name, ours or transformers' or "auto", stands for on this device.

    Args:
        name: "auto", "eager", "sdpa", "flex", "flash", or transformers' name of one of these.
        device: where the model is.
        dtype: the model's data type; not checked when None.
        backward: whether gradients will be asked for.

    Raises:
        UserError: the name is unknown, or that backend cannot run here.
    """
    device = torch.device(device)
    if name == "auto":
        choice = Choice("sdpa", f"fused kernels with and without a mask, forwards and backwards, on {device.type}")
        logger.debug("attention: %s (%s)", choice.name, choice.reason)
        return choice
    ours = TRANSFORMERS_NAMES.get(name, name)
    if ours not in BACKENDS:
        offered = [backend for backend in BACKENDS if backend != Traced.name]  # which compiled steps take by themselves
        known = ", ".join(("auto", *offered, *(other for other in TRANSFORMERS_NAMES if other not in BACKENDS)))
        raise UserError(f"attention is {name!r}: choose one of {known}.")
    BACKENDS[ours].refuse_unless_able(device, dtype, backward)
    return Choice(ours, "asked for by name")


def compile_mask(request: Request, backend: str, dtype: torch.dtype | None = None) -> AttentionMask:
    """What the rows of one forward pass may see, in the form that `attend` wants.

    Raises:
        UserError: the backend cannot show this visibility or cannot run here.
    """
    tempered = request.tempered
    relations = [request.visibility, *(term.relation for term in request.bias)]
    for relation in relations if tempered is None else [*relations, tempered.relation]:
        relation.require_labels(request.query, request.key)
    device = request.query["position"].device
    backward = torch.is_grad_enabled()
    choice = resolve_backend(backend, device, dtype, backward=backward)
    if request.bias and not BACKENDS[choice.name].can.bias:
        raise UserError(f"attention {choice.name!r} cannot add a bias to the scores: choose 'sdpa' or 'flex'.")
    if request.key["position"].shape[1] == 0 or request.query["position"].shape[1] == 0:
        return AttentionMask(choice.name)
    if tempered is None:
        return BACKENDS[choice.name].compile(request)
    if not BACKENDS[choice.name].can.lse:
        raise UserError(f"attention {choice.name!r} cannot temper some of the scores: choose 'sdpa' or 'eager'.")
    others, part = (_REFERENCE.compile(half) for half in split(request, tempered))
    return AttentionMask(choice.name, tempered=TemperedMasks(others, part, tempered.temperature, tempered.scale))


def attend(q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, mask: AttentionMask, scale: float | None = None) -> Tensor:
    """Attention of each row over the keys that it sees; zeros for a row that sees none.

    Args:
        q_BQHD: queries `[batch, rows, heads, head_dim]`.
        k_BKGD, v_BKGD: keys and values `[batch, keys, kv_heads, head_dim]`; consecutive query heads
            share a key-value head.
        mask: from `compile_mask`, for these rows and keys.
        scale: factor of the scores; `head_dim ** -0.5` unless given.

    Returns:
        `[batch, rows, heads, head_dim]`.
    """
    if k_BKGD.shape[1] == 0 or q_BQHD.shape[1] == 0:
        return torch.zeros_like(q_BQHD)
    scale = q_BQHD.shape[-1] ** -0.5 if scale is None else scale
    if mask.tempered is not None:
        return attend_in_parts(_REFERENCE.attend_with_lse, q_BQHD, k_BKGD, v_BKGD, mask.tempered, scale)
    out_BQHD = BACKENDS[mask.backend].attend(q_BQHD, k_BKGD, v_BKGD, mask, scale)
    if mask.empty_BQ is not None:
        out_BQHD = out_BQHD.masked_fill(mask.empty_BQ[:, :, None, None], 0)
    return out_BQHD
