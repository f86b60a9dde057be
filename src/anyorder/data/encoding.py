"""From records to samples: token ids that are checked, and which of them are answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from anyorder.checkpoints.tokenizer.encoding import document_tokens
from anyorder.data.chat import Answered, Chat
from anyorder.data.config import DataConfig
from anyorder.data.forms import BadRecordError
from anyorder.data.records import BadLines, Dialogue, Document, Record, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256
"""Records that are tokenised at a time: enough for the tokenizer's threads, little enough for memory."""


@dataclass(frozen=True)
class Sample:
    """A text as token ids.

    Attributes:
        ids: int32 `[tokens]`.
        answer_spans: begin and end of each answer; none where the whole is trained on.
        cut: tokens behind these that a row had no room for.
    """

    ids: npt.NDArray[np.int32]
    answer_spans: tuple[tuple[int, int], ...] = ()
    cut: int = 0


@dataclass
class Tally:
    """What was read.

    Attributes:
        forms: number of records of each form.
        truncated: samples whose answers were cut, because they are longer than the row.
        tokens: of all samples, before they are cut or packed.
        target_tokens: those of them that are trained on, in texts of which the bytes are known.
        target_bytes: what these say, in UTF-8.
    """

    forms: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    tokens: int = 0
    target_tokens: int = 0
    target_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Turns records into samples and refuses those that no network could be trained on.

    Attributes:
        config: completed; token ids that come as such get no end token.
        tokenizer: None where the data are token ids.
        chat: None where there is no tokenizer.
        bad_lines: what happens to what is refused.
        tally: counts what is read.
    """

    config: DataConfig
    tokenizer: PreTrainedTokenizerBase | None
    chat: Chat | None
    bad_lines: BadLines
    tally: Tally

    def samples(self, records: Iterable[Record]) -> Iterator[list[Sample]]:
        """Yield samples in the order of the records, some at a time."""
        remaining = iter(records)
        while chunk := list(islice(remaining, CHUNK)):
            yield list(self._chunk(chunk))

    def _chunk(self, records: Sequence[Record]) -> Iterator[Sample]:
        texts = iter(self._texts([record.text for record in records if isinstance(record, Document)]))
        dialogues = iter(self._dialogues([record for record in records if isinstance(record, Dialogue)]))
        for record in records:
            samples = self._samples(record, texts, dialogues)
            if isinstance(samples, BadRecordError):
                self.bad_lines.refuse(record.place, samples.problem, samples.remedy)
            else:
                self.tally.forms[record.form] += 1
                yield from samples

    def _samples(
        self, record: Record, texts: Iterator[list[int]], dialogues: Iterator[list[Answered] | BadRecordError]
    ) -> list[Sample] | BadRecordError:
        """Return the samples of a record, whose tokens are the next ones of its kind: one, or several of a dialogue."""
        try:
            match record:
                case TokenIds():
                    return [self._given(record)]
                case Document():
                    return [self._document(record, next(texts))]
                case Dialogue():
                    return self._dialogue(next(dialogues))
        except BadRecordError as error:
            return error

    # ---- each kind of record -----------------------------------------------------------------------

    def _given(self, record: TokenIds) -> Sample:
        ids = self._checked(record.ids)
        self.tally.tokens += len(ids)
        if self.config.kind == "pretrain":
            return Sample(ids)
        if record.answer_spans is not None:
            return self._fitted(ids, record.answer_spans)
        if record.prompt_length is None:
            raise BadRecordError(
                "has neither `prompt_length` nor `labels`",
                "say how many of its tokens are the prompt, or which are trained on",
            )
        return self._fitted(ids, [(record.prompt_length, len(ids))])

    def _document(self, record: Document, tokens: list[int]) -> Sample:
        if self.tokenizer is None or self.config.end_token_id is None:
            raise _untokenised()
        if self.config.kind == "sft":
            raise BadRecordError("has no answer", "give `prompt` and `response`, or `messages`")
        ids = self._checked(tokens)
        self._count(len(ids), len(ids), len(record.text.encode()))
        return Sample(ids)

    def _dialogue(self, answered: list[Answered] | BadRecordError) -> list[Sample]:
        if isinstance(answered, BadRecordError):
            raise answered
        if self.config.kind == "pretrain":  # the last row holds the whole
            ids = self._checked(answered[-1].ids)
            self._count(len(ids), len(ids), answered[-1].text_bytes)
            return [Sample(ids)]
        samples = []
        for number, row in enumerate(answered):
            ids = self._checked(row.ids)
            if number and row.answer_spans[0][0] >= self.config.length:  # as an answer beyond the row's end
                self.tally.truncated += 1
                continue
            samples.append(self._fitted(ids, row.answer_spans))
            self._count(len(ids), sum(end - begin for begin, end in row.answer_spans), row.answer_bytes)
        return samples

    def _fitted(self, ids: npt.NDArray[np.int32], answer_spans: Sequence[tuple[int, int]]) -> Sample:
        """Return the beginning that a row holds, with the answers that begin in it."""
        if (prompt := answer_spans[0][0]) >= self.config.length:
            raise BadRecordError(
                f"the prompt has {prompt} tokens and a row {self.config.length}, which leaves none for the answer",
                "shorten it, or give longer rows",
            )
        self.tally.truncated += len(ids) > self.config.length
        kept = tuple((begin, min(end, self.config.length)) for begin, end in answer_spans if begin < self.config.length)
        return Sample(ids[: kept[-1][1]], kept, len(ids) - kept[-1][1])

    # ---- tokens ------------------------------------------------------------------------------------

    def _texts(self, texts: list[str]) -> Sequence[list[int]]:
        if self.tokenizer is None or self.config.kind == "sft" or not texts:
            return [[]] * len(texts)  # refused later, each in its turn
        return document_tokens(self.tokenizer, texts, self.config.end_token_id)

    def _dialogues(self, dialogues: list[Dialogue]) -> Sequence[list[Answered] | BadRecordError]:
        return [_untokenised()] * len(dialogues) if self.chat is None else self.chat.tokens(dialogues)

    def _checked(self, tokens: Sequence[int]) -> npt.NDArray[np.int32]:
        size, masks = self.config.vocab_size, frozenset(self.config.mask_token_ids)
        assert size is not None, "completed"
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < size:
                raise BadRecordError(
                    f"has token {token}, and the vocabulary has {size}", "use the network's own tokenizer"
                )
        if not masks.isdisjoint(tokens):
            token = next(token for token in tokens if token in masks)
            raise BadRecordError(f"has the mask token, {token}", "take it out: it marks what is to be written")
        return np.asarray(tokens, dtype=np.int32)

    def _count(self, tokens: int, targets: int, size: int) -> None:
        self.tally.tokens += tokens
        self.tally.target_tokens += targets
        self.tally.target_bytes += size


def _untokenised() -> BadRecordError:
    return BadRecordError("is text, and there is no tokenizer", "give the network's tokenizer")
