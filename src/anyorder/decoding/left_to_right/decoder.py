"""Writing from left to right: one pass over the prompts, then one token per text and pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from anyorder.decoding.checks import check_max_new_tokens, check_prompts
from anyorder.decoding.left_to_right.bursts import burst_steps, greedy_tokens
from anyorder.decoding.left_to_right.reader import CausalReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import Choose, by_sampling, decode
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Step, Stop, collect
from anyorder.errors import UserError
from anyorder.model.compiled import compiled, is_small, pays_to_compile
from anyorder.model.step import one_token

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


def write_left_to_right(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    stop: Stop | None = None,
    use_cache: bool = True,
    compile: bool | Literal["auto"] = "auto",
    sample_ids: Sequence[int] | None = None,
) -> Generation:
    """Continues every prompt until an end token, the stop condition or a limit of length.

    Args:
        model: the network; its configuration names the end tokens and the trained length.
        prompts: token ids, one sequence per prompt, of any lengths.
        max_new_tokens: tokens to write per prompt at most; nobody writes beyond the trained length either.
        sampling: how a token is chosen.
        stop: asked after each token that is no end token; the token itself stays.
        use_cache: False computes all rows again for each token: the slow, obvious twin.
        compile: whether the one-token step is compiled; "auto": where that can pay off, see `pays_to_compile`.
        sample_ids: number of each prompt, which decides its random draws; 0, 1, 2, ... unless given.

    Raises:
        UserError: no prompts, an empty prompt, a token id outside the vocabulary, a prompt that leaves no room in
            the trained length, a limit below 1, row numbers that do not fit, or logits that are not numbers.
    """
    sample_ids = range(len(prompts)) if sample_ids is None else sample_ids
    steps = left_to_right_steps(
        model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, use_cache=use_cache,
        compile=compile, sample_ids=sample_ids,
    )  # fmt: skip
    return collect(steps, prompts, sample_ids, model.config.eos_token_ids)


def left_to_right_steps(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Stop | None,
    use_cache: bool,
    sample_ids: Sequence[int],
    compile: bool | Literal["auto"] = "auto",
) -> Iterator[Step]:
    """The steps of `write_left_to_right`, each as soon as it is taken; mistakes are raised at once."""
    check_prompts(model.config, prompts, sample_ids)
    check_max_new_tokens(max_new_tokens)
    if compile not in (True, False, "auto"):
        raise UserError(f"compile is {compile!r}: give True, False or 'auto'.")
    longest = model.config.context_length
    if compile == "auto":
        function = greedy_tokens if _in_bursts(model, sampling, stop) else one_token
        steps = min(max_new_tokens, longest - min(map(len, prompts)))
        compile = use_cache and pays_to_compile(function, model, len(prompts), steps)
    if compile and not use_cache:
        raise UserError(
            "compile is True and use_cache is False: leave one of them out; the compiled step reads a cache."
        )
    texts = [
        CausalText(sample_id, prompt, rng, model.config.eos_token_ids, min(len(prompt) + max_new_tokens, longest))
        for sample_id, prompt, rng in zip(sample_ids, prompts, sampling.generators(sample_ids), strict=True)
    ]
    step = compiled(one_token, model) if compile else None
    reader = CausalReader(model, texts, use_cache=use_cache, one_token=step)
    bursts = step is not None and _in_bursts(model, sampling, stop)
    return _steps(texts, reader, by_sampling(sampling), stop, bursts)


def _in_bursts(model: Llama, sampling: Sampling, stop: Stop | None) -> bool:
    """Whether compiled code writes several tokens a call, which a stop condition might end too late."""
    return stop is None and sampling.most_probable and is_small(model)


def _steps(
    texts: Sequence[CausalText], reader: CausalReader, choose: Choose[CausalText], stop: Stop | None, bursts: bool
) -> Iterator[Step]:
    """Write in bursts where they pay, for as long as that is possible; the rest one token at a time."""
    number = 0
    for step in burst_steps(texts, reader, choose) if bursts else ():
        yield step
        number += 1
    if writing := [text for text in texts if number == 0 or not text.why_complete(None)]:
        yield from decode(writing, reader, choose, stop, first_step=number)
