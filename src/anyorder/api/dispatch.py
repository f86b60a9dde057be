"""From an order, by name or as an object, to the decoder that writes in it: one case for each mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from anyorder.api.text import GAP, Continuation, Gaps, Prompt, prompts_with_gaps
from anyorder.decoding.any_order.decoder import any_order_steps
from anyorder.decoding.any_order.speculation import Speculative, speculative_steps
from anyorder.decoding.canvas import BLANK, check_canvases, continuation
from anyorder.decoding.checks import check_prompts
from anyorder.decoding.diffusion.decoder import diffusion_steps
from anyorder.decoding.diffusion.sampler import DiffusionSampler, sampler_of_order
from anyorder.decoding.left_to_right.decoder import left_to_right_steps
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step, Stop
from anyorder.errors import UserError
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, Mode, refuse_unless_causal
from anyorder.orders.by_name import AnyOrder, order_named
from anyorder.orders.names import read_order
from anyorder.orders.plan import GroupPlan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.api.images import Images
    from anyorder.decoding.fusion.canvases import FusedCanvases
    from anyorder.model.config import ModelConfig
    from anyorder.model.llama import Llama

FILL_GAPS = (ANY_ORDER.name, "diffusion", "blocks")
"""The modes that fill gaps, in the order in which they are taken where none is named."""

Order = str | AnyOrder | Speculative | DiffusionSampler
"""What `generate` takes as an order."""

Decoder = Callable[[Sequence[Sequence[int]], Sequence[int], Stop | None], Iterator[Step]]
"""Given prompts (from left to right) or canvases, their numbers and a condition to stop, the steps that write them."""


def resolve(order: Order | None, config: ModelConfig, *, gap_in: str | None = None) -> tuple[Mode, Order]:
    """The mode of the network that an order asks for, and the order itself.

    Args:
        order: a name or an object; unless given, the network's default, or a mode that fills gaps where there is one.
        config: of the network.
        gap_in: the name of a prompt that has a gap.

    Returns:
        Of the mode "any-order", the order is an object. A name of another mode stays one, since it has no more to say,
        or its sampler depends on how tokens are drawn.

    Raises:
        UserError: there is no such order, the network was not trained for its way, or it does not fill gaps.
    """
    if gap_in is not None:
        order = _filling_gaps(order, config, gap_in)
    if isinstance(order, DiffusionSampler):
        return _diffusing(order, config), order
    if order is not None and not isinstance(order, str):
        if not isinstance(order, AnyOrder | Speculative):
            read_order(order)  # says what an order is
        return config.mode(ANY_ORDER.name), order
    words = config.default_mode if order is None else order
    name = read_order(words)
    if name.mode == LEFT_TO_RIGHT.name:
        refuse_unless_causal(config.modes, config.default_mode)
    mode = config.mode(name.mode)
    return mode, order_named(words) if mode.name == ANY_ORDER.name else words


def _filling_gaps(order: Order | None, config: ModelConfig, gap_in: str) -> Order:
    """The order; unless given, the network's default, if that fills gaps, or else a mode that does."""
    has = {mode.name for mode in config.modes}
    fills = [name for name in (config.default_mode, *FILL_GAPS) if name in has.intersection(FILL_GAPS)]
    if not fills:
        raise UserError(
            f"{gap_in} has a gap ({GAP}, or {BLANK} among token ids), and this network writes by "
            f"{config.default_mode!r} alone, which fills none: load a network that writes in any order or by "
            f"diffusion, or give token ids where {GAP} is meant as text."
        )
    if isinstance(order, str) and read_order(order).mode == LEFT_TO_RIGHT.name:
        raise UserError(
            f"order is {order!r}, which fills no gap, and {gap_in} has one ({GAP}, or {BLANK} among token ids): leave "
            f"out the order, or give {fills[0]!r}."
        )
    return fills[0] if order is None else order


def _diffusing(sampler: DiffusionSampler, config: ModelConfig) -> Mode:
    """The mode that a sampler names; otherwise the network's default, if that diffuses, or the one that does."""
    if sampler.mode is not None:
        return config.mode(sampler.mode)
    has = {mode.name for mode in config.modes} & {"diffusion", "blocks"}
    return config.mode(
        next((name for name in (config.default_mode, "diffusion", "blocks") if name in has), "diffusion")
    )


