"""Answers in chat templates of the kinds that published checkpoints have: thoughts, calls, ends of a turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from anyorder.data import DataConfig, prepare
from anyorder.data.chat import Answered, Chat
from anyorder.data.forms import BadRecordError, record_of
from anyorder.data.records import Dialogue, Place
from tests.data import tokenizers

NAMES = ["<|end|>", "<|eot|>", "<|start|>", "<|user|>", "<|assistant|>", "<|calls|>", "<|done|>", "<|channel|>"]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def user(text: str = "a") -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def tokenizer(eos: str = "<|endoftext|>") -> PreTrainedTokenizerBase:
    made = tokenizers.chatty()
    made.add_special_tokens({"additional_special_tokens": [*NAMES, "<|im_start|>", "<|im_end|>", "<|endoftext|>"]})
    made.eos_token = eos
    return made


TOKENIZER = tokenizer()


def rows(template: str, *messages: dict[str, Any], tools: bool = False, eos: str = "<|endoftext|>") -> list[Answered]:
    record = record_of(
        {"messages": list(messages), **({"tools": [TOOL]} if tools else {})}, Place(Path("a"), 1)
    )  # fmt: skip
    assert isinstance(record, Dialogue)
    [answered] = Chat(TOKENIZER if eos == "<|endoftext|>" else tokenizer(eos), template).tokens([record])
    if isinstance(answered, BadRecordError):
        raise answered
    return answered


def learnt(template: str, *messages: dict[str, Any], **options: Any) -> list[str]:
    answered = rows(template, *messages, **options)
    return [str(TOKENIZER.decode(row.ids[begin:end])) for row in answered for begin, end in row.answer_spans]


ASK = "{% if add_generation_prompt %}<|start|>assistant\nOPENED{% endif %}"
CALLS = (
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "</tool_call>{% endfor %}"
)
OPENS = (  # as QwQ's and Qwen 3.5's: prompts open a thought, and the history has none
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}" + CALLS + "{% else %}{{ m.content }}{% endif %}<|end|>\n"
    "{% endfor %}" + ASK.replace("OPENED", "<think>\n")
)
REASONS = (  # as GLM's: a place for thoughts, written in a form of its own
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% else %}<think></think>{% endif %}"
    "{{ m.content }}" + CALLS + "{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}" + ASK.replace("OPENED", "")
)
REASONS_OPEN = REASONS.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
FORGETS = REASONS.replace("m.reasoning_content %}", "m.reasoning_content and not loop.last %}")
NO_THOUGHT = OPENS.replace("<think>\n{% endif %}", "<|channel|>thought\n<|channel|>{% endif %}")
THINKING = (  # as gpt-oss: another name
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.thinking %}<|channel|>{{ m.thinking }}<|channel|>{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}" + ASK.replace("OPENED", "")
)


def test_calls_behind_a_prompt_that_opens_a_thought() -> None:
    turns = (user(), said("", tool_calls=[CALL]), {"role": "tool", "content": "sunny"}, said("b"))
    call = '<tool_call>weather {"city": "Paris"}</tool_call>'
    assert learnt(OPENS, *turns) == [f"\n</think>\n\n{call}<|end|>", "\n</think>\n\nb<|end|>"]
    assert learnt(NO_THOUGHT, *turns) == [f"{call}<|end|>", "b<|end|>"]
    assert learnt(REASONS_OPEN, *turns) == [f"</think>{call}<|end|>", "</think>b<|end|>"]
    [first, _] = learnt(OPENS, user(), said("c", tool_calls=[CALL]), user(), said("b"))
    assert first == f"\n</think>\n\nc{call}<|end|>"


@pytest.mark.parametrize("message", [said("b", reasoning_content="c"), said("<think>\nc\n</think>\n\nb")])
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (OPENS, "c\n</think>\n\nb<|end|>"),
        (REASONS, "<think>c</think>b<|end|>"),
        (REASONS_OPEN, "c</think>b<|end|>"),
        (FORGETS, "<think>\nc\n</think>\n\nb<|end|>"),
        (THINKING, "<|channel|>c<|channel|>b<|end|>"),
    ],
)
def test_a_thought_is_learnt_once_whatever_a_template_does_with_it(
    template: str, expected: str, message: dict[str, Any]
) -> None:
    assert learnt(template, user(), message) == [expected]
    assert learnt(template, user(), message, user(), message) == [expected] * 2


def test_a_thought_before_a_call() -> None:
    turns = (user(), said("", reasoning_content="c", tool_calls=[CALL]))
    call = '<tool_call>weather {"city": "Paris"}</tool_call><|end|>'
    assert learnt(REASONS, *turns) == [f"<think>c</think>{call}"]
    assert learnt(FORGETS, *turns) == [f"<think>\nc\n</think>\n\n{call}"]


# ---- ends of turns ---------------------------------------------------------------------------------

SEVERAL = (  # as Command R7B: two tokens together end a turn
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}{% if m.role == 'assistant' %}<|done|>{% endif %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
LATE = (  # as Apertus: an answer is closed once a question follows
    "{% for m in messages %}{% if m.role == 'user' %}{% if not loop.first %}<|eot|>{% endif %}<|user|>{{ m.content }}"
    "<|end|>{% elif m.role == 'tool' %}[{{ m.content }}]{% else %}{% if loop.previtem.role != 'tool' %}<|assistant|>"
    "{% endif %}{{ m.content }}{% if m.tool_calls %}<|calls|>{{ m.tool_calls | tojson }}<|done|>{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_END = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}" + ASK.replace(
    "<|start|>assistant\nOPENED", "<|assistant|>"
)
ASKS_ALWAYS = SEVERAL.replace("{% if add_generation_prompt %}", "{% if true %}")


@pytest.mark.parametrize("eos", ["<|end|>", "<|endoftext|>"])
def test_several_tokens_that_end_a_turn_together(eos: str) -> None:
    turns = (user(), said("b"), user(), said("c"))
    assert learnt(SEVERAL, *turns, eos=eos) == ["b<|done|><|end|>", "c<|done|><|end|>"]
    assert len(rows(SEVERAL, *turns, eos=eos)) == 1
    assert Chat(tokenizer(eos), SEVERAL).end_token_id == TOKENIZER.convert_tokens_to_ids("<|end|>")


def test_several_tokens_before_a_header_that_is_always_there() -> None:
    assert learnt(ASKS_ALWAYS, user(), said("b"), user(), said("c"), eos="<|end|>") == [
        "b<|done|><|end|>",
        "c<|done|><|end|>",
    ]


def test_an_answer_that_is_closed_once_a_question_follows() -> None:
    [row] = rows(LATE, user(), said("b"), user(), said("c"))
    assert [TOKENIZER.decode(row.ids[begin:end]) for begin, end in row.answer_spans] == ["b<|eot|>", "c<|eot|>"]
    assert TOKENIZER.decode(row.ids) == "<|user|>a<|end|><|assistant|>b<|eot|><|user|>a<|end|><|assistant|>c<|eot|>"


def test_what_a_tool_said_within_an_answer_is_not_learnt() -> None:
    turns = (user(), said("", tool_calls=[CALL]), {"role": "tool", "content": "sunny"}, said("c"))
    first, second = learnt(LATE, *turns)
    assert "weather" in first
    assert first.endswith("<|done|>")
    assert second == "c<|eot|>"


def test_every_answer_ends_where_the_template_writes_no_end() -> None:
    answered = rows(NO_END, user(), said("b"), user(), said("c"))
    assert [TOKENIZER.decode(row.ids) for row in answered] == [
        "<|user|>a<|assistant|>b<|endoftext|>",
        "<|user|>a<|assistant|>b<|user|>a<|assistant|>c<|endoftext|>",
    ]


# ---- templates that take messages of one form only -------------------------------------------------

TOOLS_ONLY = (  # as the `tool_use` templates of Hermes and Command R+
    "{% for tool in tools %}{{ tool.function.name }}\n{% endfor %}" + SEVERAL
)
PARTS_ONLY = (  # as those of networks that see
    "{% for m in messages %}<|start|>{{ m.role }}: {% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant: {% endif %}"
)
JSON_ONLY = SEVERAL.replace(  # as DeepSeek's
    "{{ m.content }}",
    "{{ m.content }}{% for call in m.tool_calls or [] %}{{ 'call ' + call.function.arguments }}{% endfor %}",
).replace("'call '", "call.function.name + ' '")
NULL_ONLY = SEVERAL.replace(  # as those distilled from DeepSeek's R1
    "{{ m.content }}",
    "{% if m.content is none %}{{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}",
)
EITHER = SEVERAL.replace(  # as Mistral's and Llama 3.1's
    "{{ m.content }}", "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}"
)


def test_a_template_for_tools_alone() -> None:
    assert learnt(TOOLS_ONLY, user(), said("b"), tools=True, eos="<|end|>") == ["b<|done|><|end|>"]


def test_dialogues_with_tools_by_the_template_of_that_name(tmp_path: Path) -> None:
    """As Hermes and Command R+ have them, and transformers takes them."""
    words = tokenizer("<|end|>")
    words.chat_template = {"default": SEVERAL, "tool_use": TOOLS_ONLY}  # type: ignore[assignment]
    records = [{"messages": [user(), said("b")]}, {"messages": [user(), said("c")], "tools": [TOOL]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = prepare(tmp_path / "a.jsonl", words, DataConfig(length=64, kind="sft"), cache_dir=tmp_path)
    for row, record in zip(rows, records, strict=True):
        whole = words.apply_chat_template(record["messages"], tools=record.get("tools"), tokenize=False)
        assert words.decode(row["input_ids"]) == whole


def test_a_template_that_takes_content_in_parts_alone() -> None:
    system = {"role": "system", "content": "s"}
    [row] = rows(PARTS_ONLY, system, user(), said("b<|end|>"), user(), said("c"))
    whole = "<|start|>system: s<|end|>\n" + "".join(
        f"<|start|>user: a<|end|>\n<|start|>assistant: {text}<|end|>\n" for text in "bc"
    )
    assert TOKENIZER.decode(row.ids) == whole.rstrip()
    assert [str(TOKENIZER.decode(row.ids[begin:end])).strip() for begin, end in row.answer_spans] == [
        "b<|end|>",
        "c<|end|>",
    ]


def test_a_template_that_takes_arguments_as_json() -> None:
    turns = (user(), said("b", tool_calls=[CALL]), {"role": "tool", "content": "d"}, said("c"))
    assert learnt(JSON_ONLY, *turns) == ['bweather {"city": "Paris"}<|done|><|end|>', "c<|done|><|end|>"]


def test_a_template_that_writes_calls_where_the_content_is_null() -> None:
    turns = (user(), said("", tool_calls=[CALL]), {"role": "tool", "content": "d"}, said("c"))
    assert learnt(NULL_ONLY, *turns) == ["weather<|done|><|end|>", "c<|done|><|end|>"]


def test_parts_of_an_answer_that_a_template_leaves_out_are_refused() -> None:
    assert '"weather"' in learnt(EITHER, user(), said("", tool_calls=[CALL]))[0]
    with pytest.raises(BadRecordError) as error:
        learnt(EITHER, user(), said("b", tool_calls=[CALL]))
    assert error.value.problem == (
        "has an answer that the chat template leaves out or changes, beside text and calls in one message"
    )
    one_call = "{% for m in messages %}{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0] }}{% endif %}{% endfor %}"
    with pytest.raises(BadRecordError) as error:
        learnt(one_call, user(), said("", tool_calls=[CALL, CALL]))
    assert error.value.problem == "has a call of a tool that the chat template leaves out or changes"
