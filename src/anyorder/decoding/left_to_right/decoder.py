"""Writing from left to right: one pass over the prompts, then one token per text and pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from anyorder.decoding.checks import check_max_new_tokens, check_prompts
from anyorder.decoding.left_to_right.beams import beam_steps
from anyorder.decoding.left_to_right.bursts import burst_steps, greedy_tokens
from anyorder.decoding.left_to_right.reader import CausalReader
from anyorder.decoding.left_to_right.self_speculation import SelfSpeculative, self_speculative_steps
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import by_sampling, decode
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step, Stop
from anyorder.errors import UserError
from anyorder.model.compiled import compiled, is_small, pays_to_compile, steps_whole, with_packages
from anyorder.model.step import one_token

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


def left_to_right_steps(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    sample_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    num_beams: int = 1,
    stop: Stop | None = None,
    use_cache: bool = True,
    compile: bool | Literal["auto"] = "auto",
    speculation: SelfSpeculative | None = None,
) -> Iterator[Step]:
    """Continue every prompt until an end token, the stop condition or a limit of length.

    Yield each step as soon as it is taken; raise errors of the caller at once.

    Args:
        model: the network; its configuration names the end tokens and the trained length.
        prompts: token ids, one sequence per prompt, of any lengths.
        sample_ids: number of each prompt, which decides its random draws.
        max_new_tokens: tokens to write per prompt at most; no text goes beyond the trained length either.
        sampling: how a token is chosen.
        num_beams: above 1, beam search: the text with the highest log-probability per token of those that so many
            beams find. Draws nothing and is never compiled.
        stop: called after each token that is no end token; the token itself stays. Texts of beams do not only grow.
        use_cache: False computes all rows again for each token (slow reference path).
        compile: whether the one-token step is compiled; "auto": where that can pay off, see `pays_to_compile`.
        speculation: drafts by the network's diffusion, which write the same in fewer passes; None: none.

    Raises:
        UserError: no prompts, an empty prompt, a token id outside the vocabulary, a prompt that leaves no room in
            the trained length, a limit below 1, sample ids that do not fit, or logits that are not numbers.
    """
    check_prompts(model.config, prompts, sample_ids)
    check_max_new_tokens(max_new_tokens)
    if compile not in (True, False, "auto"):
        raise UserError(f"compile is {compile!r}: give True, False or 'auto'.")
    longest = model.config.context_length
    texts = [
        CausalText(sample_id, prompt, rng, model.config.eos_token_ids, min(len(prompt) + max_new_tokens, longest))
        for sample_id, prompt, rng in zip(sample_ids, prompts, sampling.generators(sample_ids), strict=True)
        for _ in range(num_beams)
    ]
    if speculation is not None:
        for name, value, usual in (("num_beams", num_beams, 1), ("use_cache", use_cache, True)):
            if value != usual:
                raise UserError(f"{name} is {value} beside {speculation}: leave out one of them.")
        return self_speculative_steps(model, texts, speculation, sampling, stop)
    if num_beams > 1:
        return beam_steps(texts, CausalReader(model, texts, use_cache=use_cache), num_beams, sampling, stop)
    # No bursts beside a stop condition, so that stop conditions apply after each token.
    bursts = bool(compile) and stop is None and sampling.most_probable and is_small(model)
    if compile == "auto":
        steps = min(max_new_tokens, longest - min(map(len, prompts)))
        function = greedy_tokens if bursts else one_token
        compile = use_cache and pays_to_compile(function, model, len(prompts), steps)
    if compile and not use_cache:
        raise UserError(
            "compile is True and use_cache is False: leave one of them out; the compiled step reads a cache."
        )
    if compile and not steps_whole(model):
        model, compile = with_packages(model, making=True), False
    step = compiled(one_token, model) if compile else None
    reader = CausalReader(model, texts, use_cache=use_cache, one_token=step)
    if compile and bursts:
        return burst_steps(texts, reader, by_sampling(sampling))
    return decode(texts, reader, by_sampling(sampling), stop)
