"""Beam search, as in transformers, over any reader whose texts can exchange keys.

Each prompt has W texts in the reader's batch, one for each hypothesis that is followed.

Shapes: B open prompts, W beams of each, N = B * W texts, K candidates of a prompt, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from anyorder.decoding.checks import check_max_new_tokens, check_prompts, checked_log_prob
from anyorder.decoding.left_to_right.reader import BeamReader, CausalReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Step, Stop, StopReason, Written, collect
from anyorder.utils.ragged import log_softmax

if TYPE_CHECKING:
    from anyorder.model.llama import Llama

FAR = 1e9
"""Subtracted from the scores of hypotheses that must not be followed."""


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """The options of a beam search.

    Attributes:
        beams: hypotheses that are followed at a time per prompt, above 1.
        length_penalty: the score of a text is the sum of its log-probabilities, divided by its length to this power.
        early_stopping: True stops as soon as `beams` texts are complete; False, when none that is followed scores
            better at its present length; "never", when none can with `length_penalty` above 0 at its longest.
        repetition_penalty: as in `Sampling`, but on log-probabilities.
    """

    beams: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    repetition_penalty: float = 1.0


class Hypothesis(NamedTuple):
    """A continuation of a prompt.

    Attributes:
        score: sum of its log-probabilities, after the repetition penalty.
        beam: number of the beam that it continues.
        token_ids: what is written.
        log_probs: of each token, before the penalty.
    """

    score: float
    beam: int
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()


class Complete(NamedTuple):
    """A hypothesis that has ended, with its score normalized by its length."""

    score: float
    hypothesis: Hypothesis
    why: StopReason


class Beams:
    """The hypotheses of one prompt.

    Args:
        texts: one for each beam.
        search: the options.
        stop: called with each hypothesis that does not end in an end token.

    Attributes:
        running: the hypotheses that are followed, best first; the first token continues one of them alone.
        complete: the best that have ended, best first.
        is_open: whether to search on.
    """

    def __init__(self, texts: Sequence[CausalText], search: BeamSearch, stop: Stop | None) -> None:
        self.texts = texts
        self.limit = texts[0].limit - texts[0].first
        self.search = search
        self.stop = stop
        self.running = [Hypothesis(-FAR if beam else 0.0, beam) for beam in range(search.beams)]
        self.complete: list[Complete] = []
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
            _, _, token_ids, before = self.running[beam]
            candidates.append(Hypothesis(score, beam, (*token_ids, token_id), (*before, log_prob)))
        length, width = len(candidates[0].token_ids), self.search.beams
        reasons = [self._why_complete(candidate) for candidate in candidates]
        for candidate, why in zip(candidates[:width], reasons, strict=False):
            if why is not None:
                self.complete.append(Complete(candidate.score / length**self.search.length_penalty, candidate, why))
        self.complete = sorted(self.complete, key=lambda complete: -complete.score)[:width]

        ranks = sorted(range(len(candidates)), key=lambda rank: reasons[rank] is not None)[:width]
        self.running = [
            candidates[rank]._replace(score=candidates[rank].score - (0 if reasons[rank] is None else FAR))
            for rank in ranks
        ]
        for text, hypothesis in zip(self.texts, self.running, strict=True):
            text.tokens[text.first :] = hypothesis.token_ids
        self.is_open = None in reasons and self._can_improve(length)

    def _can_improve(self, length: int) -> bool:
        if len(self.complete) < self.search.beams:
            return True
        if self.search.early_stopping is True:
            return False
        penalty = self.search.length_penalty
        longest = self.limit if self.search.early_stopping == "never" and penalty > 0 else length
        return self.running[0].score / longest**penalty > self.complete[-1].score

    def _why_complete(self, hypothesis: Hypothesis) -> StopReason | None:
        text, token_ids = self.texts[0], hypothesis.token_ids
        if token_ids[-1] in text.end_token_ids:
            return "end"
        if self.stop is not None and self.stop(text.sample_id, token_ids):
            return "stop"
        return "length" if len(token_ids) == self.limit else None


@torch.no_grad()
def search_beams(prompts: Sequence[Beams], reader: BeamReader, search: BeamSearch) -> None:
    """Follow the beams of all prompts to their end.

    Args:
        prompts: their texts, one after the other, are the batch of the reader.
        reader: scores the texts.
        search: the options.

    Raises:
        UserError: the logits are not numbers.
    """
    width, sampling = search.beams, Sampling(repetition_penalty=search.repetition_penalty)
    while open_prompts := [beams for beams in prompts if beams.is_open]:
        # 1. Score each token behind each hypothesis that is followed, in float32 as transformers does.
        texts = [text for beams in open_prompts for text in beams.texts]
        log_probs_NV = log_softmax(reader.logits({text: text.queries() for text in texts}))
        scores_NV = sampling.penalized(log_probs_NV.float(), [text.history for text in texts])
        running_N1 = scores_NV.new_tensor([[beam.score] for beams in open_prompts for beam in beams.running])
        total_BC = (scores_NV + running_N1).view(len(open_prompts), -1)
        # 2. Take so many candidates that `width` of them go on even if each end token follows each hypothesis.
        wanted = width * max(2, 1 + len(texts[0].end_token_ids))
        score_BK, index_BK = total_BC.topk(min(wanted, total_BC.shape[1]))
        log_prob_BK = log_probs_NV.view_as(total_BC).gather(1, index_BK)
        # 3. Keep the best of them, and go on from the keys of the hypotheses that they continue.
        columns = (score_BK.tolist(), index_BK.tolist(), log_prob_BK.tolist())
        for beams, scores, indices, log_probs in zip(open_prompts, *columns, strict=True):
            checked_log_prob(scores[0], beams.texts[0].sample_id)
            beams.advance(scores, [divmod(index, scores_NV.shape[1]) for index in indices], log_probs)
        reader.reorder(
            [
                number * width + (hypothesis.beam if beams.is_open else beam)
                for number, beams in enumerate(prompts)
                for beam, hypothesis in enumerate(beams.running)
            ]
        )


def beam_steps(
    texts: Sequence[CausalText], reader: BeamReader, search: BeamSearch, stop: Stop | None
) -> Iterator[Step]:
    """Write the best continuation of each prompt; which tokens these are is known at the end, so there is one step.

    Args:
        texts: the reader's batch, `search.beams` texts with the same sample id for each prompt.
        reader: scores the texts.
        search: the options.
        stop: called with what is written in each beam, which does not only grow.

    Raises:
        UserError: the logits are not numbers.
    """
    groups = [texts[first : first + search.beams] for first in range(0, len(texts), search.beams)]
    prompts = [Beams(group, search, stop) for group in groups]
    search_beams(prompts, reader, search)
    events: list[Written] = []
    stopped: dict[int, StopReason] = {}
    for beams in prompts:
        text, (_, best, why) = beams.texts[0], beams.complete[0]
        stopped[text.sample_id] = why
        for step, (token_id, log_prob) in enumerate(zip(best.token_ids, best.log_probs, strict=True)):
            events.append(Written(step, text.sample_id, text.first + step, token_id, log_prob))
    yield Step(tuple(sorted(events)), stopped, reader.passes)


def write_by_beam_search(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    stop: Stop | None = None,
    use_cache: bool = True,
    sample_ids: Sequence[int] | None = None,
) -> Generation:
    """Continue every prompt by the best of the texts that so many beams find.

    The best is that with the highest log-probability per token. In the trace, a token's log-probability is the
    network's own.

    Args:
        model: the network; its configuration names the end tokens and the longest text.
        prompts: token ids, one sequence per prompt, of any lengths.
        beams, repetition_penalty: see `BeamSearch`.
        max_new_tokens: tokens to write per prompt at most; no text goes beyond the longest either.
        stop: called after each token of each beam, with texts that do not only grow.
        use_cache: False computes all rows again for each token.
        sample_ids: number of each prompt; 0, 1, 2, ... unless given.

    Raises:
        UserError: as `write_left_to_right`.
    """
    sample_ids = range(len(prompts)) if sample_ids is None else sample_ids
    steps = beam_search_steps(
        model, prompts, beams=beams, max_new_tokens=max_new_tokens, repetition_penalty=repetition_penalty, stop=stop,
        use_cache=use_cache, sample_ids=sample_ids,
    )  # fmt: skip
    return collect(steps, prompts, sample_ids, model.config.eos_token_ids)


def beam_search_steps(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: int,
    repetition_penalty: float,
    stop: Stop | None,
    use_cache: bool,
    sample_ids: Sequence[int],
) -> Iterator[Step]:
    """Yield the one step of `write_by_beam_search`. Mistakes are raised at once."""
    check_prompts(model.config, prompts, sample_ids)
    check_max_new_tokens(max_new_tokens)
    config, search = model.config, BeamSearch(beams=beams, repetition_penalty=repetition_penalty)
    texts = [
        CausalText(
            sample_id,
            prompt,
            torch.Generator(),
            config.eos_token_ids,
            min(len(prompt) + max_new_tokens, config.context_length),
        )
        for sample_id, prompt in zip(sample_ids, prompts, strict=True)
        for _ in range(beams)
    ]
    return beam_steps(texts, CausalReader(model, texts, use_cache=use_cache), search, stop)
