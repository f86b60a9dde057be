"""What `anyorder generate` is told about the mode, as the `order` that `anyorder.generate` takes."""

from __future__ import annotations

from typing import Any, Literal

from anyorder.errors import UserError
from anyorder.orders.names import read_order

SamplingMethod = Literal["fixed_length", "semi_ar_origin", "semi_ar_padding"]


def chosen_order(
    order: str | None,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    preset: str | None,
    sampling_method: SamplingMethod | None,
    remasking_strategy: str | None,
    steps: int | None,
    block_length: int | None,
    cfg_scale: float | None,
    cache: Literal["none", "prefix", "dual"] | None,
    threshold: float | None,
    factor: float | None,
) -> Any:
    """The order: a sampler where any option of diffusion is given, which then has the options for drawing, too.

    Raises:
        UserError: options that contradict each other.
    """
    options: dict[str, Any] = {
        "preset": preset, "sampling_method": sampling_method, "remasking_strategy": remasking_strategy, "steps": steps,
        "block_length": block_length, "cfg_scale": cfg_scale, "cache": cache, "threshold": threshold, "factor": factor,
    }  # fmt: skip
    given = [name for name, value in options.items() if value is not None]
    if not given:
        return order

    name = None if order is None else read_order(order)
    if name is not None and name.kind not in ("diffusion", "blocks"):
        raise UserError(f"{given[0]} is given with order {order!r}, but it is for diffusion: leave out one of them.")
    if name is not None and name.number is not None and block_length is not None:
        raise UserError(f"block_length is {block_length} beside order {order!r}: leave out one of them.")
    if sampling_method == "fixed_length" and block_length is not None:
        remedy = "leave out one of them, or give semi_ar_padding"
        raise UserError(f"block_length is {block_length} beside sampling_method fixed_length, one block: {remedy}.")

    from anyorder.decoding.diffusion.sampler import DiffusionSampler

    by_blocks = name is not None and name.kind == "blocks"
    semi = sampling_method in ("semi_ar_origin", "semi_ar_padding")
    sampler = DiffusionSampler.preset(
        preset or ("llada-semi-ar" if semi else "llada"),
        steps=steps,
        block_length=block_length or (name and name.number),
        temperature=temperature,
        cfg_scale=cfg_scale or 0.0,
        remasking=remasking_strategy,
        cache=cache or ("prefix" if by_blocks else None),
        threshold=threshold,
        factor=factor,
    )
    if sampling_method == "fixed_length":
        sampler = sampler.replace(block_length=None)
    grow = sampling_method == "semi_ar_origin"
    return sampler.replace(mode=name and name.mode, top_k=top_k, top_p=top_p, grow=grow, stop_at_end=by_blocks)


def with_drafts(order: Any, draft: int | None) -> Any:
    """The order; with `draft`, an order that is written with speculation.

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
