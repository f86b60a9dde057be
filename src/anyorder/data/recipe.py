"""Everything that decides which rows data become, and the making of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pyarrow as pa

from anyorder.checkpoints.chat_template.render import chat_template, given_template, tool_template
from anyorder.data import rows
from anyorder.data.chat import Chat
from anyorder.data.encoding import Encoder, Kind, Sample, Tally
from anyorder.data.files import find
from anyorder.data.readers import Documents, read_records
from anyorder.data.records import BadLines, with_last_answer_only
from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 5
"""Of the prepared rows; raised when the same data become other rows, so that old ones are not taken for them."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `prepare` is asked for, with what it chooses itself filled in; see there for the attributes."""

    source: Path
    tokenizer: PreTrainedTokenizerBase | None
    length: int
    kind: Kind
    packed: bool
    documents: Documents
    template: str | None
    tool_template: str | None
    end_token_id: int | None
    mask_token_ids: frozenset[int]
    vocab_size: int
    skip_bad_lines: bool
    last_answer_only: bool

    @classmethod
    def of(
        cls,
        source: str | Path,
        tokenizer: PreTrainedTokenizerBase | None,
        length: int,
        *,
        kind: Kind = "pretrain",
        packed: bool = True,
        documents: Documents = "file",
        template: str | None = None,
        end_token_id: int | None = None,
        mask_token_ids: Collection[int] = (),
        vocab_size: int | None = None,
        skip_bad_lines: bool = False,
        last_answer_only: bool = False,
    ) -> Recipe:
        """The recipe for what a user asks for.

        Raises:
            UserError: an option has a value that it cannot have, or one is missing.
        """
        if kind not in get_args(Kind):
            raise UserError(f"kind is {kind!r}: give one of {', '.join(get_args(Kind))}.")
        if last_answer_only and kind != "sft":
            raise UserError(f"last_answer_only is given for kind {kind!r}, which learns whole texts: leave it out.")
        if length < 1:
            raise UserError(f"length is {length}: give at least 1 token.")
        if tokenizer is None and vocab_size is None:
            raise UserError("tokenizer and vocab_size are None: give one, which tells what tokens there are.")
        if tokenizer is not None and end_token_id is None:
            end_token_id = tokenizer.eos_token_id
            if end_token_id is None:
                raise UserError(
                    "the tokenizer has no end token and end_token_id is None: give the network's end token."
                )
        for_tools = None
        if template is not None:
            template = given_template(tokenizer, template)
        elif tokenizer is not None:
            template, for_tools = chat_template(tokenizer, end_token_id), tool_template(tokenizer)
        return cls(
            source=Path(source), tokenizer=tokenizer, length=length, kind=kind, packed=packed, documents=documents,
            template=template, tool_template=for_tools, end_token_id=end_token_id,
            mask_token_ids=frozenset(mask_token_ids),
            vocab_size=len(tokenizer) if tokenizer is not None and vocab_size is None else vocab_size or 0,
            skip_bad_lines=skip_bad_lines, last_answer_only=last_answer_only,
        )  # fmt: skip

    def fingerprint(self) -> str:
        """The same for the same rows from files of the same names."""
        settings = {item.name: getattr(self, item.name) for item in fields(self)}
        del settings["source"]
        settings |= {
            "format": FORMAT,
            "mask_token_ids": sorted(self.mask_token_ids),
            "tokenizer": _description(self.tokenizer),
        }
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
        found = find(self.source)
        digest.update("\n".join(found.passed_over).encode("utf-8", "surrogateescape"))
        for path in found.files:
            # The name is told of lines that were left out.
            digest.update(str(path).encode("utf-8", "surrogateescape"))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        return digest.hexdigest()

    def schema(self) -> pa.Schema:
        """Of the rows."""
        if self.kind == "sft":
            return rows.answered_schema()
        return rows.packed_schema(self.length) if self.packed else rows.unpacked_schema()

    def samples(self, bad_lines: BadLines, tally: Tally) -> Iterator[Sequence[Sample]]:
        """The records as token ids, some at a time."""
        encoder = Encoder(
            kind=self.kind,
            length=self.length,
            vocab_size=self.vocab_size,
            tokenizer=self.tokenizer,
            chat=None
            if self.tokenizer is None or self.template is None
            else Chat(self.tokenizer, self.template, self.end_token_id, self.tool_template),
            end_token_id=self.end_token_id,
            mask_token_ids=self.mask_token_ids,
            bad_lines=bad_lines,
            tally=tally,
        )
        records = read_records(self.source, bad_lines, documents=self.documents)
        return encoder.samples(map(with_last_answer_only, records) if self.last_answer_only else records)

    def batches(self, samples: Iterable[Sequence[Sample]]) -> Iterator[pa.RecordBatch]:
        """The rows."""
        if self.kind == "sft":
            return rows.answered(samples)
        return (rows.packed if self.packed else rows.unpacked)(samples, self.length)

    def no_rows(self, bad_lines: BadLines, tally: Tally) -> UserError:
        """Why there are none."""
        if self.kind == "sft" or not tally.tokens:
            return UserError(f"data {str(self.source)!r} have no line that can be used; {bad_lines.summary()}")
        return UserError(
            f"data {str(self.source)!r} have {tally.tokens} tokens: give at least {self.length}, the length of one "
            "row, or shorter rows, or packed=False."
        )


def _description(tokenizer: PreTrainedTokenizerBase | None) -> object:
    """What decides how a tokenizer reads texts."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [type(tokenizer).__name__, tokenizer.get_vocab(), str(tokenizer.special_tokens_map)]
    description = json.loads(backend.to_str())
    for momentary in ("truncation", "padding"):  # set and unset by calls
        description[momentary] = None
    return description
