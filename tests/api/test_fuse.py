"""`anyorder.fuse` and `anyorder.stream_fused`: text in, text out."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.decoding.fusion.method import METHODS
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from tests.decoding.fusion.test_decoder import net
from tests.model.networks import network
from tests.writers import END, byte_tokenizer, chain

PREFIX, SUFFIX = "Once upon a time", " She"
PHRASINGS = [
    " there was a little girl.",
    " a small girl lived there.",
    " there lived a girl named Lily, who was big.",
]


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> tuple[Llama, PreTrainedTokenizerBase]:
    folder = shared_data / "stories260K"
    model, tokenizer = anyorder.load(
        folder / "stories260K.bin", tokenizer=folder / "tok512.bin", dtype="float64", device="cpu"
    )
    assert tokenizer is not None
    return model, tokenizer


def test_copies_of_a_phrasing_are_answered_as_the_phrasing_alone(
    stories: tuple[Llama, PreTrainedTokenizerBase],
) -> None:
    """And as `generate` continues the text."""
    plain = anyorder.generate(*stories, PREFIX + PHRASINGS[0] + SUFFIX, max_new_tokens=24)
    for count in (1, 5):
        fused = anyorder.fuse(
            *stories, PHRASINGS[:1] * count, prefix=PREFIX, suffix=SUFFIX, max_new_tokens=24, temperature=0.0
        )
        assert fused.text == plain.text
        assert fused.token_ids == plain.token_ids
    assert anyorder.fuse(*stories, ["Lily had a"], max_new_tokens=9).sequences == (
        anyorder.generate(*stories, "Lily had a", max_new_tokens=9).sequences
    )


def test_forms_of_the_result(stories: tuple[Llama, PreTrainedTokenizerBase]) -> None:
    """As `generate`: bare for one question, lists for several; a batch size plays no part."""
    options: dict[str, Any] = {"prefix": PREFIX, "suffix": SUFFIX, "max_new_tokens": 12, "temperature": 0.7, "seed": 3}
    asked = [PHRASINGS, PHRASINGS[:1], PHRASINGS[1:]]
    batch = anyorder.fuse(*stories, asked, **options)
    assert isinstance(batch.text, list)
    assert len(batch.text) == len(batch.token_ids) == len(batch.sequences) == 3
    parts = anyorder.fuse(*stories, asked, batch_size=2, **options)
    assert (parts.text, parts.token_ids, parts.sequences) == (batch.text, batch.token_ids, batch.sequences)
    single = anyorder.fuse(*stories, PHRASINGS, **options)
    assert single.text == batch.text[0]
    assert single.token_ids == batch.token_ids[0]
    assert single.passes == 3 + 11
    model, tokenizer = stories
    by_id = anyorder.fuse(model, None, [[5, 6], [7]], suffix=[8], max_new_tokens=3)
    assert by_id.text is None
    assert by_id.sequences == [[5, 6, 7, 8, *by_id.token_ids]]
    assert tokenizer is not None


@pytest.mark.parametrize("method", METHODS)
def test_answers_end_before_a_stop_string(stories: tuple[Llama, PreTrainedTokenizerBase], method: str) -> None:
    options: dict[str, Any] = {"prefix": PREFIX, "suffix": SUFFIX, "max_new_tokens": 40, "method": method}
    asked = [PHRASINGS, PHRASINGS[::-1]]
    out = anyorder.fuse(*stories, asked, stop=[".", "!"], **options)
    assert isinstance(out.text, list)
    for text, why in zip(out.text, out.stopped, strict=True):
        assert why == "stop"
        assert text
        assert not {".", "!"} & set(text)
    if method != "vote":
        beams = anyorder.fuse(*stories, asked, stop=".", num_beams=2, **options)
        assert set(beams.stopped) == {"stop"}


def test_the_end_token_is_no_text() -> None:
    tokenizer = byte_tokenizer()
    words: list[int] = tokenizer(" there was one")["input_ids"]
    model = chain(tokenizer, [*words, END])
    out = anyorder.fuse(model, tokenizer, ["Once", " a"], suffix=" there", max_new_tokens=9)
    assert out.text == " was one"
    assert out.stopped == ["end"]
    vote = anyorder.fuse(model, tokenizer, ["Once", " a"], suffix=" there", max_new_tokens=9, method="vote")
    assert (vote.text, vote.stopped) == (" was one", ["end"])


def test_pieces_are_the_text_that_fuse_gives(stories: tuple[Llama, PreTrainedTokenizerBase]) -> None:
    options: dict[str, Any] = {"prefix": PREFIX, "suffix": SUFFIX, "max_new_tokens": 20, "stop": ["park", "."]}
    for method in METHODS[:-1]:
        stream = anyorder.stream_fused(*stories, PHRASINGS, method=method, **options)
        pieces = list(stream)
        out = anyorder.fuse(*stories, PHRASINGS, method=method, **options)
        assert len(pieces) > 3
        assert "".join(pieces) == out.text == stream.output.text
        assert stream.output.token_ids == out.token_ids
        assert stream.output.passes == out.passes


def test_keeping_the_best_is_asking_with_those_alone(stories: tuple[Llama, PreTrainedTokenizerBase]) -> None:
    for positions in ("shared", "running", "right", "spread"):
        options: dict[str, Any] = {
            "prefix": PREFIX, "suffix": SUFFIX, "max_new_tokens": 12, "positions": positions
        }  # fmt: skip
        kept = anyorder.fuse(*stories, PHRASINGS, weights=[1.0, 3.0, 2.0], keep=2, **options)
        alone = anyorder.fuse(*stories, PHRASINGS[1:], weights=[3.0, 2.0], **options)
        assert kept.sequences == alone.sequences
        assert kept.trace.events == alone.trace.events


@pytest.mark.parametrize("weights", ["confidence", "likelihood"])
def test_weights_by_name(stories: tuple[Llama, PreTrainedTokenizerBase], weights: str) -> None:
    """A batch is one by one; and keeping works where a method has no weights."""
    options: dict[str, Any] = {"prefix": PREFIX, "suffix": SUFFIX, "max_new_tokens": 8, "weights": weights}
    asked = [PHRASINGS, PHRASINGS[:2]]
    batch = anyorder.fuse(*stories, asked, **options)
    assert [anyorder.fuse(*stories, one, **options).text for one in asked] == batch.text
    one = anyorder.fuse(*stories, PHRASINGS, method="max", keep=1, **options)
    kept = anyorder.fuse(*stories, PHRASINGS, keep=1, **options)
    assert one.text == kept.text


def test_attention_shares_have_the_form_of_the_phrasings(stories: tuple[Llama, PreTrainedTokenizerBase]) -> None:
    """One number for each phrasing that was given; those that were not kept got none."""
    options: dict[str, Any] = {"prefix": PREFIX, "suffix": SUFFIX, "max_new_tokens": 5, "attention_share": True}
    asked = [PHRASINGS, PHRASINGS[:2]]
    batch = anyorder.fuse(*stories, asked, batch_size=1, **options).attention_share
    assert [len(shares) for shares in batch] == [3, 2]  # type: ignore[union-attr, arg-type]
    for one, shares in zip(asked, batch, strict=True):  # type: ignore[arg-type]
        assert anyorder.fuse(*stories, one, **options).attention_share == pytest.approx(shares)
    kept = anyorder.fuse(*stories, PHRASINGS, weights=[1, 3, 2], keep=2, **options).attention_share
    alone = anyorder.fuse(*stories, PHRASINGS[1:], weights=[3, 2], **options).attention_share
    assert kept == pytest.approx([0.0, *alone])  # type: ignore[misc]
    assert anyorder.fuse(*stories, PHRASINGS, max_new_tokens=1).attention_share is None
    with pytest.raises(UserError, match="attention_share is True with the method 'max': leave it out, or take 'att"):
        anyorder.fuse(*stories, PHRASINGS, method="max", attention_share=True)


def test_names_are_the_contract() -> None:
    fuse, stream = (inspect.signature(function).parameters for function in (anyorder.fuse, anyorder.stream_fused))
    assert list(fuse)[:8] == [
        "model", "tokenizer", "phrasings", "prefix", "suffix", "positions", "correction", "method"
    ]  # fmt: skip
    assert [fuse[name].default for name in ("prefix", "suffix", "positions", "correction", "method")] == [
        "", "", "shared", "1/N", "attention"
    ]  # fmt: skip
    assert set(fuse) - set(stream) == {"num_beams", "batch_size", "attention_share"}
    assert {name: parameter.default for name, parameter in stream.items()} == {
        name: fuse[name].default for name in stream
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "avg"}, "method is 'avg': choose one of attention"),
        ({"num_beams": 0}, "num_beams is 0: give a whole number above 0"),
        ({"batch_size": 0}, "batch_size is 0: give a whole number above 0"),
        ({"num_beams": 2, "temperature": 0.5}, "temperature is 0.5 beside num_beams 2, but beam search draws nothing"),
        ({"num_beams": 2, "method": "vote"}, "num_beams is 2 with the method 'vote'"),
        ({"keep": 1}, "keep is 1 without weights"),
        ({"weights": "length"}, "weights is 'length': give numbers, or one of"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"stop": ""}, "stop is '': give strings"),
        ({"top_p": 0.9}, "top_p is 0.9 at temperature 0, where the most probable token is taken: give a temperature"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    model = net(vocab_size=len(byte_tokenizer()))
    with pytest.raises(UserError, match=message):
        anyorder.fuse(model, byte_tokenizer(), ["Once", " a"], suffix=" was", **options)


@pytest.mark.parametrize("order", ["random", "groups:3", "confidence", "diffusion"])
def test_pieces_of_other_ways_are_the_text_that_fuse_gives(order: str) -> None:
    tokenizer = byte_tokenizer()
    model = network(vocab_size=len(tokenizer), modes=(LEFT_TO_RIGHT, ANY_ORDER, diffusion(9)), eos_token_ids=())
    options: dict[str, Any] = {"suffix": " was", "order": order, "max_new_tokens": 8, "temperature": 1.0, "seed": 5}
    for stop in (None, "e"):
        stream = anyorder.stream_fused(model, tokenizer, ["Once", " a"], stop=stop, **options)
        pieces = list(stream)
        out = anyorder.fuse(model, tokenizer, ["Once", " a"], stop=stop, **options)
        assert "".join(pieces) == out.text == stream.output.text
        assert (stream.output.token_ids, stream.output.sequences) == (out.token_ids, out.sequences)
        assert stream.output.passes == out.passes
    for name, value in (("method", "max"), ("store", "folder"), ("weights", "confidence")):
        with pytest.raises(UserError, match=rf"^{name} '{value}' is for answers from left to right"):
            anyorder.stream_fused(model, tokenizer, ["Once", " a"], **options | {name: value})


def test_what_cannot_be_streamed() -> None:
    model = net(vocab_size=len(byte_tokenizer()))
    with pytest.raises(UserError, match="phrasings are of 2 questions: give those of one, or use fuse"):
        anyorder.stream_fused(model, byte_tokenizer(), [["Once"], ["a"]])
    with pytest.raises(UserError, match="tokenizer is None: give the tokenizer, which makes the text"):
        anyorder.stream_fused(model, None, [[1], [2]])
    with pytest.raises(UserError, match="method is 'vote', but only whole answers can be counted: use fuse"):
        anyorder.stream_fused(model, byte_tokenizer(), ["Once"], method="vote")
