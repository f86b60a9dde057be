"""The rows of one source: their fingerprint, and the making of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from anyorder.checkpoints.chat_template.render import tool_template
from anyorder.data import rows
from anyorder.data.chat import Chat
from anyorder.data.config import DataConfig
from anyorder.data.encoding import Encoder, Sample, Tally
from anyorder.data.files import find
from anyorder.data.readers import read_records
from anyorder.data.records import BadLines, with_last_answer_only
from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 5
"""Of the prepared rows; raised when the same data become other rows, so that old ones are not taken for them."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The rows of one source, before they are made.

    Attributes:
        source: file or folder.
        tokenizer: of the network; None where the data are token ids.
        config: completed.
        tool_template: chat template of dialogues with tools, where that is another one.
    """

    source: Path
    tokenizer: PreTrainedTokenizerBase | None
    config: DataConfig
    tool_template: str | None

    @classmethod
    def of(cls, source: str | Path, tokenizer: PreTrainedTokenizerBase | None, config: DataConfig) -> Preparation:
        """Complete a configuration.

        Raises:
            UserError: see `DataConfig.completed`.
        """
        for_tools = tool_template(tokenizer) if tokenizer is not None and config.template is None else None
        return cls(
            source=Path(source), tokenizer=tokenizer, config=config.completed(tokenizer), tool_template=for_tools
        )

    def fingerprint(self) -> str:
        """Return a hash that is the same for the same rows from files of the same names."""
        settings = dataclasses.asdict(self.config) | {
            "format": FORMAT,
            "mask_token_ids": sorted(self.config.mask_token_ids),
            "tokenizer": _description(self.tokenizer),
            "tool_template": self.tool_template,
        }
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
        found = find(self.source)
        digest.update("\n".join(found.passed_over).encode("utf-8", "surrogateescape"))
        for path in found.files:
            # The report names the file of lines that were left out.
            digest.update(str(path).encode("utf-8", "surrogateescape"))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        return digest.hexdigest()

    def schema(self) -> pa.Schema:
        """Return the columns of the rows."""
        if self.config.kind == "sft":
            return rows.answered_schema()
        return rows.packed_schema(self.config.length) if self.config.packed else rows.unpacked_schema()

    def samples(self, bad_lines: BadLines, tally: Tally) -> Iterator[Sequence[Sample]]:
        """Return the records as token ids, some at a time."""
        config, chat = self.config, None
        if self.tokenizer is not None and config.template is not None:
            chat = Chat(self.tokenizer, config.template, config.end_token_id, self.tool_template)
        encoder = Encoder(config=config, tokenizer=self.tokenizer, chat=chat, bad_lines=bad_lines, tally=tally)
        records = read_records(self.source, bad_lines, documents=config.documents)
        return encoder.samples(map(with_last_answer_only, records) if config.last_answer_only else records)

    def batches(self, samples: Iterable[Sequence[Sample]]) -> Iterator[pa.RecordBatch]:
        """Return the rows."""
        if self.config.kind == "sft":
            return rows.answered(samples)
        return (rows.packed if self.config.packed else rows.unpacked)(samples, self.config.length)

    def no_rows(self, bad_lines: BadLines, tally: Tally) -> UserError:
        """Return why there are none."""
        if self.config.kind == "sft" or not tally.tokens:
            return UserError(f"data {str(self.source)!r} have no line that can be used; {bad_lines.summary()}")
        return UserError(
            f"data {str(self.source)!r} have {tally.tokens} tokens: give at least {self.config.length}, the length of "
            "one row, or shorter rows, or packed=False."
        )


def _description(tokenizer: PreTrainedTokenizerBase | None) -> object:
    """Return what decides how a tokenizer reads texts."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [type(tokenizer).__name__, tokenizer.get_vocab(), str(tokenizer.special_tokens_map)]
    description = json.loads(backend.to_str())
    for momentary in ("truncation", "padding"):  # set and unset by calls
        description[momentary] = None
    return description