def decoder_of(
    mode: Mode, order: Order, model: Llama, *, sampling: Sampling, max_new_tokens: int, use_cache: bool,
    compile: bool | Literal["auto"], num_beams: int = 1, num_samples: int = 1, fused: FusedCanvases | None = None,
) -> Decoder:  # fmt: skip
    """What writes in this order.

    Args:
        mode, order: from `resolve`.
        num_samples: texts of each prompt, which share its plan.
        fused: where phrasings of questions stand in canvases.
        model, sampling, max_new_tokens, use_cache, compile, num_beams: as in `anyorder.generate`.

    Raises:
        UserError: options that only writing from left to right has, or that an order does not know.
    """
    if mode.name in (LEFT_TO_RIGHT.name, ANY_ORDER.name):
        sampling.check_filters()
    if mode.name == LEFT_TO_RIGHT.name:
        return lambda prompts, rows, stop: left_to_right_steps(
            model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, use_cache=use_cache,
            compile=compile, rows=rows,
        )  # fmt: skip
    if num_beams != 1:
        raise UserError(f"num_beams is {num_beams!r}, but beams are written from left to right: leave it out.")
    if compile is True:
        raise UserError("compile is True, but only writing from left to right is compiled: leave it out.")
    if mode.name != ANY_ORDER.name:
        assert isinstance(order, str | DiffusionSampler), "an order of another mode was known above"
        sampler = sampler_of_order(order, sampling, use_cache=use_cache)
        return lambda canvases, rows, stop: diffusion_steps(
            model, canvases, sampler, mode=mode, rows=rows, seed=sampling.seed, stop=stop, fused=fused
        )

    def of(planned: Any, rows: Sequence[int]) -> Any:
        return planned.select([row // num_samples for row in rows]) if isinstance(planned, GroupPlan) else planned

    options: dict[str, Any] = {"sampling": sampling, "use_cache": use_cache}
    if isinstance(order, Speculative):
        if fused is not None:
            raise UserError("a draft would not see phrasings apart: give the order without Speculative.")
        return lambda canvases, rows, stop: speculative_steps(
            model, canvases, Speculative(order=of(order.order, rows), draft=order.draft), rows=rows, stop=stop,
            **options,
        )  # fmt: skip
    return lambda canvases, rows, stop: any_order_steps(
        model, canvases, of(order, rows), rows=rows, stop=stop, fused=fused, **options
    )


@dataclass(frozen=True)
class Prompts:
    """Prompts as decoders take them.

    Attributes:
        rows: token ids of each; a canvas, unless it is written from left to right.
        modes: the mode of each, and the order in which it is written.
        texts: each as it was given, where that is text.
        single: whether a single prompt was given, not a list of them.
    """

    rows: list[list[int]]
    modes: list[tuple[Mode, Order]]
    texts: list[str | None]
    single: bool


def prompts_for(
    order: Order | None, prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, config: ModelConfig,
    max_new_tokens: int, gap_tokens: int | None = None, images: Images | None = None,
) -> Prompts:  # fmt: skip
    """The prompts, each with its way: that of the order, or without one what suits it, whatever the others are.

    Decoders check their batch themselves. All prompts are checked here as well, so that a mistake in the last batch is
    told before the first is written.

    Args:
        order, prompt, tokenizer, max_new_tokens, gap_tokens: as in `anyorder.generate`.
        config: of the network.
        images: of the prompts, whose rows are put into them; None where there are none.

    Raises:
        UserError: see `resolve`, `prompts_with_gaps`, `Images.place`, `check_prompts` and `check_canvases`.
    """
    by_order = resolve(order, config)
    rows, single = prompts_with_gaps(
        prompt, tokenizer, config.bos_token_id, new_tokens=max_new_tokens, gap_tokens=gap_tokens
    )
    if images is not None:
        rows = images.place(rows, single)
    gaps = [number for number, row in enumerate(rows) if BLANK in row]
    filling = resolve(order, config, gap_in=f"prompt {gaps[0]}") if gaps else by_order
    modes = [filling if BLANK in row else by_order for row in rows]
    for number, (row, (mode, _)) in enumerate(zip(rows, modes, strict=True)):
        if mode.name == LEFT_TO_RIGHT.name:
            check_prompts(config, [row], [number])
            continue
        if BLANK not in row:
            row[:] = continuation(row, min(max_new_tokens, max(0, config.context_length - len(row))))
        check_canvases(config, [row], [number])
    entries = [prompt] if isinstance(prompt, str) else prompt if isinstance(prompt, list | tuple) else ()
    texts = [entry if isinstance(entry, str) else None for entry in entries]
    return Prompts(rows, modes, texts if len(texts) == len(rows) else [None] * len(rows), single)


def text_of(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str]) -> Continuation | Gaps:
    """What becomes the text of the tokens that are written for a prompt or a canvas.

    Raises:
        UserError: there is something to stop at in a gap, which is filled to its end.
    """
    if BLANK not in prompt:
        return Continuation(tokenizer, prompt, stops)
    first = prompt.index(BLANK)
    if any(token_id != BLANK for token_id in prompt[first:]):
        if stops:
            raise UserError(f"stop is {list(stops)}, but a gap is always filled to its end: leave out stop.")
        return Gaps(tokenizer, prompt)
    return Continuation(tokenizer, prompt[:first], stops)
