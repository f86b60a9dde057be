"""Prompts: every part where it belongs, and nothing of a chat template lost."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from anyorder.checkpoints.tokenizer.encoding import prompt_tokens
from anyorder.data import train_tokenizer
from anyorder.errors import UserError
from anyorder.evaluation.prompts import prompt_parts
from anyorder.evaluation.questions import Question

SHOT = Question(uuid="s", phrasings=("Who wrote Emma?", "Emma is by whom?"), answers=("Jane Austen", "Austen"))

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    made = train_tokenizer(["Q: who?\nA: he"], 280)
    made.add_special_tokens({"bos_token": "<s>"})
    made.chat_template = TEMPLATE
    return made


def test_a_prompt_reads_as_questions_and_answers() -> None:
    parts = prompt_parts("question", [SHOT])
    assert parts.prefix + parts.segment("Who?") + parts.suffix == (
        "Answer each question in a few words.\n\nQ: Who wrote Emma?\nA: Jane Austen\n\nQ: Who?\nA:"
    )
    assert prompt_parts("question", instruction="").prefix == ""
    assert prompt_parts("question", [SHOT], instruction="Go.").prefix.startswith("Go.\n\nQ: Who wrote")


@pytest.mark.parametrize(
    ("form", "segment"), [("question", "Q: It is\n"), ("mask", "Q: It is\n"), ("opening", "Q: It is ...\n")]
)
def test_forms(form, segment: str) -> None:
    parts = prompt_parts(form)
    assert parts.segment("It is") == segment
    assert parts.suffix == "A:"
    assert ("[MASK]" in parts.prefix) == (form == "mask")


def test_the_prediction_is_the_first_line_or_word() -> None:
    assert prompt_parts("question").prediction(" Jane Austen. \nQ: ...") == "Jane Austen."
    assert prompt_parts("opening").prediction("") == ""
    assert prompt_parts("mask").prediction(" 'London', England\nQ") == "London"
    assert prompt_parts("mask").prediction(" \n ") == ""


def test_a_chat_template_goes_around(tokenizer: PreTrainedTokenizerFast) -> None:
    parts = prompt_parts("question", [SHOT], tokenizer=tokenizer)
    plain = prompt_parts("question", [SHOT], tokenizer=tokenizer, chat="never")
    assert plain == prompt_parts("question", [SHOT])
    whole = parts.prefix + parts.segment("Who?") + parts.suffix
    turn = plain.prefix + plain.segment("Who?") + plain.suffix
    assert whole == f"<s><|user|>{turn}<|end|><|assistant|>"
    assert parts == prompt_parts("question", [SHOT], tokenizer=tokenizer, chat="always")


def test_the_token_that_begins_a_text_stands_once(tokenizer: PreTrainedTokenizerFast) -> None:
    from tokenizers.processors import TemplateProcessing

    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    parts = prompt_parts("question", tokenizer=tokenizer)
    assert prompt_tokens(tokenizer, parts.prefix).count(begin) == 1


def test_templates_that_do_not_do(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="chat is 'always', but the tokenizer has no chat template: give 'auto'"):
        prompt_parts("question", chat="always")
    tokenizer.chat_template = "{{ messages[0].content | upper }}"
    with pytest.raises(UserError, match="the chat template of this tokenizer changes the text"):
        prompt_parts("question", tokenizer=tokenizer)
