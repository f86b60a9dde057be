"""From a plan to the samples that the engine writes: text, choice and group of each, by its mode.

The modes of the package have groups that samples of several requests share. Another one, which is registered, writes by
its own decoder, whose steps take turns with the passes of the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anyorder.api.images import as_tokens
from anyorder.api.text import Continuation, detokenizer_of
from anyorder.decoding.any_order.decoder import texts_of
from anyorder.decoding.any_order.speculation import Speculative
from anyorder.decoding.canvas import PLAIN, CanvasLayout
from anyorder.decoding.diffusion.cache import NoCache
from anyorder.decoding.diffusion.decoder import assemble
from anyorder.decoding.diffusion.reader import CanvasReader
from anyorder.decoding.diffusion.sampler import DiffusionSampler, sampler_of_order
from anyorder.decoding.fusion.canvases import FusedCanvases
from anyorder.decoding.fusion.decoder import answer_to, fusion_reader
from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.fusion.method import check_questions
from anyorder.decoding.left_to_right.reader import CausalReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import Choose, by_sampling
from anyorder.decoding.sampling import Sampling
from anyorder.model.modes import Mode
from anyorder.modes import ModeEntry, decoder_of, entry_of
from anyorder.modes.any_order import AnyOrderMode
from anyorder.modes.diffusion import BlocksMode, DiffusionMode
from anyorder.modes.left_to_right import LeftToRightMode
from anyorder.serving.groups.canvas import CanvasGroup
from anyorder.serving.groups.causal import CausalGroup
from anyorder.serving.groups.decoded import DecodedText, DecoderGroup
from anyorder.serving.groups.fixed import FixedGroup
from anyorder.serving.groups.group import Group
from anyorder.serving.groups.sample import Sample
from anyorder.serving.groups.two_stream import TwoStreamGroup
from anyorder.serving.plans import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Parts = list[dict[str, Any]]
"""Of each sample of a mode, the arguments of `Sample` that depend on the mode."""


def samples_of(plan: Plan, tokenizer: PreTrainedTokenizerBase | None) -> list[Sample]:
    """Make the samples of a plan, in the order of its prompts."""
    if plan.fused:
        return _answers(plan, tokenizer)
    config = plan.model.config
    samples: dict[int, Sample] = {}
    for name in dict.fromkeys(mode.name for mode, _ in plan.modes):
        rows = [row for row, (mode, _) in enumerate(plan.modes) if mode.name == name]
        mode, order = plan.modes[rows[0]]
        prompts = [plan.prompts[row] for row in rows]
        make = _MAKERS.get(type(entry_of(mode)), _by_decoder)
        every = make(plan, mode, order, prompts, [plan.sample_ids[row] for row in rows])
        for row, prompt, parts in zip(rows, prompts, every, strict=True):
            tokens = as_tokens(prompt, config)
            samples[row] = Sample(
                prompt=tokens, prompt_text=plan.texts[row], end_token_ids=config.eos_token_ids,
                spelled=None if tokenizer is None else detokenizer_of(tokenizer, tokens, plan.stops),
                scores=plan.scores, follows=plan.follows, **parts,
            )  # fmt: skip
    return [samples[row] for row in sorted(samples)]


def _causal(plan: Plan, mode: Mode, order: Any, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int]) -> Parts:
    model, config = plan.model, plan.model.config
    texts = [
        CausalText(
            sample_id, prompt, rng, config.eos_token_ids, min(len(prompt) + plan.new_tokens, config.context_length)
        )
        for sample_id, prompt, rng in zip(sample_ids, prompts, plan.sampling.generators(sample_ids), strict=True)
    ]
    choose = _by_sampling(replace(plan.sampling, seed=0))
    if config.cacheable is not None and any(text.limit > config.cacheable for text in texts):
        return _together(texts, FixedGroup(CausalReader(model, texts)), choose)
    return [_part(text, choose, (model, mode), lambda: CausalGroup(model)) for text in texts]


def _any_order(
    plan: Plan, mode: Mode, order: Any, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int]
) -> Parts:  # fmt: skip
    if isinstance(order, Speculative):
        return _by_decoder(plan, mode, order, prompts, sample_ids)
    model = plan.model
    choose = _by_sampling(replace(plan.sampling, seed=0))
    texts = texts_of(model, prompts, order, plan.sampling, sample_ids)
    return [_part(text, choose, (model, mode), lambda: TwoStreamGroup(model)) for text in texts]


def _canvases(
    plan: Plan, mode: Mode, order: Any, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int]
) -> Parts:  # fmt: skip
    model = plan.model
    sampler = sampler_of_order(order, plan.sampling)
    texts, reader, _ = assemble(model, prompts, sampler, mode=mode, sample_ids=sample_ids, seed=plan.sampling.seed)
    choose = _chooser(sampler, mode.mask_token_id, model.config.eos_token_ids)
    never = {"never": None if sampler.may_choose_mask else mode.mask_token_id}
    if not isinstance(reader.policy, NoCache) or reader.guidance:
        return [part | never for part in _together(texts, FixedGroup(reader), choose)]
    block_length = reader.block_length

    def new_group() -> Group:
        return CanvasGroup(lambda rows: CanvasReader(model, rows, mode, NoCache(), block_length=block_length))

    return [_part(text, choose, (model, mode, block_length), new_group) | never for text in texts]


def _by_decoder(
    plan: Plan, mode: Mode, order: Any, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int],
    layout: CanvasLayout = PLAIN,
) -> Parts:  # fmt: skip
    decoder = decoder_of(mode, order, plan.model, plan.options, layout)
    texts = [
        DecodedText(sample_id, prompt, rng, plan.model.config.eos_token_ids)
        for sample_id, prompt, rng in zip(sample_ids, prompts, plan.sampling.generators(sample_ids), strict=True)
    ]
    group = DecoderGroup(lambda stop: decoder(prompts, sample_ids, stop))
    return _together(texts, group, None)


_MAKERS: dict[type[ModeEntry], Callable[..., Parts]] = {
    LeftToRightMode: _causal, AnyOrderMode: _any_order, DiffusionMode: _canvases, BlocksMode: _canvases,
}  # fmt: skip
"""What makes the samples of the package's own modes; not of those derived from them, which may write otherwise."""


