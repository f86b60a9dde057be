"""Dialogues as tokens, and exactly which of them are answers.

A dialogue is written out by a chat template, the tokenizer's own where it has one. The text up to an answer, with the
words that ask the assistant to speak, is what a prompt will be when the network writes; so the tokens before an answer
must be the tokens of that text alone, whatever comes behind it. Where a template writes earlier messages otherwise once
others follow, one dialogue becomes several rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyorder.checkpoints.chat_template.render import ChatTemplateError, Rendering, chat_template, render_all
from anyorder.data.answers import Answer, written_answer
from anyorder.data.forms import BadRecordError
from anyorder.data.records import ASSISTANT, SYSTEM, Dialogue, Message
from anyorder.data.turn_end import TurnEnd

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Answered", "Chat", "chat_template"]

FIELDS = ("tool_calls", "reasoning_content", "reasoning", "thinking")
"""Fields of messages that are more than their content; a template has a place for them if it names them."""


@dataclass(frozen=True)
class Answered:
    """A dialogue, or a part of it, as tokens.

    Attributes:
        ids: of the whole; it ends with the last answer.
        turns: begin and end of each answer in `ids`; the token that ends the turn belongs to it.
        text_bytes: of the whole as text, in UTF-8.
        answer_bytes: of what the assistant says.
    """

    ids: list[int]
    turns: list[tuple[int, int]]
    text_bytes: int
    answer_bytes: int


class Chat:
    """Writes dialogues as tokens.

    Args:
        tokenizer: turns text into tokens.
        template: in Jinja, as transformers' chat templates.
        end_token_id: closes an answer behind which the template writes no end; the tokenizer's end token unless given.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, end_token_id: int | None = None) -> None:
        self.template = template
        self._tokenizer = tokenizer
        self._end_token_id = tokenizer.eos_token_id if end_token_id is None else end_token_id
        self._turn_end = TurnEnd.of(tokenizer, template, self._end_token_id)
        self._places = tuple(name for name in FIELDS if name in template)

    @property
    def end_token_id(self) -> int | None:
        """The token by which answers end: the template's, or the network's where the template writes none."""
        ids = self._encode([self._turn_end.end])[0]
        return ids[-1] if ids and self._turn_end.is_end(ids[-1]) else self._end_token_id

    def tokens(self, dialogues: Sequence[Dialogue]) -> list[list[Answered] | BadRecordError]:
        """Each dialogue as rows of tokens, one if the template only appends, or why that cannot be."""
        answers = list(self._answers(dialogues))
        texts = [text for each in answers if isinstance(each, list) for answer in each for text in answer.texts]
        encoded = dict(zip(texts, self._encode(texts), strict=True))
        return [
            each if isinstance(each, BadRecordError) else list(self._rows(each, encoded))
            for each in answers
        ]  # fmt: skip

    # ---- texts -------------------------------------------------------------------------------------

    def _answers(self, dialogues: Sequence[Dialogue]) -> Iterator[list[Answer] | BadRecordError]:
        """The answers of each dialogue that are to be learnt, as texts."""
        wanted = [self._renderings(dialogue) for dialogue in dialogues]
        rendered = iter(
            render_all(self._tokenizer, self.template, [each for pairs in wanted for pair in pairs for each in pair])
        )
        for dialogue, pairs in zip(dialogues, wanted, strict=True):
            texts = [(next(rendered), next(rendered)) for _ in pairs]
            learnt = [message for message in dialogue.messages if message.role == ASSISTANT and message.learn]
            try:
                yield [
                    written_answer(_text(prompt), _text(whole), message, self._turn_end)
                    for message, (prompt, whole) in zip(learnt, texts, strict=True)
                ]
            except BadRecordError as error:
                yield error

    def _renderings(self, dialogue: Dialogue) -> list[tuple[Rendering, Rendering]]:
        """For each answer, the messages before it, as a prompt, and those up to it."""
        messages, tools = self._messages(dialogue)
        added = len(messages) - len(dialogue.messages)
        return [
            (Rendering(messages[:at], tools, True), Rendering(messages[: at + 1], tools, False))
            for at, message in enumerate(dialogue.messages, start=added)
            if message.role == ASSISTANT and message.learn
        ]

    def _messages(self, dialogue: Dialogue) -> tuple[list[dict[str, Any]], list[Any] | None]:
        messages = [self._message(message) for message in dialogue.messages]
        if not dialogue.tools or "tools" in self.template:
            return messages, list(dialogue.tools) or None
        # A template without a place for tools: the system message says what they are.
        described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in dialogue.tools)
        if messages[0]["role"] == SYSTEM:
            messages[0] = {"role": SYSTEM, "content": f"{messages[0]['content']}\n{described}"}
        else:
            messages.insert(0, {"role": SYSTEM, "content": described})
        return messages, None

    def _message(self, message: Message) -> dict[str, Any]:
        if message.given is not None and all(name in self._places for name in FIELDS if message.given.get(name)):
            return {"content": "", **message.given, "role": message.role}
        content = message.content
        if message.role == ASSISTANT:  # the template writes the end
            content = self._turn_end.without(content)
        return {"role": message.role, "content": content}

    # ---- tokens ------------------------------------------------------------------------------------

    def _rows(self, answers: Sequence[Answer], encoded: Mapping[str, list[int]]) -> Iterator[Answered]:
        """Rows of answers: one goes on as long as its tokens are those of the next prompt alone."""
        ids: list[int] = []
        turns: list[tuple[int, int]] = []
        row: list[Answer] = []
        for answer in answers:
            prompt = encoded[answer.prompt]
            if row and prompt[: len(ids)] != ids:
                yield self._closed(ids, turns, row)
                turns, row = [], []
            whole = encoded[answer.prompt + answer.learnt]
            # Where a token would reach over the border, the prompt stays as it is when it stands alone.
            ids = whole if whole[: len(prompt)] == prompt else prompt + self._continue(answer.learnt)
            turns.append((len(prompt), len(ids)))
            row.append(answer)
        yield self._closed(ids, turns, row)

    def _closed(self, ids: list[int], turns: list[tuple[int, int]], row: Sequence[Answer]) -> Answered:
        if self._end_token_id is not None and not row[-1].closed and not self._turn_end.is_end(ids[-1]):
            ids = [*ids, self._end_token_id]
            turns = [*turns[:-1], (turns[-1][0], len(ids))]
        return Answered(
            ids=ids,
            turns=turns,
            text_bytes=len((row[-1].prompt + row[-1].learnt).encode()),
            answer_bytes=sum(len(answer.said.encode()) for answer in row),
        )

    def _continue(self, text: str) -> list[int]:
        """Tokens of a text that stands behind another, without the space that some tokenizers put before every text."""
        line, both = self._encode(["\n", "\n" + text])
        return both[len(line) :] if both[: len(line)] == line else self._encode([text])[0]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        # Templates write the special tokens that they want.
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _text(rendered: str | ChatTemplateError) -> str:
    if isinstance(rendered, ChatTemplateError):
        raise BadRecordError(
            f"is refused by the chat template ({rendered.reason})", "change the messages, or give another template"
        )
    return rendered
