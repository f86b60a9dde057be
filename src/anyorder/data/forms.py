"""The forms in which people keep their data, each recognised by its fields.

A form is its name, the fields it needs, and a function from the fields to a record. The first form whose fields are
all there is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from reprlib import repr as _short
from typing import Any

from anyorder.data.records import (
    ASSISTANT,
    ROLES,
    SYSTEM,
    TOOL,
    USER,
    Dialogue,
    Document,
    Message,
    Place,
    Record,
    TokenIds,
    trained_part,
)

Fields = Mapping[str, Any]

SPEAKERS = {
    "system": SYSTEM,
    "human": USER, "user": USER,
    "gpt": ASSISTANT, "assistant": ASSISTANT, "chatgpt": ASSISTANT, "model": ASSISTANT, "bing": ASSISTANT,
    "bard": ASSISTANT, "function_call": ASSISTANT,
    "tool": TOOL, "observation": TOOL, "function": TOOL, "function_response": TOOL,
}  # fmt: skip
"""Who is meant by ShareGPT's `from`. A call of a function is what the assistant writes, its result what a tool says."""

PAIRS = (("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("input", "output"))
"""Fields of a prompt and its answer, by the names that they have in public data."""


class BadRecordError(Exception):
    """What is wrong with a record, and the remedy; it becomes a sentence where the place is known."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True, kw_only=True)
class Form:
    """See the module."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[str, Place, Fields], Record]


def record_of(fields: object, place: Place) -> Record:
    """The record that a JSON object holds.

    Raises:
        BadRecordError: it is no object, its fields are those of no form, or one holds the wrong thing.
    """
    if not isinstance(fields, dict):
        raise BadRecordError(f"holds {_short(fields)}, not a JSON object", 'write one like {"text": "..."}')
    for form in FORMS:
        if all(name in fields for name in form.needs):
            return form.read(form.name, place, fields)
    known = "; ".join(" and ".join(f"`{name}`" for name in form.needs) for form in FORMS)
    has = ", ".join(f"`{name}`" for name in fields) or "none"
    raise BadRecordError(f"lacks the fields that say what it is (it has {has})", f"give one of {known}")


# ---- single fields ---------------------------------------------------------------------------------


def checked_text(text: object, name: str, *, may_be_empty: bool = False) -> str:
    """A text that a tokenizer can read.

    Raises:
        BadRecordError: it is none.
    """
    if not isinstance(text, str):
        raise BadRecordError(f"{name} is {_short(text)}", "give text, in quotes")
    if not text and not may_be_empty:
        raise BadRecordError(f"{name} is empty", "write something there")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise BadRecordError(f"{name} has half a character (a surrogate alone)", "write the text anew as UTF-8")
    return text


def _optional_text(fields: Fields, name: str) -> str:
    return "" if fields.get(name) is None else checked_text(fields[name], f"`{name}`", may_be_empty=True)


def _dialogue(form: str, place: Place, messages: list[Message], fields: Fields) -> Dialogue:
    system = _optional_text(fields, "system")
    if system and not (messages and messages[0].role == SYSTEM):
        messages = [Message(role=SYSTEM, content=system), *messages]
    part = trained_part(messages)
    if not part:
        raise BadRecordError("has no question that the assistant answers", "add the answer")
    empty = next((message for message in part if message.role == ASSISTANT and not message.content.strip()), None)
    if empty is not None:
        raise BadRecordError("has an empty answer", "write the answer")
    return Dialogue(place=place, form=form, messages=part, tools=_tools(fields))


def _tools(fields: Fields) -> tuple[Fields, ...]:
    """Descriptions of tools: a list, or (in ShareGPT's form) a list written as JSON within a string."""
    tools = fields.get("tools") or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise BadRecordError(f"`tools` is not JSON ({error})", "mend it") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRecordError(f"`tools` is {_short(tools)}", "give a list of JSON objects")
    # Chat templates take OpenAI's form, which wraps what ShareGPT writes bare.
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


# ---- forms -----------------------------------------------------------------------------------------


def _read_ids(form: str, place: Place, fields: Fields) -> TokenIds:
    ids = fields["input_ids"]
    if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
        raise BadRecordError(f"`input_ids` is {_short(ids)}", "give a list of whole numbers, at least one")
    length = fields.get("prompt_length")
    if length is not None and not (type(length) is int and 0 <= length < len(ids)):
        raise BadRecordError(
            f"`prompt_length` is {_short(length)} and there are {len(ids)} tokens",
            "give the number of tokens before the answer, which has at least one",
        )
    return TokenIds(place=place, form=form, ids=tuple(ids), prompt_length=length)


def _read_messages(form: str, place: Place, fields: Fields) -> Dialogue:
    messages = []
    for number, message in enumerate(_objects(fields, "messages")):
        role, name = message.get("role"), f"`content` of message {number}"
        role = "tool" if role == "function" else SYSTEM if role == "developer" else role
        if role not in ROLES:
            raise BadRecordError(f"`role` of message {number} is {_short(role)}", f"give one of {', '.join(ROLES)}")
        content = message.get("content")
        if not content and role == ASSISTANT and message.get("tool_calls"):
            content = json.dumps(message["tool_calls"], ensure_ascii=False)
        messages.append(Message(role=role, content=checked_text(content, name, may_be_empty=True)))
    return _dialogue(form, place, messages, fields)


def _read_conversations(form: str, place: Place, fields: Fields) -> Dialogue:
    messages = []
    for number, message in enumerate(_objects(fields, "conversations")):
        speaker = message.get("from", message.get("role"))
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise BadRecordError(
                f"`from` of message {number} is {_short(speaker)}", f"give one of {', '.join(SPEAKERS)}"
            )
        value = message.get("value", message.get("content"))
        content = checked_text(value, f"`value` of message {number}", may_be_empty=True)
        messages.append(Message(role=SPEAKERS[speaker], content=content))
    return _dialogue(form, place, messages, fields)


def _objects(fields: Fields, name: str) -> list[Fields]:
    objects = fields[name]
    if not isinstance(objects, list) or not objects or not all(isinstance(item, dict) for item in objects):
        raise BadRecordError(f"`{name}` is {_short(objects)}", "give a list of JSON objects, at least two")
    return objects


def _read_alpaca(form: str, place: Place, fields: Fields) -> Dialogue:
    messages = []
    history = fields.get("history") or []
    if not isinstance(history, list):
        raise BadRecordError(f"`history` is {_short(history)}", "give a list of pairs of an instruction and its answer")
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadRecordError(f"`history` has {_short(turn)}", "give pairs of an instruction and its answer")
        for role, text in zip((USER, ASSISTANT), turn, strict=True):
            messages.append(Message(role=role, content=checked_text(text, "`history`")))
    instruction, given = _optional_text(fields, "instruction"), _optional_text(fields, "input")
    question = "\n".join(filter(None, (instruction, given)))
    if not question:
        raise BadRecordError("`instruction` and `input` are empty", "write what is asked for")
    messages.append(Message(role=USER, content=question))
    messages.append(Message(role=ASSISTANT, content=checked_text(fields["output"], "`output`")))
    return _dialogue(form, place, messages, fields)


def _read_pair(form: str, place: Place, fields: Fields) -> Dialogue:
    prompt, answer = next(pair for pair in PAIRS if all(name in fields for name in pair))
    messages = [
        Message(role=USER, content=checked_text(fields[prompt], f"`{prompt}`")),
        Message(role=ASSISTANT, content=checked_text(fields[answer], f"`{answer}`")),
    ]
    return _dialogue(form, place, messages, fields)


def _read_text(form: str, place: Place, fields: Fields) -> Document:
    return Document(place=place, form=form, text=checked_text(fields["text"], "`text`"))


FORMS = (
    Form(name="token ids", needs=("input_ids",), read=_read_ids),
    Form(name="messages", needs=("messages",), read=_read_messages),
    Form(name="ShareGPT", needs=("conversations",), read=_read_conversations),
    Form(name="Alpaca", needs=("instruction", "output"), read=_read_alpaca),
    *(Form(name="prompt and response", needs=pair, read=_read_pair) for pair in PAIRS),
    Form(name="text", needs=("text",), read=_read_text),
)
"""In the order in which they are tried."""
