"""Writing one answer to a question in several phrasings.

An answer is a text from left to right behind the layout of its question. `fusion_reader` makes the reader of a method;
the loop is that of all decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import torch

from anyorder.decoding.fusion.ensembles import POOLS, HybridReader, PooledReader, elect, members_of
from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.fusion.method import HYBRID, Fusion, check_questions
from anyorder.decoding.fusion.reader import FusedReader
from anyorder.decoding.fusion.store import SegmentStore
from anyorder.decoding.left_to_right.beams import beam_steps
from anyorder.decoding.left_to_right.reader import BeamReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import by_sampling, decode
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step, Stop
from anyorder.errors import UserError
from anyorder.model.llama import Llama

ALONE = Fusion(correction="none")
"""How a single phrasing is read: with one segment there is nothing to correct."""


def fusion_steps(
    model: Llama,
    questions: Sequence[Question],
    *,
    fusion: Fusion,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Stop | None = None,
    sample_ids: Sequence[int],
    beams: int = 1,
    use_cache: bool = True,
    store: SegmentStore | None = None,
    same_answer: Callable[[Sequence[int]], Hashable] = tuple,
) -> Iterator[Step]:
    """Answer every question until an end token, the stop condition or a limit of length.

    Mistakes are raised at once; each step is yielded as soon as it is taken. Beams and votes have a single step. The
    prompt of an answer is the layout of its question.

    Args:
        model: the network; its configuration names the end tokens and the trained length.
        questions: of any numbers and lengths of phrasings.
        fusion: the method, and its options.
        max_new_tokens: tokens to write per answer at most; no answer goes beyond the trained length either.
        sampling: how a token is chosen.
        stop: called after each token that is no end token, with the number of the question; the token itself stays.
        sample_ids: number of each question, which decides its random draws.
        beams: above 1, beam search with so many, which draws nothing; `stop` is then called for each beam.
        use_cache: False reads everything again for each token.
        store: keeps the keys of prefixes and phrasings, and recalls them.
        same_answer: for "vote": the key of an answer; answers of equal keys are one answer.

    Raises:
        UserError: a question that the network cannot read or answer, in a sentence that names the remedy.
    """
    limits = check_questions(model.config, questions, fusion, max_new_tokens, sample_ids)
    if fusion.method == "vote":
        if beams > 1:
            raise UserError(f"num_beams is {beams} with the method 'vote', which counts answers: leave out one.")
        members = members_of(questions, sample_ids)
        steps = fusion_steps(
            model, list(members.values()), fusion=ALONE, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop,
            sample_ids=list(members), use_cache=use_cache, store=store,
        )  # fmt: skip
        return elect(steps, questions, sample_ids, same_answer)
    texts, rngs = {}, sampling.generators(sample_ids)
    for question, limit, sample_id, rng in zip(questions, limits, sample_ids, rngs, strict=True):
        for _ in range(beams):
            texts[answer_to(question, fusion, limit, sample_id, rng, model.config.eos_token_ids)] = question
    reader = fusion_reader(model, texts, fusion, use_cache, store)
    if beams > 1:
        return beam_steps(list(texts), reader, beams, sampling, stop)
    return decode(list(texts), reader, by_sampling(sampling), stop)


def fusion_reader(
    model: Llama, questions: Mapping[CausalText, Question], fusion: Fusion, use_cache: bool = True,
    store: SegmentStore | None = None,
) -> BeamReader:  # fmt: skip
    """Return the reader of a method, for these answers with their questions."""
    fused = FusedReader(model, questions, fusion, use_cache=use_cache, store=store)
    if fusion.method == "attention":
        return fused
    method = "logit-mean" if fusion.method == HYBRID else fusion.method
    members = {
        text: {
            answer_to(member, ALONE, text.limit - text.first, text.sample_id, text.rng): member
            for member in question.members(unconditional=method == "contrast")
        }
        for text, question in questions.items()
    }
    all_members = {answer: member for of_text in members.values() for answer, member in of_text.items()}
    reader = FusedReader(model, all_members, ALONE, use_cache=use_cache, store=store)
    ensemble = PooledReader(reader, members, questions, POOLS[method])
    return HybridReader(fused, ensemble) if fusion.method == HYBRID else ensemble


def answer_to(
    question: Question, fusion: Fusion, new_tokens: int, sample_id: int, rng: torch.Generator,
    end_token_ids: Sequence[int] = (),
) -> CausalText:  # fmt: skip
    """Return the text of at most this many tokens behind the layout of a question."""
    prompt = question.layout(fusion.positions).token_ids
    return CausalText(sample_id, prompt, rng, end_token_ids, len(prompt) + new_tokens)
