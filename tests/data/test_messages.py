"""Messages as OpenAI, transformers, ShareGPT, ms-swift and others write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyorder.data import BadLines, DataConfig, convert_dialogues, inspect_data, prepare, read_records
from anyorder.data.records import Dialogue, Message
from anyorder.errors import UserError
from tests.data import tokenizers
from tests.data.test_readers import assistant, only, said, user, write

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALLS = json.dumps([CALL])


def answer(path: Path, message: dict[str, Any]) -> Message:
    """The first answer of a dialogue that ends in a usual one."""
    dialogue = only(path, {"messages": [user("a"), {"role": "assistant", **message}, user("b"), assistant("c")]})
    assert isinstance(dialogue, Dialogue)
    return dialogue.messages[1]


@pytest.mark.parametrize("content", [None, "", "Let me look."])
@pytest.mark.parametrize(
    "call",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": CALLS},
        {"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]},
        {"tool_calls": [{"name": "weather", "arguments": {"city": "Paris"}}]},
        {"function_call": {"name": "weather", "arguments": '{"city": "Paris"}'}},
    ],
)
def test_calls_beside_content(tmp_path: Path, content: str | None, call: dict[str, Any]) -> None:
    found = answer(tmp_path, {"content": content, **call})
    assert found.content == f"{content}\n{CALLS}" if content else CALLS
    assert found.given == {"role": "assistant", "content": content or "", "tool_calls": [CALL]}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_beside_content(tmp_path: Path, name: str) -> None:
    found = answer(tmp_path, {"content": "4", name: "2 + 2"})
    assert found.content == "<think>\n2 + 2\n</think>\n\n4"
    assert found.given == {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}
    assert answer(tmp_path, {"content": "4", name: None}) == Message(role="assistant", content="4")


def test_content_in_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]
    assert answer(tmp_path, {"content": parts}).content == "42"
    # Anthropic's form
    thought = {"type": "thinking", "thinking": "hm"}
    use = {"type": "tool_use", "name": "weather", "input": {"city": "Paris"}}
    found = answer(tmp_path, {"content": [thought, *parts, use]})
    assert found.given == {"role": "assistant", "content": "42", "reasoning_content": "hm", "tool_calls": [CALL]}


@pytest.mark.parametrize("speaker", ["tool_call", "function_call", "function-call"])
def test_a_speaker_who_calls(tmp_path: Path, speaker: str) -> None:
    call = json.dumps(CALL["function"])
    found = answer(tmp_path, {"role": speaker, "content": call})
    assert (found.content, found.given) == (CALLS, {"role": "assistant", "content": "", "tool_calls": [CALL]})
    assert answer(tmp_path, {"role": speaker, "content": "look()"}) == Message(role="assistant", content="look()")


def test_the_name_of_a_tool_stays_with_its_result(tmp_path: Path) -> None:
    result = {"role": "tool", "name": "weather", "tool_call_id": "1", "content": "sunny"}
    dialogue = only(
        tmp_path, {"messages": [user("a"), {**assistant(""), "tool_calls": [CALL]}, result, assistant("b")]}
    )
    assert isinstance(dialogue, Dialogue)
    assert dialogue.messages[2] == Message(role="tool", content="sunny", given=result)


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (("Human", "Assistant"), "user assistant"),
        ((" User ", "GPT"), "user assistant"),
        (("prompter", "bot"), "user assistant"),
        (("human", "chatbot"), "user assistant"),
        (("user", "assistant", "ipython", "model"), "user assistant tool assistant"),
        (("human", "gpt", "tool_response", "ai"), "user assistant tool assistant"),
        (("Developer", "user", "assistant"), "system user assistant"),
    ],
)
@pytest.mark.parametrize(
    "keys", [("role", "content"), ("from", "value"), ("from", "content"), ("Role", "Content"), ("speaker", "text")]
)
@pytest.mark.parametrize("field", ["messages", "conversations", "conversation", None])
def test_names_of_speakers(
    tmp_path: Path, names: tuple[str, ...], roles: str, keys: tuple[str, str], field: str | None
) -> None:
    messages = [dict(zip(keys, (name, f"{number}"), strict=True)) for number, name in enumerate(names)]
    found = said(only(tmp_path, messages if field is None else {field: messages}))
    assert found == [(role, f"{number}") for number, role in enumerate(roles.split())]


def test_texts_with_their_authors_are_no_dialogue(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"from": "Ann", "text": "a"}, {"from": "Bob", "text": "b"}]))
    records = list(read_records(tmp_path / "a.json"))
    assert [record.form for record in records] == ["text", "text"]


@pytest.mark.parametrize("name", ["loss", "weight", "train", "training", "loss_mask"])
@pytest.mark.parametrize(
    ("value", "trained"), [(False, False), (0, False), (0.0, False), (True, True), (1, True), (None, True)]
)
def test_marks_of_what_is_not_learnt(tmp_path: Path, name: str, value: object, trained: bool) -> None:
    assert answer(tmp_path, {"content": "b", name: value}).trained is trained


def dialogue(marks: list[object]) -> dict[str, Any]:
    turns = [(user(f"q{number}"), {**assistant(f"a{number}"), "loss": mark}) for number, mark in enumerate(marks)]
    return {"messages": [message for pair in turns for message in pair]}


@pytest.mark.parametrize(
    ("marks", "options", "targets"),
    [
        ([True, True, True], {}, ["a0", "a1", "a2"]),
        ([True, False, True], {}, ["a0", "a2"]),
        ([True, True, False], {}, ["a0", "a1"]),
        ([True, True, True], {"last_answer_only": True}, ["a2"]),
        ([True, True, False], {"last_answer_only": True}, ["a1"]),
    ],
)
def test_last_answer_only(tmp_path: Path, marks: list[object], options: dict[str, Any], targets: list[str]) -> None:
    from anyorder.data.records import with_last_answer_only

    [record] = read_records(write(tmp_path / "a.jsonl", dialogue(marks)))
    record = with_last_answer_only(record) if options else record
    assert isinstance(record, Dialogue)
    assert [
        message.content for message in record.messages if message.role == "assistant" and message.trained
    ] == targets


def test_last_answer_only_is_for_fine_tuning(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", dialogue([True]))
    with pytest.raises(UserError, match="last_answer_only is given for kind 'pretrain', which trains on whole texts"):
        inspect_data(source, tokenizers.characters(), DataConfig(length=64, last_answer_only=True))


def test_converted_dialogues_keep_calls_thoughts_and_marks(tmp_path: Path) -> None:
    turns = [
        user("a"), {"role": "assistant", "content": "b", "tool_calls": [CALL], "reasoning": "c", "weight": 0},
        {"role": "tool", "name": "weather", "content": "d"}, assistant("e"),
    ]  # fmt: skip
    source = write(tmp_path / "a.jsonl", {"messages": turns, "tools": [{"name": "weather"}]})
    convert_dialogues(source, tmp_path / "b.jsonl")
    [before], [after] = read_records(source), read_records(tmp_path / "b.jsonl")
    assert isinstance(before, Dialogue)
    assert isinstance(after, Dialogue)
    assert (before.messages, before.tools) == (after.messages, after.tools)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"content": "b", "weight": 0.5}, "`weight` of message 1 is 0.5: give 1 for what is trained on and 0"),
        ({"content": "b", "loss": "yes"}, "`loss` of message 1 is 'yes'"),
        ({"content": "b", "mask": True}, "`mask` of message 1 can mean that a message is trained on or that it is not"),
        ({"content": "b", "train_detail": [1]}, "`train_detail` of message 1 marks parts of a message"),
        ({"content": "b", "tool_calls": 5}, "`tool_calls` of message 1 is 5: give a list of JSON objects"),
        ({"content": "b", "tool_calls": ["{"]}, "`tool_calls` of message 1 has '{': give calls like"),
        ({"content": "b", "tool_calls": "{"}, "`tool_calls` of message 1 is not JSON"),
        ({"content": "b", "tool_calls": [{"name": "\ud800"}]}, "`tool_calls` of message 1 has half a character"),
        ({"content": "b", "tool_calls": [{"name": "f", "arguments": float("nan")}]}, "cannot be written as JSON"),
        ({"content": "b", "images": ["a.png"]}, "has `images`, and only text is trained on"),
        ({"content": [{"type": "image_url", "image_url": "u"}]}, "has a part of the type 'image_url', and only text"),
        ({"content": [{"type": "text"}]}, "`content` of message 1 is None: give text"),
        ({"content": {"text": "a"}}, "`content` of message 1 is {'text': 'a'}: give text"),
        ({"content": None, "refusal": "no"}, "`content` of message 1 is None: give text"),
        (
            {"role": "user", "content": "b", "loss": True},
            "`loss` of message 1 says that the user's words are trained on",
        ),
        ({"role": "narrator", "content": "b"}, "`role` of message 1 is 'narrator': give one of system, user"),
        ({"role": ["a"], "content": "b"}, "`role` of message 1 is ['a']: give one of"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_read(tmp_path: Path, message: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as error:
        answer(tmp_path, message)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("beside", "problem"),
    [
        ({"tools": '[{"name": ' + "[" * 900 + "]" * 900 + "}]"}, "`tools` is nested more than 64 deep: mend it"),
        ({"system": "b", "messages": [{"role": "system", "content": "a"}, user("a"), assistant("b")]},
         "has a system prompt beside its system message: leave one of them out"),
        ({"system": "b", "system_prompt": "c"}, "has two system prompts: leave one of them out"),
        ({"messages": [user("a"), {**assistant("b"), "loss": False}]}, "has no answer that is to be trained on: leave"),
        ({"context": "c"}, "has `context` beside `messages`: put it into a message, or take it out"),
        ({"instruction": "c"}, "has `instruction` beside `messages`"),
        ({"history": [["c", "d"]]}, "has `history` beside `messages`"),
        ({"label": False}, "has an answer that is not wanted (`label` is False): take it out"),
        ({"chosen": "c"}, "has two answers to the last message: leave in the one that is trained on"),
        ({"mask": "Assistant"}, "`mask` is 'Assistant': mark messages by `loss`"),
    ],
)  # fmt: skip
def test_fields_beside_messages_that_cannot_be_read(tmp_path: Path, beside: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as error:
        only(tmp_path, {"messages": [user("a"), assistant("b")], **beside})
    assert problem in str(error.value)


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_system_prompts_of_their_own(tmp_path: Path, name: str, field: str) -> None:
    found = only(tmp_path, {field: [user("a"), assistant("b")], name: "s", "id": "1", "mask": "User"})
    assert said(found) == [("system", "s"), ("user", "a"), ("assistant", "b")]


def test_fields_that_repeat_the_messages_are_nothing_new(tmp_path: Path) -> None:
    record = {"prompt": "hi", "prompt_id": "x", "messages": [user("hi"), assistant("yes")], "instruction": "hi"}
    bad_lines = BadLines()
    assert len(list(read_records(write(tmp_path / "a.jsonl", record), bad_lines))) == 1
    assert not bad_lines.unread


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    said_so = [user("a"), {**assistant("b"), "mood": "good", "id": "1", "language": "en"}]
    record = {
        "messages": said_so,
        "title": "t",
        "id": "1",
        "source": "s",
        "views": 3,
        "lang": "en",
        "notes": {"a": ["b"]},
    }
    source = write(tmp_path / "a.jsonl", record, record, {"messages": said_so, "title": None, "notes": {}})
    rows = prepare(source, tokenizers.characters(), DataConfig(length=64, kind="sft"), cache_dir=tmp_path)
    from anyorder.data import report_of

    assert report_of(rows).unread == {"mood of messages": 3, "title": 2, "notes": 2}


@pytest.mark.parametrize(
    "messages",
    [
        json.dumps([user("a"), assistant("b")]),
        [json.dumps(user("a")), json.dumps(assistant("b"))],
        {"role": ["user", "assistant"], "content": ["a", "b"]},
    ],
)
def test_messages_as_tables_hold_them(tmp_path: Path, messages: object) -> None:
    assert said(only(tmp_path, {"messages": messages})) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize("pair", [("input", "output"), ("human", "assistant"), ("question", "answer")])
def test_items_that_are_a_question_and_its_answer(tmp_path: Path, pair: tuple[str, str]) -> None:
    """Capybara's, XTuner's and Firefly's form."""
    turns = [{"system": "s", pair[0]: "a", pair[1]: "b"}, {pair[0]: "c", pair[1]: "d"}]
    expected = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert said(only(tmp_path, {"conversation": turns})) == expected


