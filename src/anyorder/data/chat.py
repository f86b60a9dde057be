"""Dialogues as tokens, and exactly which of them are answers.

A dialogue is written out by a chat template, the tokenizer's own where it has one. The text up to an answer, with
the generation prompt, is what a prompt will be when the network writes; so the tokens before an answer must be the
tokens of that text alone, whatever comes behind it. Where a template writes earlier messages otherwise once
others follow, one dialogue becomes several rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from anyorder.checkpoints.chat_template.render import ChatTemplateError, Rendering, chat_template, render_all
from anyorder.checkpoints.tokenizer.encoding import continuing_tokens, plain_tokens, plain_tokens_of
from anyorder.data.answers import Answer, written_answer
from anyorder.data.forms import BadRecordError
from anyorder.data.messages import REASONING
from anyorder.data.records import ASSISTANT, SYSTEM, Dialogue, Message
from anyorder.data.turn_end import TurnEnd

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Answered", "Chat", "chat_template"]

CALLS = "tool_calls"
"""The field of a message with what it calls; a template has a place for it if it names it."""

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
"""A thought at the beginning of an answer."""


@dataclass(frozen=True)
class Answered:
    """A dialogue, or a part of it, as tokens.

    Attributes:
        ids: of the whole; it ends with the last answer.
        answer_spans: begin and end of each answer in `ids`; the token that ends the turn belongs to it.
        text_bytes: of the whole as text, in UTF-8.
        answer_bytes: of what the assistant says.
    """

    ids: list[int]
    answer_spans: list[tuple[int, int]]
    text_bytes: int
    answer_bytes: int


class Chat:
    """Writes dialogues as tokens.

    Args:
        tokenizer: turns text into tokens.
        template: in Jinja, as transformers' chat templates.
        end_token_id: closes an answer behind which the template writes no end; the tokenizer's end token unless given.
        for_tools: another template, for dialogues with tools.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        end_token_id: int | None = None,
        for_tools: str | None = None,
    ) -> None:
        self.template = template
        self._for_tools = Chat(tokenizer, for_tools, end_token_id) if for_tools else None
        self._tokenizer = tokenizer
        self._end_token_id = tokenizer.eos_token_id if end_token_id is None else end_token_id
        self._turn_end = TurnEnd.of(tokenizer, template, self._end_token_id)
        self._places = frozenset(name for name in (CALLS, *REASONING) if _names(template, name))

    @property
    def end_token_id(self) -> int | None:
        """The token by which answers end: the template's, or the network's where the template writes none."""
        ids = plain_tokens(self._tokenizer, self._turn_end.end)
        return ids[-1] if ids and self._turn_end.is_end(ids[-1]) else self._end_token_id

    def tokens(self, dialogues: Sequence[Dialogue]) -> list[list[Answered] | BadRecordError]:
        """Return each dialogue as rows of tokens, one if the template only appends, or why that cannot be."""
        if self._for_tools is None:
            return self._tokens(dialogues)
        plain = iter(self._tokens([dialogue for dialogue in dialogues if not dialogue.tools]))
        with_tools = iter(self._for_tools.tokens([dialogue for dialogue in dialogues if dialogue.tools]))
        return [next(with_tools if dialogue.tools else plain) for dialogue in dialogues]

    def _tokens(self, dialogues: Sequence[Dialogue]) -> list[list[Answered] | BadRecordError]:
        answers = self._answers(dialogues)
        texts = [text for each in answers if isinstance(each, list) for answer in each for text in answer.texts]
        # Templates write the special tokens that they want.
        encoded = dict(zip(texts, plain_tokens_of(self._tokenizer, texts), strict=True))
        return [
            each if isinstance(each, BadRecordError) else list(self._rows(each, encoded))
            for each in answers
        ]  # fmt: skip

    # ---- texts -------------------------------------------------------------------------------------

    def _answers(self, dialogues: Sequence[Dialogue]) -> list[list[Answer] | BadRecordError]:
        """Return the answers of each dialogue that are to be trained on, as texts."""
        answers = self._written([self._renderings(dialogue) for dialogue in dialogues], dialogues)
        refused = [
            at for at, each in enumerate(answers)
            if isinstance(each, BadRecordError) and any((m.given or {}).get(CALLS) for m in dialogues[at].messages)
        ]  # fmt: skip
        # Some templates take arguments of calls as JSON and null for no text, most objects and an empty text.
        others = [
            [(_as_published(prompt), _as_published(whole)) for prompt, whole in self._renderings(dialogues[at])]
            for at in refused
        ]
        for at, each in zip(refused, self._written(others, [dialogues[at] for at in refused]), strict=True):
            answers[at] = answers[at] if isinstance(each, BadRecordError) else each
        return answers

    def _written(
        self, wanted: Sequence[Sequence[tuple[Rendering, Rendering]]], dialogues: Sequence[Dialogue]
    ) -> list[list[Answer] | BadRecordError]:
        """Return the answers as the template writes them, or why it does not."""
        answers: list[list[Answer] | BadRecordError] = []
        renderings = [each for pairs in wanted for pair in pairs for each in pair]
        rendered = iter(render_all(self._tokenizer, self.template, renderings))
        for dialogue, pairs in zip(dialogues, wanted, strict=True):
            texts = [(next(rendered), next(rendered)) for _ in pairs]
            targets = [message for message in dialogue.messages if message.role == ASSISTANT and message.trained]
            try:
                answers.append([
                    written_answer(_text(prompt), _text(whole), message, self._turn_end)
                    for message, (prompt, whole) in zip(targets, texts, strict=True)
                ])  # fmt: skip
            except BadRecordError as error:
                answers.append(error)
        return answers

    def _renderings(self, dialogue: Dialogue) -> list[tuple[Rendering, Rendering]]:
        """Return for each answer the messages before it, as a prompt, and those up to it."""
        messages, tools = self._messages(dialogue)
        added = len(messages) - len(dialogue.messages)
        return [
            (Rendering(messages[:at], tools, True), Rendering(messages[: at + 1], tools, False))
            for at, message in enumerate(dialogue.messages, start=added)
            if message.role == ASSISTANT and message.trained
        ]

    def _messages(self, dialogue: Dialogue) -> tuple[list[dict[str, Any]], list[Any] | None]:
        messages = [self._message(message) for message in dialogue.messages]
        if not dialogue.tools or "tools" in self.template:
            return messages, list(dialogue.tools) or None
        # A template without a place for tools: the system message says what they are.
        described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in dialogue.tools)
        if messages[0]["role"] == SYSTEM:
            described = f"{dialogue.messages[0].content}\n{described}"
            del messages[0]
        messages.insert(0, {"role": SYSTEM, "content": self._content(described)})
        return messages, None

    def _message(self, message: Message) -> dict[str, Any]:
        """Return a message in OpenAI's form, as far as the template has a place for its parts."""
        content, role = message.content, message.role
        if role == ASSISTANT:  # the template writes the end
            content = self._turn_end.without(content)
        given = message.given or {"content": content}
        thoughts = self._places.intersection(REASONING)
        thought = str(given.get("reasoning_content") or "")
        if role == ASSISTANT and thoughts and message.given is None and (written := _THOUGHT.match(content)):
            thought, given = written[1].strip(), {"content": content[written.end() :]}
        if (thought and not thoughts) or (given.get(CALLS) and CALLS not in self._places):
            return {"role": role, "content": self._content(content)}
        reasoning = dict.fromkeys(thoughts, thought) if thought else {}
        return {**given, "role": role, "content": self._content(str(given.get("content") or "")), **reasoning}

    def _content(self, text: str) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": text}] if self._turn_end.in_parts else text

    # ---- tokens ------------------------------------------------------------------------------------

    def _rows(self, answers: Sequence[Answer], encoded: Mapping[str, list[int]]) -> Iterator[Answered]:
        """Yield rows of answers: one goes on as long as its tokens are those of the next prompt alone."""
        ids: list[int] = []
        answer_spans: list[tuple[int, int]] = []
        row: list[Answer] = []
        for answer in answers:
            prompt = encoded[answer.prompt]
            # Behind an answer that the template leaves without an end, only the end of a row has one.
            if row and (prompt[: len(ids)] != ids or not self._is_closed(ids, row)):
                yield self._closed(ids, answer_spans, row)
                answer_spans, row = [], []
            ids = encoded[answer.prompt + answer.target]
            if ids[: len(prompt)] != prompt:  # a token would reach over the border, but the prompt is that of its own
                ids = prompt + continuing_tokens(self._tokenizer, answer.target)
            answer_spans.append((len(prompt), len(ids)))
            row.append(answer)
        yield self._closed(ids, answer_spans, row)

    def _closed(self, ids: list[int], answer_spans: list[tuple[int, int]], row: Sequence[Answer]) -> Answered:
        if not self._is_closed(ids, row):
            assert self._end_token_id is not None
            ids = [*ids, self._end_token_id]
            answer_spans = [*answer_spans[:-1], (answer_spans[-1][0], len(ids))]
        return Answered(
            ids=ids,
            answer_spans=answer_spans,
            text_bytes=len((row[-1].prompt + row[-1].target).encode()),
            answer_bytes=sum(len(answer.said.encode()) for answer in row),
        )

    def _is_closed(self, ids: list[int], row: Sequence[Answer]) -> bool:
        return self._end_token_id is None or row[-1].closed or self._turn_end.is_end(ids[-1])


def _names(template: str, field: str) -> bool:
    """Return whether a template reads a field of this name."""
    return re.search(rf"(\.|\[ ?['\"]|['\"]){field}\b", template) is not None


def _as_published(rendering: Rendering) -> Rendering:
    """Return the same with calls as OpenAI's service has them: arguments in JSON, null beside them for no text."""
    messages = []
    for message in rendering.messages:
        if CALLS in message:
            calls = [
                {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
                for call in message[CALLS]
            ]
            message = {**message, CALLS: calls, "content": message["content"] or None}
        messages.append(message)
    return replace(rendering, messages=messages, with_null=True)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(rendered: str | ChatTemplateError) -> str:
    if isinstance(rendered, ChatTemplateError):
        raise BadRecordError(
            f"is refused by the chat template ({rendered.reason})", "change the messages, or give another template"
        )
    return rendered
