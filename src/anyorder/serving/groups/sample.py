"""One text of a request while it is written, and what is reported of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anyorder.api.output import Finished
from anyorder.api.text import Continuation, Gaps
from anyorder.decoding.checks import not_numbers
from anyorder.decoding.loop import Choice, Choose, Text
from anyorder.decoding.trace import Recorder, Step, Stop, StopReason, Written
from anyorder.utils.ragged import log_softmax

if TYPE_CHECKING:
    from anyorder.serving.groups.group import Group


class Alternative(NamedTuple):
    """A token that might stand at a position, and the logarithm of its probability by the network's own scores."""

    token_id: int
    log_prob: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What is done to the network's scores before a token is chosen, and what is reported of them.

    Attributes:
        bias: added to the score of each of these tokens.
        frequency_penalty: subtracted from the score of a token for each time that it was written.
        presence_penalty: subtracted from the score of a token that was written at all.
        alternatives: number of the most probable tokens that are reported for each token written, by the network's own
            scores; None reports nothing.
    """

    bias: Mapping[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    alternatives: int | None = None

    @property
    def changes(self) -> bool:
        """Whether scores change at all."""
        return bool(self.bias or self.frequency_penalty or self.presence_penalty)

    def changed(self, logits_MV: Tensor, written: Sequence[int]) -> Tensor:
        """Return the changed scores of one sample, `[M, V]`, given the tokens that were written in it."""
        logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32), copy=True)
        added = dict(self.bias)
        if self.frequency_penalty or self.presence_penalty:
            for token_id, count in Counter(written).items():
                penalty = self.presence_penalty + self.frequency_penalty * count
                added[token_id] = added.get(token_id, 0.0) - penalty
        if added:
            logits_MV[:, list(added)] += torch.tensor(list(added.values()), device=logits_MV.device)
        return logits_MV


PLAIN = Scores()


@dataclass(eq=False, kw_only=True)
class Sample:
    """One text of a request while it is written. The engine's thread writes it; others may read it at any time.

    Args:
        text: as decoders have it.
        prompt: token ids, or the canvas.
        prompt_text: as it was given; None where that was token ids.
        spelled: what makes characters of its tokens; None without a tokenizer.
        choose: picks its tokens, those of all samples with the same `choose` together; None where a decoder does.
        kind: samples of one kind can share a group.
        new_group: makes a group of its kind.
        end_token_ids: of the network.
        scores: changes and reports of scores.
        never: a token that is never written, and has no part in what is reported; None where each may be.
        follows: whether the text is spelled while it is written; otherwise at its end.

    Attributes:
        steps: what was written, pass by pass.
        pieces: of the settled text, each final.
        alternatives: by step and position of a token, itself and the most probable tokens there.
        stopped: why the text is complete; None while it is not.
    """

    text: Text
    prompt: Sequence[int]
    prompt_text: str | None
    spelled: Continuation | Gaps | None
    choose: Choose[Any] | None
    kind: Hashable
    new_group: Callable[[], Group]
    end_token_ids: tuple[int, ...]
    scores: Scores = PLAIN
    never: int | None = None
    follows: bool = False
    steps: list[Step] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    alternatives: dict[tuple[int, int], list[Alternative]] = field(default_factory=dict)
    stopped: StopReason | None = None

    @property
    def stop(self) -> Stop | None:
        """The condition to stop, which also spells the text."""
        spelled = self.spelled
        if not self.follows or not isinstance(spelled, Continuation):
            return None
        return lambda _, written: spelled.update(written)

    def take(self, choices: Sequence[Choice], own_logits_MV: Tensor | None, passes: int) -> None:
        """Commit choices, one for each query.

        Args:
            choices: of this pass.
            own_logits_MV: the network's own scores of the same queries, where they are reported.
            passes: forward passes that it took.

        Raises:
            UserError: a log-probability is not a number.
        """
        if any(math.isnan(choice.log_prob) for choice in choices):
            raise not_numbers()
        number = len(self.steps)
        written = self.text.commit(choices)
        if own_logits_MV is not None and written:
            self._note_alternatives(number, choices, written, own_logits_MV)
        stopped = self.text.why_complete(self.stop)
        sample_id = self.text.sample_id
        events = (Written(number, sample_id, one.position, one.token_id, one.log_prob) for one in written)
        self.end_step(Step(tuple(events), {sample_id: stopped} if stopped else {}, passes))

    def end_step(self, step: Step) -> None:
        """Note a step, in which the text has been spelled already."""
        self.steps.append(step)
        stopped = step.stopped.get(self.text.sample_id)
        spelled = self.spelled
        piece = spelled.piece(last=bool(stopped)) if self.follows and isinstance(spelled, Continuation) else ""
        if piece:
            self.pieces.append(piece)
        self.stopped = stopped

    def _note_alternatives(
        self, step: int, choices: Sequence[Choice], written: Sequence[Choice], own_logits_MV: Tensor
    ) -> None:
        row_of = {choice.position: row for row, choice in enumerate(choices)}
        known = [choice for choice in written if choice.position in row_of]
        if not known:
            return
        logits_MV = own_logits_MV[[row_of[choice.position] for choice in known]]
        if self.never is not None:
            logits_MV[:, self.never] = -torch.inf
        log_probs_MV = log_softmax(logits_MV)
        best = log_probs_MV.topk(min(max(1, self.scores.alternatives or 0), log_probs_MV.shape[1]))
        for choice, own, values, ids in zip(
            known, log_probs_MV, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            itself = Alternative(choice.token_id, float(own[choice.token_id]))
            others = [Alternative(*pair) for pair in zip(ids, values, strict=True)]
            self.alternatives[step, choice.position] = [itself, *others[: self.scores.alternatives or 0]]

    def finished(self, seconds: float) -> Finished:
        """Return the complete text, which took so many seconds."""
        sample_id = self.text.sample_id
        recorder = Recorder([self.prompt], [sample_id], self.end_token_ids)
        for _ in recorder.watch(self.steps):
            pass
        generation = recorder.generation()
        object.__setattr__(generation.trace, "seconds", seconds)
        spelled = None if self.spelled is None else [self.spelled]
        return Finished.of(generation, spelled, [self.prompt_text])
