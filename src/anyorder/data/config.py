"""What decides which rows of tokens data become."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from anyorder.checkpoints.chat_template.render import chat_template, given_template
from anyorder.data.readers import Documents
from anyorder.errors import UserError
from anyorder.utils.annotations import check_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["pretrain", "sft"]
"""Whether whole texts are trained on, or answers only."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What rows of tokens are made of data.

    Attributes:
        length: tokens in a row.
        kind: "pretrain" trains on whole texts, "sft" (supervised fine-tuning) on answers.
        packed: for pre-training, whether texts are laid end to end, so that every row has `length` tokens; otherwise
            each has a row of its own.
        documents: of plain text, see `read_records`.
        template: chat template of dialogues, in Jinja or as the path of a file; the tokenizer's own, or a plain one,
            unless given, see `chat_template`.
        end_token_id: closes texts and answers; the tokenizer's unless given.
        mask_token_ids: tokens that may not be in the data.
        vocab_size: of the network; the tokenizer's unless given.
        skip_bad_lines: whether lines that cannot be used are left out, counted and listed, see `report_of`; the first
            one raises otherwise.
        last_answer_only: for SFT, whether only the last answer of each dialogue is trained on.

    Raises:
        UserError: a field has a value that it cannot have.
    """

    length: int
    kind: Kind = "pretrain"
    packed: bool = True
    documents: Documents = "file"
    template: str | None = None
    end_token_id: int | None = None
    mask_token_ids: tuple[int, ...] = ()
    vocab_size: int | None = None
    skip_bad_lines: bool = False
    last_answer_only: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.length < 1:
            raise UserError(f"length is {self.length}: give at least 1 token.")
        if self.last_answer_only and self.kind != "sft":
            raise UserError(
                f"last_answer_only is given for kind {self.kind!r}, which trains on whole texts: leave it out."
            )

    def replace(self, **changes: Any) -> DataConfig:
        """Return a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def completed(self, tokenizer: PreTrainedTokenizerBase | None) -> DataConfig:
        """Fill in what the tokenizer decides: template, end token and size of the vocabulary.

        Raises:
            UserError: a field is missing that the tokenizer does not decide.
        """
        template, end_token_id, vocab_size = self.template, self.end_token_id, self.vocab_size
        if template is not None:
            template = given_template(tokenizer, template)
        if tokenizer is not None:
            end_token_id = tokenizer.eos_token_id if end_token_id is None else end_token_id
            if end_token_id is None:
                raise UserError(
                    "the tokenizer has no end token and end_token_id is None: give the network's end token."
                )
            template = chat_template(tokenizer, end_token_id) if template is None else template
            vocab_size = len(tokenizer) if vocab_size is None else vocab_size
        if vocab_size is None:
            raise UserError("tokenizer and vocab_size are None: give one, which says what tokens there are.")
        return self.replace(template=template, end_token_id=end_token_id, vocab_size=vocab_size)
