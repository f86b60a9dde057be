"""Questions and answers in fields of their own, by the many names that these have in public data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from anyorder.data.fields import BadRecordError, Fields, checked_text, parsed
from anyorder.data.messages import REASONING, answer, messages_of
from anyorder.data.records import USER, Message
from anyorder.utils.annotations import shown
from anyorder.utils.numbers import is_whole

TASKS = ("instruction", "prompt")
QUESTIONS = ("question", "question_stem", "problem", "query", "input", "inputs", "user", "human")
ASKING = (*TASKS, *QUESTIONS)
"""Fields that ask, in their order in the question: first what is to be done, then with what."""

CONTEXTS = (
    "context", "contexts", "passage", "passages", "paragraph", "document", "documents", "article", "background",
    "evidence", "support", "story", "ctx", "knowledge", "facts", "hint", "premise", "schema", "sql_context",
)  # fmt: skip
"""Fields that a question is about."""

CHOICES = ("choices", "options", "endings")

ANSWERS = (
    "answer",
    "answers",
    "response",
    "completion",
    "output",
    "chosen",
    "solution",
    "target",
    "targets",
    "assistant",
)
"""Fields that answer. Beside a solution, the answer is its last line."""

KEYS = ("answer_idx", "answer_index", "answerkey", "answer_key", "correct_answer", "correct_option", "label")
"""Fields that say which choice is right, where no answer is given."""

THOUGHTS = (*REASONING, "complex_cot", "chain_of_thought", "cot")
HISTORIES = ("history", "chat_history", "conversation_history")


def question_of(fields: Fields, unread: list[str]) -> list[Message]:
    """Return the question: one message, or those of a list.

    Raises:
        BadRecordError: a field holds the wrong thing, or all are empty.
    """
    names = fields.those(ASKING)
    listed = next((name for name in names if isinstance(fields.get(name), list)), None)
    if listed is not None:
        others = [name for name in fields.those((*ASKING, *CONTEXTS, *CHOICES)) if name != listed]
        if others:
            raise BadRecordError(f"has messages in `{listed}`, and `{others[0]}` beside them", "put it into a message")
        return messages_of(fields.get(listed), listed, unread)
    names = _without_rendering(fields, names, unread)
    asked = [fields.optional_text(name) for name in names if name != "input"]
    at = sum(name in TASKS for name in names)
    contexts = [text for text in _contexts(fields) if not any(_holds(part, text) for part in asked)]
    # The same question may be there by two names; the input of an instruction is never the same.
    parts = [*dict.fromkeys([*asked[:at], *contexts, *asked[at:]]), fields.optional_text("input")]
    question = "\n".join(filter(None, (*parts, *_listed(_choices(fields)))))
    if not question.strip():
        raise BadRecordError(
            f"{' and '.join(f'`{name}`' for name in names)} {'is' if len(names) == 1 else 'are'} empty",
            "write the question",
        )
    return [Message(role=USER, content=question)]


def _without_rendering(fields: Fields, names: list[str], unread: list[str]) -> list[str]:
    """Return the fields that ask, without a `prompt` that is the whole record written out, up to the end of the answer.

    Raises:
        BadRecordError: the question and the answer are in it, and it ends otherwise.
    """
    whole, others = fields.get("prompt"), [name for name in names if name != "prompt"]
    answers = [_written(fields.get(name)) for name in fields.those(ANSWERS)]
    if others == names or not others or not answers or not isinstance(whole, str):
        return names
    parts = [*map(fields.get, others), *answers]
    if not all(isinstance(part, str) and _flat(part) in _flat(whole) for part in parts):
        return names
    if not _flat(whole).endswith(tuple(map(_flat, answers))):
        raise BadRecordError(
            f"has a `prompt` with `{others[0]}` and the answer in it, which does not end in the answer",
            f"take out `prompt`, or `{others[0]}` if the answer is there by chance",
        )
    unread.append("prompt")
    return others


def _flat(text: str) -> str:
    return " ".join(text.split())


def answer_of(fields: Fields, unread: list[str]) -> list[Message]:
    """Return what the assistant says: one message, or those of a list; none where there is no answer.

    Raises:
        BadRecordError: a field holds the wrong thing, there are two answers, or it is marked as not wanted.
    """
    choices = _choices(fields)
    names = fields.those(ANSWERS)
    if "solution" in names:
        names = [name for name in names if name not in ("answer", "answers")]
    if not names and choices:
        names = fields.those(KEYS)[:1]
    if not names:
        return []
    values = [fields.get(name) for name in names]
    if any(value != values[0] for value in values):
        raise BadRecordError(
            f"has two answers, {' and '.join(f'`{name}`' for name in names)}", "leave in the one that is trained on"
        )
    name, value = names[0], values[0]
    if not choices:
        refuse_unwanted(fields)
    if isinstance(value, dict) and isinstance(value.get("text"), list):  # SQuAD's form
        value = value["text"]
    if (isinstance(value, dict) and value) or (isinstance(value, list) and value and isinstance(value[0], dict)):
        return messages_of(value if isinstance(value, list) else [value], name, unread)
    if isinstance(value, list):
        if len(value) > 1:
            unread.append(f"{name} but the first")
        if not value:
            raise BadRecordError(f"`{name}` is empty", "write something there")
        value = value[0]
    text = _chosen(value, choices, name) if choices else _written(value)
    thoughts = [fields.optional_text(name) for name in fields.those(THOUGHTS)]
    return [answer(checked_text(text, f"`{name}`"), reasoning="\n".join(filter(None, thoughts)))]


def refuse_unwanted(fields: Fields) -> None:
    """Refuse answers whose label is false: examples of what is not to be said.

    Raises:
        BadRecordError: this is one.
    """
    for name in fields.those(("label", "kto_tag", "kto_label", "desirable")):
        label = fields.get(name)
        if label in (False, 0) or (isinstance(label, str) and label.strip().lower() in ("false", "0")):
            raise BadRecordError(f"has an answer that is not wanted (`{name}` is {shown(label)})", "take it out")


def history_of(fields: Fields, unread: list[str]) -> list[Message]:
    """Return what was said before: pairs of a question and its answer, or messages.

    Raises:
        BadRecordError: it is something else.
    """
    messages: list[Message] = []
    for name in fields.those(HISTORIES):
        history = parsed(fields.get(name) or [], f"`{name}`")
        if not isinstance(history, list):
            raise BadRecordError(
                f"`{name}` is {shown(history)}", "give a list of pairs of an instruction and its answer"
            )
        if history and all(isinstance(turn, dict) for turn in history):
            messages += messages_of(history, name, unread)
            continue
        for turn in history:
            if not isinstance(turn, list) or len(turn) != 2:
                raise BadRecordError(f"`{name}` has {shown(turn)}", "give pairs of an instruction and its answer")
            asked, said = (checked_text(text, f"`{name}`") for text in turn)
            messages += [Message(role=USER, content=asked), answer(said)]
    return messages


def _contexts(fields: Fields) -> list[str]:
    """Return the texts that a question is about."""
    texts: list[str] = []
    for name in fields.those(CONTEXTS):
        value = fields.get(name)
        for item in value if isinstance(value, list) else [value]:
            texts.append(checked_text(item, f"`{name}`", may_be_empty=True))
    text = fields.optional_text("text")
    if not text:
        return texts
    asked = [fields.get(name) for name in fields.those(ASKING)]
    # Alpaca's `text` is the whole record, question and all.
    return [*texts, *([] if all(_flat(part) in _flat(text) for part in asked) else [text])]


def _holds(prompt: str, context: str) -> bool:
    """Return whether a prompt has its context in it already; a short one may be in it by chance."""
    return len(context) >= 40 and context in prompt


def _written(value: Any) -> Any:
    """Return a number as text, which is how it is said."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


