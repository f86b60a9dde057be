"""Beam search, as in transformers, over any reader whose texts can exchange keys.

Each prompt has W texts in the reader's batch, one for each hypothesis that is followed. The score of a complete text is
its log-probability per token, after the repetition penalty. A search ends when none of the hypotheses that are followed
scores better at its present length than the worst of W complete texts (transformers' `early_stopping=False`).

Shapes: B open prompts, W beams of each, N = B * W texts, K candidates of a prompt, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from anyorder.decoding.checks import not_numbers
from anyorder.decoding.left_to_right.reader import BeamReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step, Stop, StopReason, Written
from anyorder.utils.ragged import log_softmax

FAR = 1e9
"""Subtracted from the scores of hypotheses that must not be followed."""


class Hypothesis(NamedTuple):
    """A continuation of a prompt.

    Attributes:
        score: sum of its log-probabilities, after the repetition penalty; their mean once it is complete.
        beam: number of the beam that it continues.
        token_ids: what is written.
        log_probs: of each token, before the penalty.
        why: why it is complete; None while it is not.
    """

    score: float
    beam: int
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    why: StopReason | None = None


class Beams:
    """The hypotheses of one prompt.

    Args:
        texts: one for each beam.
        stop: called with each hypothesis that does not end in an end token.

    Attributes:
        running: the hypotheses that are followed, best first; the first token continues one of them alone.
        complete: the best that have ended, best first.
        is_open: whether to search on.
    """

    def __init__(self, texts: Sequence[CausalText], stop: Stop | None) -> None:
        self.texts = texts
        self.stop = stop
        self.running = [Hypothesis(-FAR if beam else 0.0, beam) for beam in range(len(texts))]
        self.complete: list[Hypothesis] = []
        self.is_open = True

    def advance(self, scores: Sequence[float], tokens: Sequence[tuple[int, int]], log_probs: Sequence[float]) -> None:
        """Keep the best candidates.

        Args:
            scores: of each candidate, the highest first.
            tokens: the beam that each continues, and the token.
            log_probs: of the tokens.
        """
        candidates = []
        for score, (beam, token_id), log_prob in zip(scores, tokens, log_probs, strict=True):
            token_ids = (*self.running[beam].token_ids, token_id)
            before = self.running[beam].log_probs
            candidates.append(Hypothesis(score, beam, token_ids, (*before, log_prob), self._why_complete(token_ids)))
        length, width = len(candidates[0].token_ids), len(self.texts)
        ended = [one._replace(score=one.score / length) for one in candidates[:width] if one.why is not None]
        self.complete = sorted([*self.complete, *ended], key=lambda complete: -complete.score)[:width]

        going = [one for one in candidates if one.why is None]
        dropped = [one._replace(score=one.score - FAR) for one in candidates if one.why is not None]
        self.running = [*going, *dropped][:width]
        for text, hypothesis in zip(self.texts, self.running, strict=True):
            text.tokens[text.first :] = hypothesis.token_ids
        can_improve = len(self.complete) < width or self.running[0].score / length > self.complete[-1].score
        self.is_open = bool(going) and can_improve

    def _why_complete(self, token_ids: tuple[int, ...]) -> StopReason | None:
        text = self.texts[0]
        if token_ids[-1] in text.end_token_ids:
            return "end"
        if self.stop is not None and self.stop(text.sample_id, token_ids):
            return "stop"
        return "length" if text.first + len(token_ids) == text.limit else None


@torch.no_grad()
def search_beams(prompts: Sequence[Beams], reader: BeamReader, sampling: Sampling) -> None:
    """Follow the beams of all prompts to their end.

    Args:
        prompts: their texts, one after the other, are the batch of the reader.
        reader: scores the texts.
        sampling: has the repetition penalty, which applies to log-probabilities.

    Raises:
        UserError: the logits are not numbers.
    """
    while open_prompts := [beams for beams in prompts if beams.is_open]:
        # 1. Score each token behind each hypothesis that is followed, in float32 as transformers does.
        texts = [text for beams in open_prompts for text in beams.texts]
        log_probs_NV = log_softmax(reader.logits({text: text.queries() for text in texts}))
        scores_NV = sampling.penalized(log_probs_NV.float(), [text.history for text in texts])
        running_N1 = scores_NV.new_tensor([[beam.score] for beams in open_prompts for beam in beams.running])
        total_BC = (scores_NV + running_N1).view(len(open_prompts), -1)
        # 2. Take so many candidates that W of them go on even if each end token follows each hypothesis.
        width = len(texts) // len(open_prompts)
        candidates = width * max(2, 1 + len(texts[0].end_token_ids))
        score_BK, index_BK = total_BC.topk(min(candidates, total_BC.shape[1]))
        log_prob_BK = log_probs_NV.view_as(total_BC).gather(1, index_BK)
        # 3. Keep the best of them, and go on from the keys of the hypotheses that they continue.
        columns = (score_BK.tolist(), index_BK.tolist(), log_prob_BK.tolist())
        for beams, scores, indices, log_probs in zip(open_prompts, *columns, strict=True):
            if math.isnan(scores[0]):
                raise not_numbers(f" for row {beams.texts[0].sample_id}")
            beams.advance(scores, [divmod(index, scores_NV.shape[1]) for index in indices], log_probs)
        reader.reorder(
            [
                number * width + (hypothesis.beam if beams.is_open else beam)
                for number, beams in enumerate(prompts)
                for beam, hypothesis in enumerate(beams.running)
            ]
        )


def beam_steps(
    texts: Sequence[CausalText], reader: BeamReader, width: int, sampling: Sampling, stop: Stop | None
) -> Iterator[Step]:
    """Write the best continuation of each prompt; which tokens these are is known at the end, so there is one step.

    Args:
        texts: the reader's batch, `width` texts with the same sample id for each prompt.
        reader: scores the texts.
        width: beams of each prompt.
        sampling: see `search_beams`.
        stop: called with what is written in each beam, which does not only grow.

    Raises:
        UserError: the logits are not numbers.
    """
    prompts = [Beams(texts[first : first + width], stop) for first in range(0, len(texts), width)]
    search_beams(prompts, reader, sampling)
    events: list[Written] = []
    stopped: dict[int, StopReason] = {}
    for beams in prompts:
        text, best = beams.texts[0], beams.complete[0]
        assert best.why is not None, "it is complete"
        stopped[text.sample_id] = best.why
        for step, (token_id, log_prob) in enumerate(zip(best.token_ids, best.log_probs, strict=True)):
            events.append(Written(step, text.sample_id, text.first + step, token_id, log_prob))
    yield Step(tuple(sorted(events)), stopped, reader.passes)
