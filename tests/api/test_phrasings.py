"""Phrasings as people give them: forms, tokens at the seams, mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from anyorder.api.phrasings import read_questions
from anyorder.checkpoints.tokenizer.encoding import continuing_tokens
from anyorder.decoding.fusion.layout import Question
from anyorder.errors import UserError
from tests.writers import BOS, byte_tokenizer, sentencepiece_tokenizer

TOKENIZERS = {"sentencepiece": sentencepiece_tokenizer, "bytes": byte_tokenizer}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return TOKENIZERS[request.param]()


TEXTS = [" there was", "there", "\nOnce", "? a", " a", "!\n", "\n\nLily", " é", "日本", " "]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_goes_on_has_no_space_and_no_beginning_of_its_own(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    ids = continuing_tokens(tokenizer, text)
    assert BOS not in ids
    begun = tokenizer("Lily")["input_ids"]
    assert tokenizer.decode([*begun, *ids], skip_special_tokens=True) == "Lily" + text


def test_nothing_goes_on_with_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    assert continuing_tokens(tokenizer, "") == []


@pytest.mark.parametrize("prefix", ["", "Once upon", "Once\n"])
@pytest.mark.parametrize("separator", ["", "\n"])
def test_one_phrasing_has_the_tokens_of_the_whole_text(
    tokenizer: PreTrainedTokenizerBase, prefix: str, separator: str
) -> None:
    phrasing = "Once" if not prefix else " a time"
    (question,), single = read_questions([phrasing], tokenizer, prefix=prefix, suffix=" there", separator=separator)
    assert single
    joined = [*question.prefix, *question.segments[0], *question.suffix]
    assert joined == tokenizer(prefix + phrasing + separator + " there")["input_ids"]


def test_parts_do_not_depend_on_each_other(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [" was one", " little girl", " named Lily"]
    options: dict[str, Any] = {"prefix": "Once upon", "suffix": " a time", "separator": "\n"}
    (together,), _ = read_questions(texts, tokenizer, **options)
    for index, text in enumerate(texts):
        (alone,), _ = read_questions([text], tokenizer, **options)
        assert alone == Question(
            prefix=together.prefix, segments=(together.segments[index],), suffix=together.suffix
        )  # fmt: skip


def test_ids_are_taken_as_they_are() -> None:
    expected = Question(segments=((1, 2, 9), (3, 9)), prefix=(7,), suffix=(8, 8))
    assert read_questions([[1, 2], (3,)], None, prefix=[7], suffix=(8, 8), separator=[9]) == ([expected], True)
    tensors = [torch.tensor([1, 2]), torch.tensor([3])]
    assert read_questions(tensors, None, prefix=torch.tensor([7]), suffix=[8, 8], separator=[9]) == ([expected], True)
    assert read_questions(torch.tensor([[1, 2], [3, 4]]), None)[0] == [Question(segments=((1, 2), (3, 4)))]


def test_ids_and_text_together(tokenizer: PreTrainedTokenizerBase) -> None:
    (question,), _ = read_questions([" a time", [5, 6]], tokenizer, prefix=[BOS, 3], suffix=[4])
    assert question == Question(
        segments=(tuple(continuing_tokens(tokenizer, " a time")), (5, 6)), prefix=(BOS, 3), suffix=(4,)
    )


def test_several_questions() -> None:
    asked, single = read_questions(
        [[[1], [2, 3]], [[4]]], None, prefix=[[7], [8, 9]], suffix=[5], weights=[[1.0, 2.0], [3.0]]
    )
    assert not single
    assert asked == [
        Question(segments=((1,), (2, 3)), prefix=(7,), suffix=(5,), weights=(1.0, 2.0)),
        Question(segments=((4,),), prefix=(8, 9), suffix=(5,), weights=(3.0,)),
    ]
    words = [["Once", "a"], ["Lily"]]
    tokenizer = sentencepiece_tokenizer()
    two, single = read_questions(words, tokenizer, prefix=["there", ""], suffix=" was", weights=[2.0])
    assert not single
    assert two[1].prefix == (BOS,)
    assert [len(question.segments) for question in two] == [2, 1]
    assert [question.weights for question in two] == [(2.0,), (2.0,)]
    one, single = read_questions([["Once", "a"]], tokenizer)
    assert not single
    assert len(one[0].segments) == 2


@pytest.mark.parametrize(
    ("phrasings", "options", "message"),
    [
        ("who?", {}, "phrasings is the text 'who\\?': give a list of texts, one for each phrasing"),
        ([], {}, r"phrasings is \[\]: give a list of at least one text or list of token ids"),
        (None, {}, "phrasings is None: give a list"),
        ([[]], {}, "there are 0 phrasings of question 0: give at least one"),
        (["a", ""], {}, "phrasing 1 is '': write a question in it, or leave it out"),
        ([[1], []], {}, r"phrasing 1 is \[\]: write a question in it"),
        ([["a"], ["b", " "]], {}, "phrasing 1 of question 1 is ' ': write a question in it"),
        (["a", 3], {}, "phrasing 1 is 3: give a text or a list of token ids"),
        ([["a"], 3], {}, "phrasings of question 1 are 3: give a list of texts"),
        ([["a"], [1.5]], {}, "phrasing 0 of question 1 is 1.5: give a text or"),
        ([["a"], ["b"]], {"prefix": ["x"]}, "prefix has 1 entries for 2 questions: give one, or one for each question"),
        (["a"], {"suffix": 3}, "suffix has 3 entries for 1 questions"),
        ([["a"], ["b"]], {"suffix": ["x", 3]}, "suffix 1 is 3: give a text or a list of token ids"),
        ([["a"], ["b"]], {"weights": [[1.0]]}, "weights has 1 entries for 2 questions: give one list for each"),
    ],
)
def test_mistakes(phrasings: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_questions(phrasings, byte_tokenizer(), **options)


def test_text_needs_a_tokenizer() -> None:
    for options in ({"phrasings": ["who"]}, {"phrasings": [[1]], "suffix": "A:"}, {"phrasings": [[1]], "prefix": "Q:"}):
        with pytest.raises(UserError, match="is text and tokenizer is None: give the tokenizer, or token ids"):
            read_questions(tokenizer=None, **options)


@pytest.mark.parametrize(
    "value", [True, 3, 0.5, None, b"x", object(), torch.tensor(3), torch.ones(2, 2), [None], {"a": 1}]
)
@pytest.mark.parametrize("name", ["prefix", "suffix", "separator"])
def test_parts_of_another_kind_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name}( 0)? (is|has) ") as caught:
        read_questions(["a", "b"], byte_tokenizer(), **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [3, 0.5, torch.tensor(0.5), object(), 3 + 1j])
def test_weights_of_another_kind_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"^weights is .*: give a number for each phrasing, in a list\.$"):
        read_questions(["a", "b"], byte_tokenizer(), weights=value)


def test_arrays_are_lists() -> None:
    (question,), _ = read_questions(
        [np.array([1, 2]), np.array([3])], None, prefix=np.array([4]), suffix=torch.tensor([5]),
        separator=np.array([6]), weights=np.array([0.25, 0.75]),
    )  # fmt: skip
    assert question == Question(segments=((1, 2, 6), (3, 6)), prefix=(4,), suffix=(5,), weights=(0.25, 0.75))


@pytest.mark.parametrize("name", ["prefix", "suffix", "separator"])
def test_halves_of_characters_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^the text '.*\\ud800' has half a character \(a surrogate alone\): write it"):
        read_questions(["a", "b"], byte_tokenizer(), **{name: "\ud800"})
