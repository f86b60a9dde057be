"""Prompts as messages, and as transformers' tokenizers return them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.api.prompt_forms import plain_prompt
from anyorder.api.prompts import prompt_ids, prompts_with_gaps
from anyorder.data import chat_template
from anyorder.errors import UserError
from tests.writers import byte_tokenizer, chain, sentencepiece_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SHORT = [{"role": "user", "content": "Once"}]
LONG = [{"role": "system", "content": "Once upon a time"}, {"role": "user", "content": "there was one"}]


@pytest.fixture(params=[byte_tokenizer, sentencepiece_tokenizer])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = request.param()
    made.chat_template = TEMPLATE
    made.pad_token = "<unk>"
    return made


def asked(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    ids: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return list(ids)


def test_messages_are_what_the_template_writes(tokenizer: PreTrainedTokenizerBase) -> None:
    assert prompt_ids(SHORT, tokenizer, None) == ([asked(tokenizer, SHORT)], True)
    both = [asked(tokenizer, SHORT), asked(tokenizer, LONG)]
    assert prompt_ids([SHORT, LONG], tokenizer, None) == (both, False)
    assert prompt_ids((tuple(SHORT),), tokenizer, None) == (both[:1], False)
    assert prompts_with_gaps(SHORT, tokenizer, None, new_tokens=2) == (both[:1], True)
    mixed = ["a", SHORT, [5, 6]]
    assert prompt_ids(mixed, tokenizer, None) == ([tokenizer("a")["input_ids"], both[0], [5, 6]], False)


@pytest.mark.parametrize("tensors", ["pt", "np", None])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_apply_chat_template_returns_loses_its_padding(
    tokenizer: PreTrainedTokenizerBase, side: str, tensors: str | None
) -> None:
    tokenizer.padding_side = side
    both: Any = tokenizer.apply_chat_template(
        [SHORT, LONG], add_generation_prompt=True, padding=True, return_dict=True, return_tensors=tensors
    )
    expected = ([asked(tokenizer, SHORT), asked(tokenizer, LONG)], False)
    assert prompt_ids(both, tokenizer, None) == expected
    assert prompt_ids(dict(both), None, None) == expected
    one: Any = tokenizer.apply_chat_template(SHORT, add_generation_prompt=True, return_dict=True)
    assert prompt_ids(one, None, None) == (expected[0][:1], True)
    text: Any = tokenizer.apply_chat_template(SHORT, add_generation_prompt=True, tokenize=False)
    assert prompt_ids(text, tokenizer, None) == (expected[0][:1], True)


def test_arrays_and_their_numbers() -> None:
    assert prompt_ids(np.array([3, 4]), None, None) == ([[3, 4]], True)
    numbers: Any = [np.int64(3), np.int32(4)]
    assert prompt_ids(numbers, None, None) == ([[3, 4]], True)
    rows: list[Any] = [np.array([3]), torch.tensor([4, 5])]
    assert prompt_ids(rows, None, None) == ([[3], [4, 5]], False)
    assert prompt_ids({"input_ids": [3, 4]}, None, None) == ([[3, 4]], True)
    assert prompt_ids({"input_ids": torch.tensor([[3, 4]]), "attention_mask": torch.tensor([[0, 1]])}, None, None) == (
        [[4]],
        False,
    )


def test_without_a_template_the_plain_one_is_used(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    expected = tokenizer.apply_chat_template(
        SHORT, chat_template=chat_template(tokenizer), add_generation_prompt=True, return_dict=False
    )
    assert prompt_ids(SHORT, tokenizer, None) == ([expected], True)


def test_generate_takes_messages_and_writes_what_follows_them(tokenizer: PreTrainedTokenizerBase) -> None:
    last, end = asked(tokenizer, SHORT)[-1], tokenizer.eos_token_id
    word: Any = tokenizer.convert_tokens_to_ids("a")
    model = chain(tokenizer, [last, word, end])
    out = anyorder.generate(model, tokenizer, SHORT)
    assert (out.text, out.token_ids, out.stopped) == ("a", [word, end], ["end"])
    assert anyorder.generate(model, tokenizer, [SHORT, LONG]).text == ["a", "a"]
    assert "".join(anyorder.stream(model, tokenizer, SHORT)) == "a"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            {"role": "user", "content": "a"},
            r"^the prompt is \{'content': 'a', 'role': 'user'\}: give a string, token",
        ),
        ({"input_ids": [1, 2], "attention_mask": [1]}, r"^attention_mask is \[1\]: give a number for each"),
        ([{"role": "user"}, {"content": "a"}], "^prompt 0 is .*: give strings, or"),
    ],
)
def test_what_is_no_prompt(prompt: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prompt_ids(prompt, byte_tokenizer(), None)


def test_messages_need_a_tokenizer_and_a_template_that_takes_them(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"the prompt is messages \(.*\) and tokenizer is None: give the tokenizer"):
        plain_prompt(SHORT, None)
    tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(UserError, match=r"the chat template does not write these messages \(no users\): change them"):
        plain_prompt(SHORT, tokenizer)
