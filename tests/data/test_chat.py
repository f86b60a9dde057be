"""Dialogues as tokens, and exactly which of them are answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    [answered] = rows(tokenizer, one, template)
    return answered


def rows(tokenizer: PreTrainedTokenizerBase, one: Dialogue, template: str | None = None) -> list[Answered]:
    [answered] = Chat(tokenizer, template or chat_template(tokenizer)).tokens([one])
    assert isinstance(answered, list), answered
    return answered


def learnt(tokenizer: PreTrainedTokenizerBase, answered: list[Answered]) -> list[str]:
    return [str(tokenizer.decode(row.ids[begin:end])) for row in answered for begin, end in row.answer_spans]


def begins(answered: list[Answered]) -> list[list[int]]:
    """The prompt before each answer."""
    return [row.ids[:begin] for row in answered for begin, _ in row.answer_spans]


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
    answers = [
        "".join(tokenizer.convert_ids_to_tokens(answered.ids[begin:end])) for begin, end in answered.answer_spans
    ]
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
    begin, end = answered.answer_spans[0]
    assert tokenizer.decode(answered.ids[:begin]) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(answered.ids[begin:end]) == "b<|im_end|>"  # without the line break behind it
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b "}], return_dict=False
    )
    assert answered.ids == whole[:-1]


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
    answered = rows(tokenizer, one)
    assert begins(answered) == prompts(tokenizer, one)  # exactly, whatever the answers begin with
    end = "<|im_end|>" if name == "chatty" else str(tokenizer.eos_token)
    for said, message in zip(learnt(tokenizer, answered), one.messages[bool(system) + 1 :: 2], strict=True):
        if name == "chatty":  # its template leaves out spaces around messages
            assert said == f"{message.content.strip()}{end}"
        elif name == "sentencepiece_tokenizer":  # whose decoder leaves out a space at the beginning
            assert said in (message.content + end, message.content.removeprefix(" ") + end)
        else:
            assert said == message.content + end
    if name in ("chatty", "characters"):  # no token reaches over a border
        assert len(answered) == 1


def test_a_token_that_would_reach_over_the_border() -> None:
    tokenizer = TOKENIZERS["merging"]
    one = dialogue("one", "\none two", "one", "\none two")
    [before, *_] = prompts(tokenizer, one)
    whole = tokenizer("user:\none\n\nassistant:\n\none two", add_special_tokens=False)["input_ids"]
    assert whole[: len(before)] != before  # the test tests something
    answered = rows(tokenizer, one)
    assert begins(answered) == prompts(tokenizer, one)
    assert learnt(tokenizer, answered) == ["\none two<|endoftext|>"] * 2


@pytest.mark.parametrize(
    ("template", "problem", "remedy"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out or changes", "writes messages as they are"),
        ("{{ 'a' * 10**10 }}", "(it takes more than 512 MiB of memory)", "or give another template"),
        ("{{ 1 // 0 }}", "by zero)", "or give another template"),
        ("{{ '' }}", "(it writes nothing)", "or give another template"),
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


SPOKEN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: "
ASKED_AGAIN = SPOKEN + "{% else %}Question: {{ messages[0].content }}{% endif %}"
COUNTED = SPOKEN + "{% else %}{{ messages | map(attribute='content') | join | length }} characters{% endif %}"
QUESTIONS_ALONE = (
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (QUESTIONS_ALONE, "has an answer that the chat template leaves out or changes"),
        (COUNTED, "has an answer behind which the chat template writes more than the end of the turn"),
        (ASKED_AGAIN, "has an answer behind which the chat template writes more than the end of the turn"),
    ],
)
@pytest.mark.parametrize("answer", ["no", "later"])
def test_the_words_of_the_answer_in_the_question_are_no_answer(template: str, problem: str, answer: str) -> None:
    [error] = Chat(TOKENIZERS["characters"], template).tokens([dialogue("yes or no", answer)])
    assert isinstance(error, BadRecordError)
    assert error.problem == problem


def test_others_are_written_beside_one_that_cannot_be() -> None:
    results = Chat(TOKENIZERS["characters"], ALTERNATING).tokens(
        [dialogue("a", "b"), dialogue("a", "b", system="s"), dialogue("e", "f")]
    )
    assert [isinstance(result, list) for result in results] == [True, False, True]


def test_a_template_that_rewrites_history_gives_a_row_per_answer() -> None:
    tokenizer = TOKENIZERS["characters"]
    answered = rows(tokenizer, dialogue("a", "b", "c", "d"), tokenizers.FORGETFUL)
    assert ["".join(tokenizer.convert_ids_to_tokens(row.ids)) for row in answered] == [
        "user: aassistant: b</s>",
        "user: aassistant: ...user: cassistant: d</s>",
    ]


# ---- templates of the kinds that published checkpoints have ----------------------------------------

HEADER = "<|im_start|>{{ m.role }}\n"
ALTERNATING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{{ bos_token }}{{ m.role }}>{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant>{% endif %}"
)
ALWAYS = "{% for m in messages %}" + HEADER + "{{ m.content }}<|im_end|>{% endfor %}{{ '<|im_start|>assistant\n' }}"
CLOSED_BY_EOS = (  # as Phi's: the end of the text behind the end of the turn
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)
OTHER_LAST = (  # as gpt-oss: the last answer ends otherwise than those in the history
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INSTRUCT = (  # as Llama 2's: no words that ask
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
NO_END = (  # as Alpaca's
    "{% for m in messages %}### {{ 'Response' if m.role == 'assistant' else 'Instruction' }}:\n{{ m.content }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)
ALWAYS_NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
OPENS_THOUGHT = (  # as DeepSeek's distilled networks: the prompt opens a thought that messages lose
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>' + m.content.split('</think>')[-1] }}"
    "<|im_end|>{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|><think>\n' }}{% endif %}"
)
LAST_THINKS = (  # as Qwen 3's: the last answer has a thought, though an empty one, earlier ones have none
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{% set parts = m.content.split('</think>') %}"
    "{{ '<think>\n' + (parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '') + '\n</think>\n\n' }}"
    "{{ parts[-1].lstrip('\n') }}{% else %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (  # marks of what is learnt change nothing
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM_LATE = (  # as Mistral's: the system message stands in the last question
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index %}"
    "{% endif %}{% endfor %}{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] "
    "{% if loop.index + (1 if messages[0].role == 'system' else 0) == ns.last and messages[0].role == 'system' %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content }}[/INST]{% else %} {{ m.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CLOSED_BY_EOS

KINDS = {
    "alternating": (ALTERNATING, "<|im_end|>", None, False),
    "header always": (ALWAYS, "<|im_end|>", 1, True),
    "closed by eos": (CLOSED_BY_EOS, "<|im_end|>", 1, True),
    "another last": (OTHER_LAST, "<|endoftext|>", None, True),
    "instruct": (INSTRUCT, " <|endoftext|>", 1, True),
    "no end": (NO_END, None, None, True),
    "header always and no end": (ALWAYS_NO_END, None, None, True),
    "last thinks": (LAST_THINKS, "<|im_end|>", None, True),
    "marked": (MARKED, "<|im_end|>", 1, True),
    "system late": (SYSTEM_LATE, "<|endoftext|>", None, True),
    "dated": (DATED, "<|im_end|>", 1, True),
}
"""Template, end of a turn, rows of a dialogue where that is fixed, whether there is a system role."""


def with_ends(make: Callable[[], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    tokenizer = make()
    names = [name for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>") if name not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    return tokenizer


WITH_ENDS = {make.__name__: with_ends(make) for make in tokenizers.ALL}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["chatty", "merging", "sentencepiece_tokenizer"])
@given(
    turns=st.lists(
        st.text("\none two,", min_size=1, max_size=12).filter(str.strip).map(str.strip), min_size=2, max_size=6
    ),
    system=st.sampled_from(["", "one"]),
    written_out=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_what_is_learnt_is_the_answer_and_the_end_of_the_turn(
    name: str, kind: str, turns: list[str], system: str, written_out: bool
) -> None:
    template, end, count, has_system = KINDS[kind]
    tokenizer = WITH_ENDS[name]
    turns = turns[: len(turns) // 2 * 2]
    given_turns = [turn + (end or "<|endoftext|>") * (written_out and at % 2) for at, turn in enumerate(turns)]
    answered = rows(tokenizer, dialogue(*given_turns, system=system if has_system else ""), template)
    messages = [{"role": "system", "content": system}] * bool(system and has_system)
    expected, prompt_ids = [], []
    for at, turn in enumerate(turns):
        if at % 2:
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            prompt_ids.append(tokenizer(text, add_special_tokens=False)["input_ids"])
            expected.append(("<think>\n\n</think>\n\n" if kind == "last thinks" else "") + turn)
        messages.append({"role": "assistant" if at % 2 else "user", "content": turn})
    assert begins(answered) == prompt_ids
    said = learnt(tokenizer, answered)
    lasts = {sum(len(row.answer_spans) for row in answered[: number + 1]) - 1 for number in range(len(answered))}
    for at, (text, answer) in enumerate(zip(said, expected, strict=True)):
        closing = ("<|endoftext|>" if at in lasts else "") if end is None else end
        assert text.lstrip(" ").replace(" <|", "<|") == (answer + closing).replace(" <|", "<|")
    assert count is None or name == "merging" or len(answered) == count


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one", "\n</think>\n\none<|im_end|>"),
        ("<think>\ntwo\n</think>\n\none", "two\n</think>\n\none<|im_end|>"),
        ("two</think>one", "two</think>one<|im_end|>"),
    ],
)
def test_a_prompt_that_opens_a_thought(content: str, expected: str) -> None:
    tokenizer = WITH_ENDS["chatty"]
    answered = rows(tokenizer, dialogue("a", content, "b", "one"), OPENS_THOUGHT)
    assert learnt(tokenizer, answered) == [expected, "\n</think>\n\none<|im_end|>"]
    assert all(str(tokenizer.decode(ids)).endswith("<|im_start|><think>\n") for ids in begins(answered))


def test_added_tokens_at_the_end_of_an_answer_stay() -> None:
    tokenizer = with_ends(tokenizers.chatty)
    tokenizer.add_tokens(["</call>"])
    for template, end in ((ALWAYS, "<|im_end|>"), (NO_END, "<|endoftext|>"), (CLOSED_BY_EOS, "<|im_end|>")):
        assert learnt(tokenizer, rows(tokenizer, dialogue("a", "one</call>"), template)) == ["one</call>" + end]


def test_what_is_context_only_is_not_learnt() -> None:
    tokenizer = TOKENIZERS["characters"]
    one = dialogue("a", "b", "c", "d")
    messages = (one.messages[0], replace(one.messages[1], trained=False), *one.messages[2:])
    assert learnt(tokenizer, rows(tokenizer, replace(one, messages=messages))) == ["d</s>"]


def test_fields_beside_the_content_go_to_templates_with_a_place() -> None:
    tokenizer = WITH_ENDS["chatty"]
    fields = {"content": "one", "reasoning_content": "two"}
    message = Message(role="assistant", content="<think>\ntwo\n</think>\n\none", given=fields)
    one = replace(dialogue("a", "b"), messages=(Message(role="user", content="a"), message))
    place = (
        "{% for m in messages %}{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
        "<|im_end|>{% endfor %}"
    )
    assert learnt(tokenizer, rows(tokenizer, one, place)) == ["(two)one<|im_end|>"]
    without = learnt(tokenizer, rows(tokenizer, one, ALWAYS))
    assert without == ["<think>\ntwo\n</think>\n\none<|im_end|>"]


@pytest.mark.parametrize(("kind", "end"), [("header always", "<|im_end|>"), ("no end", "<|endoftext|>")])
def test_the_token_by_which_answers_end(kind: str, end: str) -> None:
    tokenizer = WITH_ENDS["chatty"]
    assert Chat(tokenizer, KINDS[kind][0]).end_token_id == tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("name", ["sharegpt/dummy_conversation.json", "gsm8k/test.jsonl"])
@pytest.mark.parametrize("make", ["stories", "chatty"])
def test_public_dialogues(shared_data: Path, name: str, make: str) -> None:
    chosen: Callable[[], PreTrainedTokenizerBase] = getattr(tokenizers, make)
    tokenizer = tokenizers.stories(shared_data) if make == "stories" else chosen()
    dialogues = [record for record in read_records(shared_data / name) if isinstance(record, Dialogue)][:150]
    end = "</s>" if make == "stories" else "<|im_end|>"
    for one, answered in zip(dialogues, Chat(tokenizer, chat_template(tokenizer)).tokens(dialogues), strict=True):
        assert isinstance(answered, list)
        assert begins(answered) == prompts(tokenizer, one)
        assert learnt(tokenizer, answered) == [
            message.content.strip() + end for message in one.messages if message.role == "assistant"
        ]
