"""The forms in which people keep their data, each recognised by its fields.

A form is its name, the fields it needs, and a function from the fields to a record. The first form whose fields are
all there is taken. Fields beside those are read where they change what is said; what is not read is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from anyorder.data.fields import BadRecordError, Fields, carries_text, checked_text
from anyorder.data.messages import CONTENT, SPEAKER, messages_of, speaks, text_of, tools_of
from anyorder.data.records import (
    ASSISTANT,
    SYSTEM,
    Dialogue,
    Document,
    Message,
    Place,
    Record,
    TokenIds,
    trained_part,
)
from anyorder.data.single_turn import (
    ANSWERS,
    ASKING,
    CHOICES,
    CONTEXTS,
    HISTORIES,
    KEYS,
    QUESTIONS,
    TASKS,
    answer_of,
    history_of,
    question_of,
    refuse_unwanted,
)
from anyorder.data.token_ids import read_ids
from anyorder.utils.annotations import shown

SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction")
CONVERSATIONS = ("conversations", "conversation")
LISTS = ("messages", *CONVERSATIONS, "contents")


@dataclass(frozen=True, kw_only=True)
class Form:
    """See the module.

    Attributes:
        name: what people call it.
        needs: of each group of fields, one that has a value.
        read: makes the record; appends the names of fields with text that it found and did not read.
    """

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[str, Place, Fields, list[str]], Record]

    def fits(self, fields: Fields, *, null: bool = False) -> bool:
        """Return whether the fields are there; with `null` also where they are null."""
        return all(any(map(fields.__contains__, names)) if null else fields.first(names) for names in self.needs)


def record_of(values: object, place: Place, unread: Counter[str] | None = None) -> Record:
    """Return the record that a JSON object holds, or a list of messages.

    Args:
        values: the object.
        place: where it is.
        unread: counts fields with text that were not read.

    Raises:
        BadRecordError: it is neither, its fields are those of no form, or one holds the wrong thing.
    """
    if isinstance(values, list) and values and all(map(is_message, values)):
        values = {"messages": values}
    if not isinstance(values, dict):
        raise BadRecordError(f"holds {shown(values)}, not a JSON object", 'write one like {"text": "..."}')
    fields = Fields(values)
    form = next((form for form in FORMS if form.fits(fields)), None)
    form = form or next((form for form in FORMS if form.fits(fields, null=True)), None)
    if form is None:
        raise _unknown(values)
    found: list[str] = []
    record = form.read(form.name, place, fields, found)
    if unread is not None:
        unread.update({*found, *fields.unread()})
    return record


def is_message(value: object) -> bool:
    """Return whether a JSON value is a message, as which it is no record of its own."""
    if not isinstance(value, dict):
        return False
    if any(names <= value.keys() for names in ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})):
        return True
    # By other names, records of texts have a speaker and a text as well.
    fields = Fields(value)
    speaker = fields.first(SPEAKER)
    return speaker is not None and speaks(fields.get(speaker)) is not None and fields.first(CONTENT) is not None


def _unknown(values: dict[str, object]) -> BadRecordError:
    has = ", ".join(f"`{name}`" for name in values) or "none"
    problem = f"lacks the fields that say what it is (it has {has})"
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return BadRecordError(problem, f"if `{name}` holds the records, write that list alone into the file")
    known = (" and ".join(f"`{names[0]}`" for names in form.needs) for form in FORMS)
    return BadRecordError(problem, f"give one of {'; '.join(known)}")


# ---- dialogues -------------------------------------------------------------------------------------


def _read_messages(form: str, place: Place, fields: Fields, unread: list[str]) -> Dialogue:
    name = fields.first(LISTS) or next(name for name in LISTS if name in fields)
    messages = messages_of(fields.get(name), name, unread)
    said = "\n".join(message.content for message in messages)
    for beside in fields.those(("instruction", *CONTEXTS, *CHOICES, *HISTORIES)):
        value = fields.get(beside)
        if carries_text(value) and not (isinstance(value, str) and value.strip() in said):
            raise BadRecordError(f"has `{beside}` beside `{name}`", "put it into a message, or take it out")
    for beside in fields.those(ASKING):  # many data sets repeat the first message so
        value = fields.get(beside)
        if carries_text(value) and not (isinstance(value, str) and value.strip() in said):
            unread.append(beside)
    refuse_unwanted(fields)
    if messages[-1].role != ASSISTANT or fields.has("chosen"):
        messages = _answered(messages, answer_of(fields, unread))
    return _dialogue(form, place, messages, fields)


def _answered(messages: list[Message], answers: list[Message]) -> list[Message]:
    """Return messages with an answer from another field, which may repeat them."""
    if answers and answers[0].role != ASSISTANT:  # the whole dialogue
        return answers
    if messages[-1].role != ASSISTANT:
        return [*messages, *answers]
    if answers and messages[-1].content.strip() != answers[-1].content.strip():
        raise BadRecordError("has two answers to the last message", "leave in the one that is trained on")
    return messages


def _read_pair(form: str, place: Place, fields: Fields, unread: list[str]) -> Dialogue:
    question, answers = question_of(fields, unread), answer_of(fields, unread)
    if not answers:
        name = next(name for name in (*ANSWERS, *KEYS) if name in fields)
        checked_text(fields.get(name), f"`{name}`")
    messages = _answered([*history_of(fields, unread), *question], answers)
    return _dialogue(form, place, messages, fields)


def _read_chosen(form: str, place: Place, fields: Fields, unread: list[str]) -> Dialogue:
    if not isinstance(fields.get("chosen"), list):
        raise BadRecordError("has no prompt beside `chosen`", "give `prompt`, or lists of messages")
    return _dialogue(form, place, answer_of(fields, unread), fields)


def _dialogue(form: str, place: Place, messages: list[Message], fields: Fields) -> Dialogue:
    fields.refuse_media()
    systems = dict.fromkeys(filter(None, (text_of(fields.get(name), name) for name in fields.those(SYSTEMS))))
    if messages and messages[0].role == SYSTEM:
        systems = {text: None for text in systems if text.strip() != messages[0].content.strip()}
        if systems and messages[0].content.strip():
            raise BadRecordError("has a system prompt beside its system message", "leave one of them out")
    if len(systems) > 1:
        raise BadRecordError("has two system prompts", "leave one of them out")
    messages = [*(Message(role=SYSTEM, content=text) for text in systems), *messages]
    masked = fields.get("mask")
    if masked is not None and not (isinstance(masked, str) and masked.strip().lower() in ("user", "human")):
        raise BadRecordError(f"`mask` is {shown(masked)}", "mark messages by `loss`: true or false")
    part = trained_part(messages)
    if not part:
        raise BadRecordError("has no question that the assistant answers", "add the answer")
    answers = [message for message in part if message.role == ASSISTANT]
    if any(not message.content.strip() for message in answers):
        raise BadRecordError("has an empty answer", "write the answer")
    if not any(message.trained for message in answers):
        raise BadRecordError("has no answer that is to be trained on", "leave it out")
    tools = tools_of(fields.get("tools"), "tools") or tools_of(fields.get("functions"), "functions")
    return Dialogue(place=place, form=form, messages=part, tools=tools)


# ---- texts and token ids ---------------------------------------------------------------------------


def _read_ids(form: str, place: Place, fields: Fields, unread: list[str]) -> TokenIds:
    return read_ids(form, place, fields)


def _read_text(form: str, place: Place, fields: Fields, unread: list[str]) -> Document:
    name = fields.first(TEXTS) or next(name for name in TEXTS if name in fields)
    return Document(place=place, form=form, text=checked_text(fields.get(name), f"`{name}`"))


TEXTS = ("text", "content")

FORMS = (
    Form(name="token ids", needs=(("input_ids",),), read=_read_ids),
    Form(name="messages", needs=(("messages", "contents"),), read=_read_messages),
    Form(name="ShareGPT", needs=(CONVERSATIONS,), read=_read_messages),
    Form(name="Alpaca", needs=(("instruction",), ("output",)), read=_read_pair),
    Form(name="multiple choice", needs=((*QUESTIONS, *TASKS, "ctx"), CHOICES, (*ANSWERS, *KEYS)), read=_read_pair),
    Form(name="prompt and response", needs=((*QUESTIONS, *TASKS), ANSWERS), read=_read_pair),
    Form(name="chosen answer", needs=(("chosen",),), read=_read_chosen),
    Form(name="text", needs=(TEXTS,), read=_read_text),
)
"""In the order in which they are tried."""
