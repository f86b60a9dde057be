"""From an order, by name or as an object, to the decoder that writes in it: one case for each way of writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from anyorder.decoding.any_order import NAMES, AnyOrder, MostConfident, any_order_steps, order_named
from anyorder.decoding.canvas import BLANK, check_canvases
from anyorder.decoding.diffusion import DiffusionSampler, diffusion_steps
from anyorder.decoding.diffusion_presets import sampler_of_order
from anyorder.decoding.left_to_right import Stop, check_prompts, left_to_right_steps
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.speculation import Speculative, speculative_steps
from anyorder.decoding.trace import Step
from anyorder.errors import UserError
from anyorder.orders import Order as FixedOrder
from anyorder.plans import GroupPlan
from anyorder.text import Continuation, Gaps, Prompt, prompt_canvases, prompt_ids
from anyorder.ways import ANY_ORDER, LEFT_TO_RIGHT, refuse_unless_causal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.decoding.fused_canvas import FusedCanvases
    from anyorder.model.config import ModelConfig
    from anyorder.model.llama import Llama

Order = str | AnyOrder | Speculative | DiffusionSampler
"""What `generate` takes as an order."""

Decoder = Callable[[Sequence[Sequence[int]], Sequence[int], Stop | None], Iterator[Step]]
"""Given prompts (from left to right) or canvases, their numbers and a condition to stop, the steps that write them."""

WAY_OF_ORDER = {
    "left-to-right": "left-to-right",
    **dict.fromkeys(NAMES, "any-order"),
    "diffusion": "diffusion",
    "blocks": "blocks",
}
"""The way of writing that an order asks for, by what stands before its colon."""


def way_of(order: Order | None, config: ModelConfig) -> str:
    """The name of the way of writing that an order asks for: the network's default unless there is an order.

    Raises:
        UserError: there is no such order, or the network was not trained for its way.
    """
    if isinstance(order, GroupPlan | FixedOrder | MostConfident | Speculative):
        return config.way(ANY_ORDER.name).name
    if isinstance(order, DiffusionSampler):
        return "diffusion"
    name = config.default_way if order is None else order
    kind = name.partition(":")[0] if isinstance(name, str) else None
    if kind not in WAY_OF_ORDER:
        names = "'left-to-right', 'any-order', 'random', 'groups:4', 'confidence', 'diffusion' or 'blocks:32'"
        raise UserError(f"order is {order!r}: give {names}.")
    if kind == LEFT_TO_RIGHT.name:
        refuse_unless_causal(config.ways, config.default_way)
    return WAY_OF_ORDER[kind]


def decoder_of(
    order: Order | None, model: Llama, *, sampling: Sampling, max_new_tokens: int, use_cache: bool,
    compile: bool | Literal["auto"], num_beams: int = 1, num_samples: int = 1, fused: FusedCanvases | None = None,
) -> Decoder:  # fmt: skip
    """What writes in this order; `fused` tells where phrasings of questions stand in canvases.

    Raises:
        UserError: see `way_of`; or options that only writing from left to right has.
    """
    way = way_of(order, model.config)
    if way == LEFT_TO_RIGHT.name:
        return lambda prompts, rows, stop: left_to_right_steps(
            model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, use_cache=use_cache,
            compile=compile, rows=rows,
        )  # fmt: skip
    if num_beams != 1:
        raise UserError(f"num_beams is {num_beams!r}, but beams are written from left to right: leave it out.")
    if compile is True:
        raise UserError("compile is True, but only writing from left to right is compiled: leave it out.")
    if way != ANY_ORDER.name:
        assert order is None or isinstance(order, str | DiffusionSampler), "an order of another way was known above"
        sampler, diffusing = sampler_of_order(order or way, model.config, sampling, use_cache=use_cache)
        return lambda canvases, rows, stop: diffusion_steps(
            model, canvases, sampler, way=diffusing, rows=rows, seed=sampling.seed, stop=stop, fused=fused
        )
    model.config.way(way)
    chosen = order_named(order or way) if order is None or isinstance(order, str) else order
    assert not isinstance(chosen, DiffusionSampler), "its way is another one"

    def of(order: Any, rows: Sequence[int]) -> Any:
        return order.select([row // num_samples for row in rows]) if isinstance(order, GroupPlan) else order

    options: dict[str, Any] = {"sampling": sampling, "use_cache": use_cache}
    if isinstance(chosen, Speculative):
        if fused is not None:
            raise UserError("a draft would not see phrasings apart: give the order without Speculative.")
        return lambda canvases, rows, stop: speculative_steps(
            model, canvases, Speculative(order=of(chosen.order, rows), draft=chosen.draft), rows=rows, stop=stop,
            **options,
        )  # fmt: skip
    return lambda canvases, rows, stop: any_order_steps(
        model, canvases, of(chosen, rows), rows=rows, stop=stop, fused=fused, **options
    )


def prompts_for(
    way: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, config: ModelConfig, max_new_tokens: int,
    gap_tokens: int | None = None,
) -> tuple[list[list[int]], bool]:  # fmt: skip
    """What a decoder is given: prompts from left to right, otherwise canvases; and whether it is a single one.

    Raises:
        UserError: see `prompt_ids`, `prompt_canvases`, `check_prompts` and `check_canvases`.
    """
    if way != LEFT_TO_RIGHT.name:
        canvases, single = prompt_canvases(
            prompt, tokenizer, config.bos_token_id, new_tokens=max_new_tokens, gap_tokens=gap_tokens,
            longest=config.context_length,
        )  # fmt: skip
        check_canvases(config, canvases, range(len(canvases)))
        return canvases, single
    if gap_tokens is not None:
        raise UserError(f"gap_tokens is {gap_tokens}, but from left to right no gap is filled: give order='any-order'.")
    prompts, single = prompt_ids(prompt, tokenizer, config.bos_token_id)
    check_prompts(config, prompts, range(len(prompts)))
    return prompts, single


def text_of(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str]) -> Continuation | Gaps:
    """What becomes the text of the tokens that are written for a prompt or a canvas."""
    if BLANK not in prompt:
        return Continuation(tokenizer, prompt, stops)
    first = prompt.index(BLANK)
    if any(token_id != BLANK for token_id in prompt[first:]):
        return Gaps(tokenizer, prompt)
    return Continuation(tokenizer, prompt[:first], stops)
