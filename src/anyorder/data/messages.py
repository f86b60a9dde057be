"""Messages of dialogues, in the forms that OpenAI, transformers, ShareGPT and others give them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from anyorder.data.fields import BadRecordError, Fields, checked_text, mark, objects, parsed, writable
from anyorder.data.records import ASSISTANT, ROLES, SYSTEM, TOOL, USER, Message
from anyorder.utils.annotations import shown

SPEAKERS = {
    "system": SYSTEM, "developer": SYSTEM,
    "user": USER, "human": USER, "prompter": USER,
    "assistant": ASSISTANT, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "model": ASSISTANT, "bot": ASSISTANT,
    "chatbot": ASSISTANT, "ai": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT,
    "function_call": ASSISTANT, "tool_call": ASSISTANT,
    "tool": TOOL, "observation": TOOL, "function": TOOL, "function_response": TOOL, "tool_response": TOOL,
    "tool_result": TOOL, "ipython": TOOL,
}  # fmt: skip
"""Who is meant by `role` or `from`. A call of a function is what the assistant writes, its result what a tool says."""

CALLS = ("function_call", "tool_call")
"""Speakers whose text is a call."""

SPEAKER, CONTENT = ("role", "from", "speaker"), ("content", "value", "text", "parts")
PAIRS = (("input", "output"), ("human", "assistant"), ("user", "assistant"), ("question", "answer"))
"""Names of question and answer, where each item of a dialogue is both."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of what an assistant thinks before it answers."""

MARKS = ("loss", "weight", "train", "training", "loss_mask")
"""Names of marks that say whether a message is trained on: 1 or true, 0 or false."""

UNCLEAR = {
    "mask": "can mean that a message is trained on or that it is not",
    "train_detail": "marks parts of a message",
    "training_detail": "marks parts of a message",
}
"""Other marks, and why they are refused."""


def messages_of(value: Any, name: str, unread: list[str]) -> list[Message]:
    """Return the messages of a list.

    Args:
        value: the list; also as JSON within a string.
        name: what to call it.
        unread: gets the names of fields with text that were not read.

    Raises:
        BadRecordError: one cannot be read.
    """
    messages: list[Message] = []
    for number, item in enumerate(objects(value, f"`{name}`")):
        fields = Fields(item)
        pair = next((pair for pair in PAIRS if not fields.first(SPEAKER) and all(map(fields.has, pair))), None)
        messages += _turns(fields, number) if pair is None else _pair(fields, pair, number)
        unread += (f"{field} of {name}" for field in fields.unread())
    return messages


def text_of(value: Any, name: str) -> str:
    """Return a text, or the text of parts as messages have them; empty where there is none.

    Raises:
        BadRecordError: it is something else.
    """
    if isinstance(value, dict) and isinstance(value.get("parts"), list):  # Gemini's form
        value = value["parts"]
    return _parts(value, f"`{name}`", SYSTEM)[0] or ""


def tools_of(value: Any, name: str) -> tuple[Mapping[str, Any], ...]:
    """Return descriptions of tools: a list, or (in ShareGPT's form) a list written as JSON within a string.

    Raises:
        BadRecordError: it is something else.
    """
    tools = writable(value, f"`{name}`") if value else []
    tools = [parsed(tool, f"`{name}`") for tool in tools] if isinstance(tools, list) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRecordError(f"`{name}` is {shown(tools)}", "give a list of JSON objects")
    # Chat templates take OpenAI's form, which wraps what ShareGPT writes bare.
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def answer(text: str, *, reasoning: str = "", calls: Sequence[Mapping[str, Any]] = (), trained: bool = True) -> Message:
    """Return what the assistant says, thinks and calls."""
    written = json.dumps(list(calls), ensure_ascii=False) if calls else ""
    content = "\n".join(filter(None, (text, written)))
    if reasoning:
        content = f"<think>\n{reasoning}\n</think>\n\n{content}"
    given: dict[str, Any] | None = None
    if reasoning or calls:
        given = {"role": ASSISTANT, "content": text}
        given |= {"reasoning_content": reasoning} if reasoning else {}
        given |= {"tool_calls": list(calls)} if calls else {}
    return Message(role=ASSISTANT, content=content, trained=trained, given=given)


def speaks(speaker: object) -> str | None:
    """Return which of `SPEAKERS` is meant; None if it is none of them."""
    name = speaker.strip().lower().replace("-", "_").replace(" ", "_") if isinstance(speaker, str) else ""
    return name if name in SPEAKERS else None


def _pair(fields: Fields, names: tuple[str, str], number: int) -> list[Message]:
    """Return a question and its answer, perhaps with a system prompt before them."""
    system = fields.optional_text("system")
    asked, said = (checked_text(fields.get(name), f"`{name}` of message {number}") for name in names)
    before = [Message(role=SYSTEM, content=system)] if system else []
    return [*before, Message(role=USER, content=asked), answer(said, trained=_is_trained(fields, number, ASSISTANT))]


def _turns(fields: Fields, number: int) -> list[Message]:
    """Return a message, with what tools said within a user's message (Anthropic's form) as messages before it."""
    name = next((name for name in CONTENT if name in fields), CONTENT[0])
    content = fields.get(name)
    results = [part for part in content if _is_result(part)] if isinstance(content, list) else []
    tools = []
    for part in results:
        text = part.get("content")
        said, _, _ = _parts("" if text is None else text, f"`tool_result` of message {number}", TOOL)
        given = {"role": TOOL, "content": said or "", "tool_call_id": part.get("tool_use_id")}
        tools.append(Message(role=TOOL, content=said or "", given=given if given["tool_call_id"] else None))
    others = [part for part in content if not _is_result(part)] if results else content
    if results and not others:
        fields.get(fields.first(SPEAKER) or SPEAKER[0])  # who passes them on
        return tools
    return [*tools, _message(fields, number, others)]