def _part(text: Any, choose: Choose[Any] | None, kind: Any, new_group: Any) -> dict[str, Any]:
    return {"text": text, "choose": choose, "kind": kind, "new_group": new_group}


def _together(texts: Sequence[Any], group: Group, choose: Choose[Any] | None) -> Parts:
    """Texts that begin together, in a group of their own."""
    kind = object()
    return [_part(text, choose, kind, lambda: group) for text in texts]


def _answers(plan: Plan, tokenizer: PreTrainedTokenizerBase | None) -> list[Sample]:
    """The samples that answer a question in several phrasings."""
    model = plan.model
    mode, order = plan.modes[0]
    sample_ids, questions = plan.sample_ids, list(plan.fused)
    limits = check_questions(model.config, questions, plan.fusion, plan.new_tokens, sample_ids)
    ends, prompts = model.config.eos_token_ids, plan.prompts
    if mode.kind.causal:
        texts = {
            answer_to(question, plan.fusion, limit, sample_id, rng, ends): question
            for question, limit, sample_id, rng in zip(
                questions, limits, sample_ids, plan.sampling.generators(sample_ids), strict=True
            )
        }
        group = FixedGroup(fusion_reader(model, texts, plan.fusion))
        parts = _together(list(texts), group, _by_sampling(replace(plan.sampling, seed=0)))
    else:
        fused = FusedCanvases(questions, plan.fusion, limits, model.device)
        prompts = fused.canvases
        parts = _by_decoder(plan, mode, order, prompts, sample_ids, fused)
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
def _chooser(sampler: DiffusionSampler, mask_token_id: Any, end_token_ids: Sequence[int]) -> Choose[Any]:
    return sampler.chooser(mask_token_id, end_token_ids)