@pytest.mark.parametrize(
    "record",
    [
        {
            "systemInstruction": {"parts": [{"text": "s"}]},
            "contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [{"text": "b"}]}],
        },
        {
            "system": [{"text": "s"}],
            "messages": [
                {"role": "user", "content": [{"text": "a"}]},
                {"role": "assistant", "content": [{"text": "b"}]},
            ],
        },
        {"system": [{"type": "text", "text": "s"}], "messages": [user("a"), assistant("b")]},
    ],
)
def test_system_prompts_and_messages_in_parts(tmp_path: Path, record: dict[str, Any]) -> None:
    """Gemini's, Bedrock's and Anthropic's form."""
    assert said(only(tmp_path, record)) == [("system", "s"), ("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize("content", ["sunny", [{"type": "text", "text": "sunny"}]])
@pytest.mark.parametrize("behind", [[], [{"type": "text", "text": "And?"}]])
def test_results_of_tools_within_messages(tmp_path: Path, content: object, behind: list[Any]) -> None:
    use = {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": content}
    contents = ["a", [use], [result, *behind], "b"]
    turns = [{"role": "assistant" if at % 2 else "user", "content": item} for at, item in enumerate(contents)]
    bad_lines = BadLines()
    [dialogue] = read_records(write(tmp_path / "a.jsonl", {"messages": turns}), bad_lines)
    asked = [("user", "And?")] if behind else []
    assert said(dialogue)[2:] == [("tool", "sunny"), *asked, ("assistant", "b")]
    assert isinstance(dialogue, Dialogue)
    assert dialogue.messages[2].given == {"role": "tool", "content": "sunny", "tool_call_id": "1"}
    assert not bad_lines.unread