def _is_result(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "tool_result"


def _message(fields: Fields, number: int, said: Any) -> Message:
    name = fields.first(SPEAKER) or SPEAKER[0]
    speaker = fields.get(name)
    spoken = speaks(speaker)
    if spoken is None:
        known = ", ".join((*ROLES, *(other for other in SPEAKERS if other not in ROLES)))
        raise BadRecordError(f"`{name}` of message {number} is {shown(speaker)}", f"give one of {known}")
    fields.refuse_media()
    role = SPEAKERS[spoken]
    trained = _is_trained(fields, number, role)
    content = next((name for name in CONTENT if name in fields), CONTENT[0])
    place = f"`{content}` of message {number}"
    text, reasoning, calls = _parts(said, place, role)
    if role != ASSISTANT:
        return _other(fields, role, text, place)
    thoughts = [reasoning, *map(fields.optional_text, fields.those(REASONING))]
    if spoken in CALLS:
        text, calls = _called(text)
    calls = [*calls, *_calls(fields, number)]
    if text is None and not calls:
        checked_text(None, place)
    return answer(text or "", reasoning="\n".join(dict.fromkeys(filter(None, thoughts))), calls=calls, trained=trained)


def _is_trained(fields: Fields, number: int, role: str) -> bool:
    trained = True
    for name in fields.those(MARKS):
        if (marked := mark(fields.get(name), f"`{name}` of message {number}")) is None:
            continue
        if marked and role != ASSISTANT:
            raise BadRecordError(
                f"`{name}` of message {number} says that the {role}'s words are trained on, and only answers are",
                "take the mark out",
            )
        trained = trained and marked
    if unclear := fields.first(UNCLEAR):
        raise BadRecordError(
            f"`{unclear}` of message {number} {UNCLEAR[unclear]}", "mark whole messages by `loss`: true or false"
        )
    return trained


def _other(fields: Fields, role: str, text: str | None, place: str) -> Message:
    """Return a message that is not the assistant's."""
    content = checked_text(text, place, may_be_empty=True)
    given = {"role": role, "content": content}
    if role == TOOL:
        for name in ("name", "tool_call_id"):
            if fields.has(name):
                given[name] = fields.optional_text(name)
    return Message(role=role, content=content, given=given if len(given) > 2 else None)


def _parts(content: Any, place: str, role: str) -> tuple[str | None, str, list[Mapping[str, Any]]]:
    """Return text (None where it is), reasoning and calls of a message's content, which may be a list of parts."""
    if content is None:
        return None, "", []
    if isinstance(content, dict) and "type" not in content and role == TOOL:
        return json.dumps(writable(content, place), ensure_ascii=False), "", []  # a result, as the tool gave it
    if not isinstance(content, list) or not content:
        return checked_text(content, place, may_be_empty=True), "", []
    texts, thoughts = [], []
    calls: list[Mapping[str, Any]] = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if isinstance(part, str) or (isinstance(part, dict) and kind in ("text", "input_text", "output_text")):
            texts.append(checked_text(part if isinstance(part, str) else part.get("text"), place, may_be_empty=True))
        elif isinstance(part, dict) and kind in ("thinking", "reasoning") and role == ASSISTANT:
            thoughts.append(checked_text(part.get(kind) or part.get("text"), place))
        elif isinstance(part, dict) and kind == "tool_use" and role == ASSISTANT:
            calls.append(_call({"name": part.get("name"), "arguments": part.get("input")}, place))
        else:
            raise BadRecordError(
                f"{place} has a part of the type {shown(kind)}, and only text is trained on", "take it out"
            )
    return "".join(texts), "\n".join(thoughts), calls


# ---- calls of tools --------------------------------------------------------------------------------


def _calls(fields: Fields, number: int) -> Iterable[Mapping[str, Any]]:
    """Yield the calls beside the content, in OpenAI's form."""
    place = f"`tool_calls` of message {number}"
    if value := fields.get("tool_calls"):
        calls = writable(value, place)
        if not isinstance(calls, list):
            raise BadRecordError(f"{place} is {shown(calls)}", "give a list of JSON objects")
        yield from (_call(call, place) for call in calls)
    if value := fields.get("function_call"):
        place = f"`function_call` of message {number}"
        yield _call(writable(value, place), place)


def _call(call: Any, place: str) -> Mapping[str, Any]:
    """Return one call, whose arguments are an object: chat templates write them as JSON themselves."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRecordError(f"{place} has {shown(call)}", 'give calls like {"name": "...", "arguments": {...}}')
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        with suppress(BadRecordError):  # some functions take plain text
            arguments = writable(arguments or "{}", place)
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {
        **identity,
        "type": "function",
        "function": {
            "name": checked_text(function["name"], place),
            "arguments": {} if arguments is None else arguments,
        },
    }


def _called(text: str | None) -> tuple[str | None, list[Mapping[str, Any]]]:
    """Return the call that a speaker's text is, or the text itself where it is none that is known."""
    try:
        value = writable(text, "")
        return None, [_call(call, "") for call in (value if isinstance(value, list) else [value])]
    except BadRecordError:
        return text, []
