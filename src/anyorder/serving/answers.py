"""From samples to the JSON of OpenAI's and llama.cpp's routes, whole or in chunks.

A stream carries settled text alone: what no later step changes, up to the first position that is open. With `diffusing`
each chunk has the whole text instead, and with "events" also what was written where.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anyorder.api.output import Output
from anyorder.api.text import Continuation, Gaps
from anyorder.decoding.canvas import BLANK
from anyorder.serving.fields import Chat, Completion, Infill, Writing
from anyorder.serving.groups.sample import Alternative, Sample
from anyorder.serving.pieces import Pieces
from anyorder.serving.plans import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN = "▁"
"""Stands for a position that is not written yet."""

FINISH = {"end": "stop", "stop": "stop", "length": "length"}

Echo = list[list[Alternative] | None]


@dataclass(kw_only=True)
class Answer:
    """Makes the answer to one request.

    Args:
        body: of the request.
        plan: of what is written.
        tokenizer: of the network; None where it has none.
        pieces: spells single tokens; likewise.
        name: of the network.
        echoes: for each prompt, what `echo_scores` found; empty unless wanted.
    """

    body: Writing
    plan: Plan
    tokenizer: PreTrainedTokenizerBase | None
    pieces: Pieces | None
    name: str
    echoes: Sequence[Echo] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_chat(self) -> bool:
        """Whether choices are messages."""
        return isinstance(self.body, Chat)

    # ---- whole -----------------------------------------------------------------------------------------

    def whole(self, samples: Sequence[Sample], outputs: Sequence[Output]) -> dict[str, Any]:
        """Return the answer of complete samples."""
        if isinstance(self.body, Infill):
            [output] = outputs[:1]
            return {
                "content": output.text, "stop": True, "model": self.name, "tokens_predicted": len(output.token_ids),
                "tokens_evaluated": self.plan.prompt_tokens[0], "stop_type": _stop_type(output), "seed": self._seed,
            }  # fmt: skip
        choices = [
            self.choice_of(index, sample, output)
            for index, (sample, output) in enumerate(zip(samples, outputs, strict=True))
        ]
        return {
            **self._head("chat.completion" if self.is_chat else "text_completion"), "choices": choices,
            "usage": self.usage(samples), "seed": self._seed,
        }  # fmt: skip

    def echo_alone(self) -> dict[str, Any]:
        """Return the answer to a request that has nothing written: the prompts with their log-probabilities."""
        choices = [
            {"index": index, "text": self._prompt_text(index), "finish_reason": "length"}
            | {"logprobs": self.completion_logprobs(self._echoed(index), index)}
            for index in range(len(self.plan.prompts))
        ]
        tokens = sum(self.plan.prompt_tokens)
        usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        return {**self._head("text_completion"), "choices": choices, "usage": usage}

    def choice_of(self, index: int, sample: Sample, output: Output) -> dict[str, Any]:
        """Return the choice of a complete sample."""
        choice: dict[str, Any] = {"index": index, "finish_reason": FINISH[output.stopped[0]]}
        text = str(output.text or "")
        if self.is_chat:
            written = self.chat_logprobs(self.reported(sample)) if self.reports else None
            return {
                **choice, "message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": written,
            }  # fmt: skip
        assert isinstance(self.body, Completion) or not self.reports
        echo = isinstance(self.body, Completion) and self.body.echo
        before = self._prompt_text(index) if echo else ""
        if isinstance(self.body, Completion) and self.body.gaps:
            parts = sample.spelled.parts if isinstance(sample.spelled, Gaps) else [text]
            choice["gaps"] = [{"index": number, "text": part} for number, part in enumerate(parts)]
            text = str(output.full_text or "")
        logprobs = None
        if self.reports:
            tokens = (self._echoed(index) if echo else []) + self.reported(sample)
            logprobs = self.completion_logprobs(tokens, index)
        return {**choice, "text": before + text, "logprobs": logprobs, "token_ids": output.token_ids}

    def usage(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return what a request took."""
        # Several texts of one prompt have it read once.
        prompt = sum(self.plan.prompt_tokens[:: self.body.n])
        written = [len({event.position for step in sample.steps for event in step.written}) for sample in samples]
        passes = max((sum(step.passes for step in sample.steps) for sample in samples), default=0)
        return {
            "prompt_tokens": prompt, "completion_tokens": sum(written), "total_tokens": prompt + sum(written),
            "passes": passes, "tokens_per_pass": round(sum(written) / passes, 3) if passes else 0.0,
        }  # fmt: skip

    # ---- in chunks -------------------------------------------------------------------------------------

    def first_chunks(self) -> Iterator[dict[str, Any]]:
        """Yield what a stream begins with."""
        if self.is_chat:
            for index in range(len(self.plan.prompts)):
                yield self.chunk(index, "", role=True)

    def last_chunk(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return what a stream ends with, if usage is wanted: no choices, but what the request took."""
        return {**self._chunk_head(), "choices": [], "usage": self.usage(samples), "seed": self._seed}

    def chunk(
        self, index: int, text: str, *, finish: str | None = None, role: bool = False, logprobs: Any = None,
        extra: dict[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Return a chunk of one choice.

        Args:
            index: of the choice.
            text: that is new, or the whole of it.
            finish: why the choice is complete; None while it is not.
            role: whether this is the first chunk of a message.
            logprobs: what is reported of its tokens.
            extra: fields of our own.
        """
        if isinstance(self.body, Infill):
            return {"content": text, "stop": finish is not None, **(extra or {})}
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": logprobs}
        if self.is_chat:
            choice["delta"] = ({"role": "assistant"} if role else {}) | (
                {} if finish and not text else {"content": text}
            )
        else:
            choice["text"] = text
        return {**self._chunk_head(), "choices": [choice], **(extra or {})}

    def _chunk_head(self) -> dict[str, Any]:
        head = self._head("chat.completion.chunk" if self.is_chat else "text_completion")
        return head | ({"usage": None} if self.body.streaming.include_usage else {})

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl-" if self.is_chat else "cmpl-"
        return {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.name}

    @property
    def _seed(self) -> int:
        return self.plan.sampling.seed

    @property
    def reports(self) -> bool:
        """Whether log-probabilities are reported."""
        return self.body.alternatives is not None

    # ---- log-probabilities -----------------------------------------------------------------------------

    def reported(self, sample: Sample, first_step: int = 0, end_step: int | None = None) -> list[list[Alternative]]:
        """Return what is reported of tokens, one for each position, in order and without an end token.

        Args:
            sample: whose tokens.
            first_step: the first of its steps that counts.
            end_step: the step behind the last one; all unless given.
        """
        standing: dict[int, list[Alternative]] = {}
        for step in sample.steps[first_step:end_step]:
            for event in step.written:
                known = sample.alternatives.get((event.step, event.position))
                standing[event.position] = known or [Alternative(event.token_id, event.log_prob)]
        tokens = [standing[position] for position in sorted(standing)]
        ends = [number for number, token in enumerate(tokens) if token[0].token_id in sample.end_token_ids]
        return tokens[: ends[0]] if ends and sample.text.continues else tokens

    def _echoed(self, index: int) -> list[Any]:
        if self.echoes:
            return list(self.echoes[index // self.body.n])
        return []

    def chat_logprobs(self, tokens: Sequence[list[Alternative]]) -> dict[str, Any]:
        """Return what is reported of the tokens of a message."""
        content = []
        for itself, *others in tokens:
            entry = self._token_entry(itself)
            content.append(entry | {"top_logprobs": [self._token_entry(other) for other in others]})
        return {"content": content, "refusal": None, "logprobs_at": "write"}

    def _token_entry(self, token: Alternative) -> dict[str, Any]:
        own = None if self.pieces is None else self.pieces.bytes(token.token_id)
        return {"token": self.spelled(token.token_id), "logprob": _finite(token.log_prob), "bytes": own}

    def completion_logprobs(self, tokens: Sequence[list[Alternative] | None], index: int) -> dict[str, Any]:
        """Return what is reported of the tokens of a choice; of None, the first token of an echo, the text alone."""
        texts, own, top, offsets = [], [], [], []
        offset = 0
        for number, token in enumerate(tokens):
            text = self.spelled(self.plan.prompts[index][number] if token is None else token[0].token_id)
            texts.append(text)
            own.append(None if token is None else _finite(token[0].log_prob))
            top.append(None if token is None else self._top(token))
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets, "logprobs_at": "write",
        }  # fmt: skip

    def _top(self, token: list[Alternative]) -> dict[str, float]:
        top: dict[str, float] = {}
        for other in token[1:]:
            top.setdefault(self.spelled(other.token_id), _finite(other.log_prob))
        return top

    def spelled(self, token_id: int) -> str:
        """Return the text of a token; its id where there is no tokenizer."""
        return str(token_id) if self.pieces is None else self.pieces.text(token_id)

    def _prompt_text(self, index: int) -> str:
        text = self.plan.texts[index]
        if text is not None:
            return text
        if self.tokenizer is None:
            return ""
        return str(self.tokenizer.decode(list(self.plan.prompts[index]), clean_up_tokenization_spaces=False))


class Stream:
    """Makes chunks of the samples of a request while they are written.

    Args:
        answer: makes the chunks.
        samples: of the request.
    """

    def __init__(self, answer: Answer, samples: Sequence[Sample]) -> None:
        self.answer = answer
        self.samples = samples
        self.pieces = [0] * len(samples)
        self.steps = [0] * len(samples)
        self.shown: list[str | None] = [None] * len(samples)
        self.ended = [False] * len(samples)
        self.positions: list[dict[int, int]] = [{} for _ in samples]

    def chunks(self, outputs: Sequence[Output] = ()) -> Iterator[dict[str, Any]]:
        """Yield what is new; at the end, given the outputs, also what is left."""
        for index, sample in enumerate(self.samples):
            if self.ended[index]:
                continue
            stopped = sample.stopped
            steps = len(sample.steps)
            if self.answer.body.diffusing:
                yield from self._replaced(index, sample, steps)
            else:
                yield from self._settled(index, sample, steps, outputs)
            if stopped is not None and (outputs or isinstance(sample.spelled, Continuation)):
                self.ended[index] = True
                logprobs = None
                if self.answer.reports and BLANK in sample.prompt:
                    logprobs = self._logprobs(self.answer.reported(sample), index)
                # The last chunk takes the place of the one before, too.
                text = self.shown[index] or ""
                yield self.answer.chunk(index, text, finish=FINISH[stopped], logprobs=logprobs)

    def _settled(
        self, index: int, sample: Sample, steps: int, outputs: Sequence[Output]
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        if isinstance(sample.spelled, Continuation):
            end = len(sample.pieces)
            text = "".join(sample.pieces[self.pieces[index] : end])
            self.pieces[index] = end
        else:
            text = self.answer.choice_of(index, sample, outputs[index]).get("text", "") if outputs else ""
        logprobs = None
        # Tokens of a canvas are written in other places than where the text has settled: those come at the end.
        if self.answer.reports and BLANK not in sample.prompt:
            tokens = self.answer.reported(sample, self.steps[index], steps)
            logprobs = self._logprobs(tokens, index) if tokens else None
        self.steps[index] = steps
        if text or logprobs:
            yield self.answer.chunk(index, text, logprobs=logprobs)

    def _logprobs(self, tokens: Sequence[list[Alternative]], index: int) -> dict[str, Any]:
        if self.answer.is_chat:
            return self.answer.chat_logprobs(tokens)
        return self.answer.completion_logprobs(tokens, index)

    def _replaced(self, index: int, sample: Sample, steps: int) -> Iterator[dict[str, Any]]:
        """Yield the whole text, where it has changed, and with "events" what has changed."""
        complete = sample.stopped is not None and isinstance(sample.spelled, Continuation)
        text = sample.spelled.text if complete else canvas_text(sample, self.answer.tokenizer)  # type: ignore[union-attr]
        extra = None
        if self.answer.body.diffusing == "events":
            events = list(self._events(index, sample, steps))
            length = len(sample.prompt) + max(0, len(sample.text.tokens) - len(sample.prompt))
            extra = {"canvas": {"choice": index, "pass": steps, "length": length, "events": events}}
        self.steps[index] = steps
        if text != self.shown[index] or (extra and extra["canvas"]["events"]):
            self.shown[index] = text
            yield self.answer.chunk(index, text, extra=extra)

    def _events(self, index: int, sample: Sample, steps: int) -> Iterator[dict[str, Any]]:
        known = self.positions[index]
        for step in sample.steps[self.steps[index] : steps]:
            for event in step.written:
                before = known.get(event.position)
                known[event.position] = event.token_id
                yield {
                    "step": event.step, "position": event.position, "action": "write" if before is None else "edit",
                    "token": event.token_id, "text": self.answer.spelled(event.token_id),
                    "prob": round(math.exp(event.log_prob), 6),
                    **({} if before is None else {"from": before}),
                }  # fmt: skip


def canvas_text(sample: Sample, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Spell what is written of a sample so far, with `OPEN` for each position that is open."""
    if tokenizer is None:
        return ""
    text = sample.text
    tokens = list(text.tokens)
    if text.continues:
        tokens = tokens[text.first :]
        ends = [at for at, token_id in enumerate(tokens) if token_id in sample.end_token_ids]
        tokens = tokens[: ends[0]] if ends else tokens
    parts: list[str] = []
    run: list[int] = []
    for token_id in [*tokens, None]:
        if token_id is not None and token_id != BLANK:
            run.append(token_id)
            continue
        if run:
            parts.append(str(tokenizer.decode(run, skip_special_tokens=True, clean_up_tokenization_spaces=False)))
            run = []
        if token_id == BLANK:
            parts.append(OPEN)
    return "".join(parts)


def _stop_type(output: Output) -> str:
    return {"end": "eos", "stop": "word", "length": "limit"}[output.stopped[0]]


def _finite(log_prob: float) -> float:
    """The number, as JSON has no infinity."""
    return max(log_prob, -9999.0)
