"""From the options of `anyorder generate` to the `order` that `anyorder.generate` takes."""

from __future__ import annotations

from typing import Any

from anyorder.cli._options import DiffusionOptions, SamplingOptions
from anyorder.errors import UserError
from anyorder.model.modes import KINDS
from anyorder.orders.names import read_order


def chosen_order(order: str | None, diffusion: DiffusionOptions, sampling: SamplingOptions) -> Any:
    """Return the order: a sampler where any option of diffusion is given, which then has the options for drawing, too.

    Raises:
        UserError: options that contradict each other.
    """
    if not diffusion.given:
        return order

    name = None if order is None else read_order(order)
    if name is not None and not KINDS[name.mode].diffuses:
        raise UserError(
            f"{diffusion.given[0]} is given with order {order!r}, but it is for diffusion: leave out one of them."
        )
    length, method = diffusion.block_length, diffusion.sampling_method
    if name is not None and name.number is not None and length is not None:
        raise UserError(f"block_length is {length} beside order {order!r}: leave out one of them.")
    if method == "fixed_length" and length is not None:
        remedy = "leave out one of them, or give semi_ar_padding"
        raise UserError(f"block_length is {length} beside sampling_method fixed_length, one block: {remedy}.")

    from anyorder.decoding.diffusion.sampler import DiffusionSampler

    by_blocks = name is not None and KINDS[name.mode].blocks
    semi = method in ("semi_ar_origin", "semi_ar_padding")
    sampler = DiffusionSampler.preset(
        diffusion.preset or ("llada-semi-ar" if semi else "llada"),
        steps=diffusion.steps,
        block_length=length or (name and name.number),
        temperature=sampling.temperature,
        cfg_scale=diffusion.cfg_scale or 0.0,
        remasking=diffusion.remasking_strategy,
        cache=diffusion.cache or ("prefix" if by_blocks else None),
        threshold=diffusion.threshold,
        factor=diffusion.factor,
    )
    if method == "fixed_length":
        sampler = sampler.replace(block_length=None)
    return sampler.replace(
        mode=name and name.mode, top_k=sampling.top_k, top_p=sampling.top_p, grow=method == "semi_ar_origin",
        stop_at_end=by_blocks or sampler.stop_at_end,
    )  # fmt: skip


def with_drafts(order: Any, draft: int | None) -> Any:
    """Return the order; with `draft`, an order that is written with speculation.

    Raises:
        UserError: the order is one of diffusion, or not known before it is taken.
    """
    if draft is None:
        return order
    if order is not None and not isinstance(order, str):
        raise UserError(f"draft is {draft} beside options of diffusion: leave out one of them.")
    from anyorder.decoding.any_order.speculation import Speculative
    from anyorder.orders.by_name import order_named

    fixed: Any = order_named(order or "any-order")
    return Speculative(order=fixed, draft=draft)
