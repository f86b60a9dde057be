"""One attention, several backends: `compile_mask` once per forward pass, `attend` in every layer."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder.attention.backends import EAGER, SDPA, TRACED, Backend
from anyorder.attention.flash import FLASH
from anyorder.attention.flex import FLEX
from anyorder.attention.mask import NO_CORRECTIONS, AttentionMask, BiasTerm, Corrections, NoPairs, Request, Tempered
from anyorder.attention.tempered import TemperedMask
from anyorder.errors import UserError

__all__ = [
    "BACKENDS", "NO_CORRECTIONS", "AttentionMask", "Backend", "BackendChoice", "BiasTerm", "Corrections", "Request",
    "Tempered", "attend", "compile_mask", "resolve_backend",
]  # fmt: skip

logger = logging.getLogger(__name__)

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (EAGER, SDPA, FLEX, FLASH, TRACED)}

TRANSFORMERS_NAMES = {
    "flash_attention_2": "flash",
    "flex_attention": "flex",
    "sdpa": "sdpa",
    "eager": "eager",
}
"""transformers' name of an attention implementation -> ours."""


@dataclass(frozen=True)
class BackendChoice:
    """A backend by name, and why it was chosen."""

    name: str
    reason: str


def resolve_backend(
    name: str, device: torch.device | str, dtype: torch.dtype | None = None, backward: bool = False
) -> BackendChoice:
    """Choose the backend of a name, ours or transformers' or "auto", for a device.

    Args:
        name: "auto", "eager", "sdpa", "flex", "flash", or transformers' name of one of these.
        device: where the model is.
        dtype: the model's data type; not checked when None.
        backward: whether there will be a backward pass.

    Raises:
        UserError: the name is unknown, or that backend cannot run here.
    """
    device = torch.device(device)
    if name == "auto":
        choice = BackendChoice(
            "sdpa", f"fused kernels with and without a mask, forwards and backwards, on {device.type}"
        )
        logger.debug("attention: %s (%s)", choice.name, choice.reason)
        return choice
    ours = TRANSFORMERS_NAMES.get(name, name)
    if ours not in BACKENDS:
        offered = [backend for backend in BACKENDS if backend != TRACED.name]  # which compiled steps take by themselves
        known = ", ".join(("auto", *offered, *(other for other in TRANSFORMERS_NAMES if other not in BACKENDS)))
        raise UserError(f"attention is {name!r}: choose one of {known}.")
    BACKENDS[ours].refuse_unless_able(device, dtype, backward)
    return BackendChoice(ours, "asked for by name")


def compile_mask(request: Request, backend: str, dtype: torch.dtype | None = None) -> AttentionMask:
    """Compile what the rows of one forward pass attend to.

    Args:
        request: the rows, the keys and the rule.
        backend: as in `resolve_backend`.
        dtype: the data type of queries, keys and values; not checked when None.

    Raises:
        UserError: a label is missing, or the backend cannot express this visibility or cannot run here.
    """
    tempered = request.tempered
    relations = [request.visibility, *(term.relation for term in request.bias)]
    for relation in relations if tempered is None else [*relations, tempered.relation]:
        relation.require_labels(request.query, request.key)
    device = request.query["position"].device
    chosen = BACKENDS[resolve_backend(backend, device, dtype, backward=torch.is_grad_enabled()).name]
    if request.bias and not chosen.bias:
        raise UserError(f"attention {chosen.name!r} cannot add a bias to the scores: choose 'sdpa' or 'flex'.")
    if tempered is not None and not chosen.lse:
        raise UserError(f"attention {chosen.name!r} cannot temper some of the scores: choose 'sdpa' or 'eager'.")
    if 0 in request.sizes:
        return NoPairs()
    return chosen.compile(request) if tempered is None else TemperedMask.of(request, tempered)


def attend(q_BQHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, mask: AttentionMask, scale: float | None = None) -> Tensor:
    """Compute the attention of each row over the keys that it sees; zeros for a row that sees none.

    Args:
        q_BQHD: queries `[batch, rows, heads, head_dim]`.
        k_BKGD, v_BKGD: keys and values `[batch, keys, kv_heads, head_dim]`; consecutive query heads
            share a key-value head.
        mask: from `compile_mask`, for these rows and keys.
        scale: factor of the scores; `head_dim ** -0.5` unless given.

    Returns:
        `[batch, rows, heads, head_dim]`.
    """
    out_BQHD = mask.attend(q_BQHD, k_BKGD, v_BKGD, q_BQHD.shape[-1] ** -0.5 if scale is None else scale)
    if mask.empty_BQ is not None:
        out_BQHD = out_BQHD.masked_fill(mask.empty_BQ[:, :, None, None], 0)
    return out_BQHD
