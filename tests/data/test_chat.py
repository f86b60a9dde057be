"""Dialogues as tokens, and exactly which of them are answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from anyorder.data import chat_template, read_records
from anyorder.data.chat import Answered, Chat
from anyorder.data.forms import BadRecordError
from anyorder.data.records import Dialogue, Message, Place
from tests.data import tokenizers

TOKENIZERS = {make.__name__: make() for make in tokenizers.ALL}


def dialogue(*turns: str, system: str = "", tools: tuple = ()) -> Dialogue:
    messages = [Message(role="system", content=system)] if system else []
    messages += [Message(role="assistant" if at % 2 else "user", content=turn) for at, turn in enumerate(turns)]
    return Dialogue(place=Place(Path("a"), 1), form="messages", messages=tuple(messages), tools=tools)


def encode(tokenizer: PreTrainedTokenizerBase, one: Dialogue, template: str | None = None) -> Answered:
    [answered] = Chat(tokenizer, template or chat_template(tokenizer)).tokens([one])
    assert isinstance(answered, Answered), answered
    return answered


def prompts(tokenizer: PreTrainedTokenizerBase, one: Dialogue) -> list[list[int]]:
    """Slow twin: what a person would type before each answer, as the network will get it."""
    messages = [{"role": message.role, "content": message.content} for message in one.messages]
    texts = [
        tokenizer.apply_chat_template(
            messages[:at], chat_template=chat_template(tokenizer), tokenize=False, add_generation_prompt=True
        )
        for at, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_the_plain_template() -> None:
    tokenizer = TOKENIZERS["characters"]
    answered = encode(tokenizer, dialogue("1+2?", "3", "ok?", "yes", system="add"))
    text = "".join(tokenizer.convert_ids_to_tokens(answered.ids))
    assert text == "system:\nadd\n\nuser:\n1+2?\n\nassistant:\n3</s>\n\nuser:\nok?\n\nassistant:\nyes</s>"
    answers = ["".join(tokenizer.convert_ids_to_tokens(answered.ids[begin:end])) for begin, end in answered.turns]
    assert answers == ["3</s>", "yes</s>"]
    assert (answered.text_bytes, answered.answer_bytes) == (len(text), 4)


def test_the_plain_template_begins_as_any_text_does() -> None:
    tokenizer = TOKENIZERS["sentencepiece_tokenizer"]
    ids = encode(tokenizer, dialogue("one", "two")).ids
    assert ids[:2] == tokenizer("user")["input_ids"][:2]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_the_end_token_may_be_given() -> None:
    assert chat_template(TOKENIZERS["characters"], 0).count('"<pad>"') == 1


def test_a_template_of_ones_own() -> None:
    tokenizer = TOKENIZERS["chatty"]
    assert chat_template(tokenizer) == tokenizers.CHATML
    answered = encode(tokenizer, dialogue("a", " b "))
    begin, end = answered.turns[0]
    assert tokenizer.decode(answered.ids[:begin]) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(answered.ids[begin:end]) == "b<|im_end|>\n"
    assert answered.ids == tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b "}], return_dict=False
    )


def test_one_of_several_templates() -> None:
    tokenizer = tokenizers.characters()
    tokenizer.chat_template = {"tool_use": "x", "default": "y"}
    assert chat_template(tokenizer) == "y"
    tokenizer.chat_template = {"tool_use": "x"}
    assert chat_template(tokenizer) == "x"


def test_tools_have_a_place() -> None:
    tokenizer = TOKENIZERS["characters"]
    tools = ({"name": "add"},)
    text = "".join(tokenizer.convert_ids_to_tokens(encode(tokenizer, dialogue("a", "b", tools=tools)).ids))
    assert text.startswith('tools:\n{"name": "add"}\n\nuser:\na')
    for system, begins in (
        ("", '<|im_start|>system\n{"name": "add"}'),
        ("s", '<|im_start|>system\ns\n{"name": "add"}'),
    ):
        chatty = TOKENIZERS["chatty"]
        one = dialogue("a", "b", system=system, tools=tools)
        assert str(chatty.decode(encode(chatty, one).ids)).startswith(begins)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    turns=st.lists(st.text(" \none two,", min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=6),
    system=st.sampled_from(["", "one", "one\n"]),
)
@settings(max_examples=60, deadline=None)
def test_what_comes_before_an_answer_is_the_prompt(name: str, turns: list[str], system: str) -> None:
    tokenizer = TOKENIZERS[name]
    one = dialogue(*turns[: len(turns) // 2 * 2], system=system)
    answered = encode(tokenizer, one)
    expected = prompts(tokenizer, one)
    begins = [begin for begin, _ in answered.turns]
    assert len(begins) == len(expected)
    assert answered.ids[: begins[0]] == expected[0]  # exactly, whatever the answer begins with
    for (begin, end), message in zip(answered.turns, one.messages[bool(system) + 1 :: 2], strict=True):
        assert begin < end
        said = tokenizer.decode(answered.ids[begin:end], skip_special_tokens=True)
        if name == "chatty":  # its template leaves out spaces around messages
            assert said == f"{message.content.strip()}\n"
        elif name == "sentencepiece_tokenizer":  # whose decoder leaves out a space at the beginning
            assert said == message.content.removeprefix(" ")
        else:
            assert said == message.content
    if name in ("chatty", "characters"):  # no token reaches over a border
        assert [answered.ids[:begin] for begin in begins] == expected


def test_a_token_that_would_reach_over_the_border() -> None:
    tokenizer = TOKENIZERS["merging"]
    one = dialogue("one", "\none two", "one", "\none two")
    [before, *_] = prompts(tokenizer, one)
    whole = tokenizer("user:\none\n\nassistant:\n\none two", add_special_tokens=False)["input_ids"]
    assert whole[: len(before)] != before  # the test tests something
    answered = encode(tokenizer, one)
    (begin, end), (second, _) = answered.turns
    assert answered.ids[:begin] == before
    assert tokenizer.decode(answered.ids[begin:end]) == "\none two<|endoftext|>"
    assert tokenizer.decode(answered.ids[second:]) == "\none two<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "problem", "remedy"),
    [
        (tokenizers.FORGETFUL, "earlier messages change when others follow", "give a template that only appends"),
        ("{{ raise_exception('roles must alternate.') }}", "(roles must alternate)", "change the messages, or give"),
        ("{{ messages[0]['name'] + 1 }}", "is refused by the chat template", "or give another template"),
        ("{% for", "is refused by the chat template", "or give another template"),
    ],
)
def test_templates_that_cannot_write_a_dialogue(template: str, problem: str, remedy: str) -> None:
    good = dialogue("a", "b")
    [error, *_] = Chat(TOKENIZERS["characters"], template).tokens([dialogue("a", "b", "c", "d"), good])
    assert isinstance(error, BadRecordError)
    assert problem in error.problem
    assert remedy in error.remedy


def test_others_are_written_beside_one_that_cannot_be() -> None:
    results = Chat(TOKENIZERS["characters"], tokenizers.FORGETFUL).tokens(
        [dialogue("a", "b"), dialogue("a", "b", "c", "d"), dialogue("e", "f")]
    )
    assert [isinstance(result, Answered) for result in results] == [True, False, True]


@pytest.mark.parametrize("name", ["sharegpt/dummy_conversation.json", "gsm8k/test.jsonl"])
@pytest.mark.parametrize("make", ["stories", "chatty"])
def test_public_dialogues(shared_data: Path, name: str, make: str) -> None:
    chosen: Callable[[], PreTrainedTokenizerBase] = getattr(tokenizers, make)
    tokenizer = tokenizers.stories(shared_data) if make == "stories" else chosen()
    dialogues = [record for record in read_records(shared_data / name) if isinstance(record, Dialogue)][:150]
    end = "</s>" if make == "stories" else "<|im_end|>\n"
    for one, answered in zip(dialogues, Chat(tokenizer, chat_template(tokenizer)).tokens(dialogues), strict=True):
        assert isinstance(answered, Answered)
        begins = [begin for begin, _ in answered.turns]
        assert [answered.ids[:begin] for begin in begins] == prompts(tokenizer, one)
        said = [tokenizer.decode(answered.ids[begin:end]) for begin, end in answered.turns]
        assert said == [message.content.strip() + end for message in one.messages if message.role == "assistant"]
