"""From a plan to the samples that the engine writes: text, choice and group of each, by its mode."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anyorder.api.dispatch import Order, text_of
from anyorder.api.text import Continuation
from anyorder.decoding.any_order.decoder import texts_of
from anyorder.decoding.any_order.reader import TwoStreamReader
from anyorder.decoding.diffusion.cache import NoCache
from anyorder.decoding.diffusion.decoder import assemble
from anyorder.decoding.diffusion.reader import CanvasReader
from anyorder.decoding.diffusion.sampler import DiffusionSampler, sampler_of_order
from anyorder.decoding.fusion.canvases import FusedCanvases
from anyorder.decoding.fusion.decoder import answer_to, fusion_reader
from anyorder.decoding.fusion.question import Question, check_questions
from anyorder.decoding.left_to_right.reader import CausalReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import Choose, by_sampling
from anyorder.decoding.sampling import Sampling
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, Mode
from anyorder.serving.groups import CanvasGroup, CausalGroup, FixedGroup, Group, Sample, TwoStreamGroup
from anyorder.serving.plans import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama


def samples_of(plan: Plan, model: Llama, tokenizer: PreTrainedTokenizerBase | None) -> list[Sample]:
    """Make the samples of a plan, in the order of its prompts."""
    if plan.fused:
        return _answers(plan, model, tokenizer)
    samples: dict[int, Sample] = {}
    for name in dict.fromkeys(mode.name for mode, _ in plan.modes):
        rows = [row for row, (mode, _) in enumerate(plan.modes) if mode.name == name]
        mode, order = plan.modes[rows[0]]
        prompts = [plan.prompts[row] for row in rows]
        for row, prompt, parts in zip(rows, prompts, _parts(plan, model, mode, order, prompts, rows), strict=True):
            samples[row] = Sample(
                prompt=prompt, prompt_text=plan.texts[row], end_token_ids=model.config.eos_token_ids,
                spelled=None if tokenizer is None else text_of(tokenizer, prompt, plan.stops),
                scores=plan.scores, follows=plan.follows, **parts,
            )  # fmt: skip
    return [samples[row] for row in sorted(samples)]


def _parts(
    plan: Plan, model: Llama, mode: Mode, order: Order, prompts: Sequence[Sequence[int]], rows: Sequence[int]
) -> list[dict[str, Any]]:
    """What differs between modes: text, choice and group of each prompt."""
    config = model.config
    if mode.name == LEFT_TO_RIGHT.name:
        longest = config.context_length
        texts = [
            CausalText(row, prompt, rng, config.eos_token_ids, min(len(prompt) + plan.new_tokens, longest))
            for row, prompt, rng in zip(rows, prompts, plan.sampling.generators(rows), strict=True)
        ]
        choose = _by_sampling(replace(plan.sampling, seed=0))
        if config.cacheable is not None and any(text.limit > config.cacheable for text in texts):
            return _together(texts, CausalReader(model, texts), choose)
        return [_part(text, choose, LEFT_TO_RIGHT.name, lambda: CausalGroup(model)) for text in texts]
    if mode.name == ANY_ORDER.name:
        in_order: Any = order
        choose = _by_sampling(replace(plan.sampling, seed=0))
        canvases = texts_of(model, prompts, in_order, plan.sampling, rows)
        return [_part(text, choose, ANY_ORDER.name, lambda: TwoStreamGroup(model)) for text in canvases]
    assert isinstance(order, str | DiffusionSampler)
    sampler = sampler_of_order(order, plan.sampling)
    filled, reader, choose = assemble(model, prompts, sampler, mode=mode, rows=rows, seed=plan.sampling.seed)
    choose = _chooser(sampler, mode.mask_token_id, config.eos_token_ids)
    never = {"never": None if sampler.may_choose_mask else mode.mask_token_id}
    if not isinstance(reader.policy, NoCache) or reader.guidance:
        return [part | never for part in _together(filled, reader, choose)]
    block_length = reader.block_length

    def new_group() -> Group:
        return CanvasGroup(lambda texts: CanvasReader(model, texts, mode, NoCache(), block_length=block_length))

    return [_part(text, choose, (mode, block_length), new_group) | never for text in filled]


def _part(text: Any, choose: Choose[Any], kind: Any, new_group: Any) -> dict[str, Any]:
    return {"text": text, "choose": choose, "kind": kind, "new_group": new_group}


def _together(texts: Sequence[Any], reader: Any, choose: Choose[Any]) -> list[dict[str, Any]]:
    """Texts that begin together, in a group of their own."""
    kind, group = object(), FixedGroup(reader)
    return [_part(text, choose, kind, lambda: group) for text in texts]


def _answers(plan: Plan, model: Llama, tokenizer: PreTrainedTokenizerBase | None) -> list[Sample]:
    """The samples that answer a question in several phrasings."""
    mode, order = plan.modes[0]
    rows, questions = range(len(plan.fused)), list(plan.fused)
    limits = check_questions(model.config, questions, plan.fusion, plan.new_tokens, rows)
    ends = model.config.eos_token_ids
    choose = _by_sampling(replace(plan.sampling, seed=0))
    prompts = plan.prompts
    if mode.name == LEFT_TO_RIGHT.name:
        rngs = plan.sampling.generators(rows)
        texts = [
            answer_to(question, plan.fusion, limit, row, rng, ends)
            for question, limit, row, rng in zip(questions, limits, rows, rngs, strict=True)
        ]
        parts = _together(texts, fusion_reader(model, texts, questions, plan.fusion), choose)
    else:
        fused = FusedCanvases(questions, plan.fusion, limits, model.device)
        prompts = fused.canvases
        if mode.name == ANY_ORDER.name:
            in_order: Any = order
            canvases = texts_of(model, prompts, in_order, plan.sampling, rows, fused.lengths)
            parts = _together(canvases, TwoStreamReader(model, canvases, use_cache=True, fused=fused), choose)
        else:
            assert isinstance(order, str | DiffusionSampler)
            sampler = sampler_of_order(order, plan.sampling)
            filled, reader, choose = assemble(
                model, prompts, sampler, mode=mode, rows=rows, seed=plan.sampling.seed, fused=fused
            )
            parts = _together(filled, reader, choose)
    return [
        Sample(
            prompt=prompt, prompt_text=None, end_token_ids=ends, scores=plan.scores, follows=plan.follows,
            spelled=None if tokenizer is None else _answer_text(tokenizer, question, plan.stops), **part,
        )
        for prompt, question, part in zip(prompts, questions, parts, strict=True)
    ]  # fmt: skip


def _answer_text(tokenizer: PreTrainedTokenizerBase, question: Question, stops: tuple[str, ...]) -> Continuation:
    before = question.suffix or question.segments[-1]
    return Continuation(tokenizer, (*question.prefix, *before), stops)


@functools.lru_cache(maxsize=256)
def _by_sampling(sampling: Sampling) -> Choose[Any]:
    """One choice for all samples that are drawn alike, so that they are drawn together."""
    return by_sampling(sampling)


@functools.lru_cache(maxsize=256)
def _chooser(sampler: DiffusionSampler, mask_token_id: int, end_token_ids: Sequence[int]) -> Choose[Any]:
    return sampler.chooser(mask_token_id, end_token_ids)
