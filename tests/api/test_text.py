"""Ids that become text while they are written."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from anyorder.api.prompts import prompts_with_gaps
from anyorder.api.text import UNREADABLE, Continuation, Gaps, IncrementalDetokenizer, filled
from anyorder.decoding.canvas import BLANK
from anyorder.errors import UserError
from tests.writers import BOS, END, TEXT, WORDS, byte_tokenizer, sentencepiece_tokenizer

MAKERS = {"sentencepiece": sentencepiece_tokenizer(), "bytes": byte_tokenizer()}
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="<▁")  # no special tokens, no marked spaces
TEXTS = st.text(st.sampled_from("aeo €ó語🙂\n\u0301") | LETTERS)


def whole(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@settings(deadline=None, max_examples=80)
@given(text=TEXTS, data=st.data())
@pytest.mark.parametrize("name", MAKERS)
def test_text_read_token_by_token_is_the_text(name: str, text: str, data: st.DataObject) -> None:
    tokenizer = MAKERS[name]
    ids = tokenizer(f"Once {text}.")["input_ids"]
    cut = data.draw(st.integers(1, len(ids)))
    detokenizer = IncrementalDetokenizer(tokenizer, ids[:cut])
    read = "".join(detokenizer.read([token_id]) for token_id in ids[cut:])
    assert read == IncrementalDetokenizer(tokenizer, ids[:cut]).read(ids[cut:])
    assert f"Once {text}.".endswith(read)
    if not whole(tokenizer, ids[:cut]).endswith(UNREADABLE):
        assert whole(tokenizer, ids[:cut]) + read == whole(tokenizer, ids)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
@pytest.mark.parametrize("name", MAKERS)
def test_any_tokens_read_alike_at_once_and_one_by_one(name: str, data: st.DataObject) -> None:
    """Also bytes that are no characters, special tokens, and spaces at odd places; the text only grows."""
    tokenizer = MAKERS[name]
    tokens = st.lists(st.integers(0, len(tokenizer) - 1) | st.sampled_from(tokenizer("€ó Once 語")["input_ids"]))
    prompt, written = data.draw(tokens), data.draw(tokens)
    growing, before = Continuation(tokenizer, prompt), ""
    for count in range(len(written) + 1):
        assert not growing.update(written[:count])
        at_once = Continuation(tokenizer, prompt)
        at_once.update(written[:count])
        assert at_once.text == growing.text
        assert growing.text.startswith(before)
        assert not growing.text.endswith(UNREADABLE)
        before = growing.text


STOPS = st.lists(st.text("aeo €\n", min_size=1, max_size=4), max_size=3)


@settings(deadline=None, max_examples=80)
@given(text=st.text("aeo €\n"), stops=STOPS, cut=st.integers(1, 5))
@pytest.mark.parametrize("name", MAKERS)
def test_pieces_joined_are_the_text_before_the_first_stop_string(
    name: str, text: str, stops: list[str], cut: int
) -> None:
    tokenizer = MAKERS[name]
    ids = tokenizer(f"Once{text}.")["input_ids"]
    grown = Continuation(tokenizer, ids[:cut], stops)
    pieces: list[str] = []
    stopped = False
    for count in range(len(ids[cut:])):
        stopped = grown.update(ids[cut : cut + count + 1])
        pieces.append(grown.piece(last=stopped))
        if stopped:
            break
        rest = grown.text[len("".join(pieces)) :]
        assert rest == "" or any(stop.startswith(rest) for stop in stops), "nothing is held back without a reason"
    pieces.append(grown.piece(last=True))
    full = IncrementalDetokenizer(tokenizer, ids[:cut]).read(ids[cut:])
    assert "".join(pieces) == grown.text
    assert not any(stop in grown.text for stop in stops)
    assert full.startswith(grown.text)
    assert stopped == any(stop in full for stop in stops)
    if stopped:
        assert any(full[len(grown.text) :].startswith(stop) for stop in stops)
    else:
        assert grown.text == full


def test_a_piece_waits_for_what_may_become_a_stop_string() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("abcabd")["input_ids"]
    text = Continuation(tokenizer, [BOS], ["abd", "zz"])
    pieces = []
    for count in range(1, len(ids) + 1):
        stopped = text.update(ids[:count])
        pieces.append(text.piece(last=stopped))
    assert pieces == ["", "", "abc", "", "", ""]
    assert (text.text, stopped) == ("abc", True)


def test_special_tokens_are_no_text_and_stop_by_their_names() -> None:
    for tokenizer in MAKERS.values():
        ids = tokenizer(TEXT)["input_ids"]
        text = Continuation(tokenizer, ids[:2], ["</s>"])
        assert not text.update(ids[2:4])
        assert text.update([*ids[2:4], END])
        assert TEXT.startswith(whole(tokenizer, ids[:2]) + text.text)


# ---- gaps -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(
    parts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), min_size=1, max_size=4),
    tokens=st.integers(1, 4),
)
@pytest.mark.parametrize("name", MAKERS)
def test_gaps_in_text_are_blanks_between_the_tokens_of_the_text(name: str, parts: list[list[str]], tokens: int) -> None:
    """What stands around a gap has the tokens that it has in the whole text, so that words can go in."""
    tokenizer = MAKERS[name]
    texts = [" ".join(part) for part in parts]
    [canvas], single = prompts_with_gaps(" [...] ".join(texts), tokenizer, BOS, new_tokens=tokens)
    assert single
    whole_ids = tokenizer(" ".join(texts))["input_ids"]
    assert [token_id for token_id in canvas if token_id != BLANK] == whole_ids
    assert canvas.count(BLANK) == tokens * (len(parts) - 1)


@pytest.mark.parametrize("name", MAKERS)
def test_a_gap_is_filled_with_words_and_their_spaces(name: str) -> None:
    tokenizer = MAKERS[name]
    [canvas], _ = prompts_with_gaps("Once upon [...] there [...] one", tokenizer, BOS, new_tokens=9, gap_tokens=2)
    written = [*tokenizer(" a time")["input_ids"][-2:], *tokenizer(" was there")["input_ids"][-2:]]
    gaps = Gaps(tokenizer, canvas)
    assert not gaps.update(written)
    assert gaps.text == " a time[...] was there"


@pytest.mark.parametrize("name", MAKERS)
def test_gaps_at_both_ends_and_in_words(name: str) -> None:
    tokenizer = MAKERS[name]
    [canvas], _ = prompts_with_gaps("[...] time", tokenizer, BOS, new_tokens=2)
    begins = tokenizer("")["input_ids"] or [BOS]
    assert canvas == [*begins, BLANK, BLANK, *tokenizer("a time")["input_ids"][len(tokenizer("a")["input_ids"]) :]]
    [canvas], _ = prompts_with_gaps("Once [...]", tokenizer, BOS, new_tokens=2)
    assert canvas == [*tokenizer("Once")["input_ids"], BLANK, BLANK]
    [canvas], _ = prompts_with_gaps("Once u[...]n", tokenizer, BOS, new_tokens=1)
    assert (
        tokenizer.decode([token_id for token_id in canvas if token_id != BLANK], skip_special_tokens=True) == "Once un"
    )
    assert canvas[-2] == BLANK
    [canvas], _ = prompts_with_gaps("Once[...][...]", tokenizer, BOS, new_tokens=2)
    assert canvas[-5:].count(BLANK) == 4
    assert prompts_with_gaps("Once [...] [...] a", tokenizer, BOS, new_tokens=2)[0][0].count(BLANK) == 4


def test_prompts_of_every_kind_become_canvases() -> None:
    tokenizer = MAKERS["bytes"]
    canvases, single = prompts_with_gaps([[5, BLANK, 6], [7]], None, None, new_tokens=2)
    assert (canvases, single) == ([[5, BLANK, 6], [7]], False)
    assert prompts_with_gaps(torch.tensor([5, BLANK]), None, None, new_tokens=9) == ([[5, BLANK]], True)
    canvases, single = prompts_with_gaps(["Once [...] a", "Once"], tokenizer, BOS, new_tokens=3, gap_tokens=1)
    assert [canvas.count(BLANK) for canvas in canvases] == [1, 0]
    assert not single


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (
            "Once",
            {"gap_tokens": 2},
            r"^gap_tokens is 2, but no prompt has a gap: write \[\.\.\.\] where tokens are missing\.",
        ),
        ([1, 2], {"gap_tokens": 2}, r"^gap_tokens is 2, but no prompt has a gap"),
        ("Once [...]", {"gap_tokens": 0}, r"^gap_tokens is 0: give a whole number above 0\."),
        ("Once", {"new_tokens": -1}, r"^max_new_tokens is -1: give a whole number above 0\."),
        (7, {}, "^the prompt is 7: give a string"),
        ([], {}, r"^the prompt is \[\]: give a string"),
    ],
)
def test_prompts_that_are_no_canvases(prompt: object, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prompts_with_gaps(prompt, MAKERS["bytes"], BOS, **{"new_tokens": 1} | options)


@pytest.mark.parametrize(
    ("prompt", "parts", "whole"),
    [
        ("Once upon [...] time", [" a"], "Once upon a time"),
        ("[...] upon a  [...]", ["Once", " time"], "Once upon a time"),
        ("Once u[...]n", ["po"], "Once upon"),
        ("Once [...]  [...][...] time", [" [...] a"], "Once [...] a time"),
    ],
)
def test_prompts_read_whole_when_their_gaps_are_filled(prompt: str, parts: list[str], whole: str) -> None:
    assert filled(prompt, parts) == whole


def word_pieces() -> PreTrainedTokenizerBase:
    """As BERT's: "##" goes on with a word, and spaces are put between the others."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[UNK]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    made.train_from_iterator(["hello world, don't stop believing the unbelievable 12 34.5 (a-b) 日本 é"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[SEP]", mask_token="[MASK]")


def test_word_pieces_read_token_by_token_are_the_text() -> None:
    tokenizer, draw = word_pieces(), random.Random(0)
    for _ in range(100):
        before, after = ([draw.randrange(3, len(tokenizer)) for _ in range(draw.randrange(9))] for _ in range(2))
        detokenizer = IncrementalDetokenizer(tokenizer, before)
        pieces = [detokenizer.read([token_id]) for token_id in after]
        assert whole(tokenizer, before) + "".join(pieces) == whole(tokenizer, [*before, *after])