# ---- multiple choice -------------------------------------------------------------------------------


def _choices(fields: Fields) -> dict[str, str]:
    """Return texts by their labels, A, B, ... unless given."""
    name = fields.first(CHOICES)
    value = None if name is None else fields.get(name)
    if not value:
        return {}
    labels: Sequence[Any] = ascii_uppercase
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        labels, value = value.get("label") or labels, value["text"]
    elif isinstance(value, dict):
        labels, value = list(value), list(value.values())
    elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
        labels = [item.get("label", ascii_uppercase[at % 26]) for at, item in enumerate(value)]
        value = [item.get("text") for item in value]
    if not isinstance(value, list) or len(value) > len(labels):
        raise BadRecordError(f"`{name}` is {shown(value)}", "give a list of texts")
    pairs = zip(labels, value, strict=False)
    return {str(label): checked_text(_written(text), f"`{name}`") for label, text in pairs if text is not None}


def _listed(choices: Mapping[str, str]) -> list[str]:
    return [f"{label}. {text}" for label, text in choices.items()]


def _chosen(value: Any, choices: Mapping[str, str], name: str) -> str:
    """Return the answer as it is said: a text as it is given, a label or a number (from 0) with its choice."""
    if isinstance(value, str) and value in choices.values():
        return value
    if isinstance(value, str) and value.strip() in choices:
        return f"{value.strip()}. {choices[value.strip()]}"
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if is_whole(number):
        if not 0 <= number < len(choices):
            raise BadRecordError(
                f"`{name}` is {shown(value)} and there are {len(choices)} choices", "give the number of one, from 0"
            )
        return _listed(choices)[number]
    return checked_text(value, f"`{name}`")
