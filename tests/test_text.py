"""Ids that become text while they are written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from anyorder.text import UNREADABLE, Continuation, Speller
from tests.writers import BOS, END, TEXT, byte_tokenizer, sentencepiece_tokenizer

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
    speller = Speller(tokenizer, ids[:cut])
    read = "".join(speller.read([token_id]) for token_id in ids[cut:])
    assert read == Speller(tokenizer, ids[:cut]).read(ids[cut:])
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
        assert not growing.read(written[:count])
        at_once = Continuation(tokenizer, prompt)
        at_once.read(written[:count])
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
        stopped = grown.read(ids[cut : cut + count + 1])
        pieces.append(grown.piece(last=stopped))
        if stopped:
            break
        rest = grown.text[len("".join(pieces)) :]
        assert rest == "" or any(stop.startswith(rest) for stop in stops), "nothing is held back without a reason"
    pieces.append(grown.piece(last=True))
    full = Speller(tokenizer, ids[:cut]).read(ids[cut:])
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
        stopped = text.read(ids[:count])
        pieces.append(text.piece(last=stopped))
    assert pieces == ["", "", "abc", "", "", ""]
    assert (text.text, stopped) == ("abc", True)


def test_special_tokens_are_no_text_and_stop_by_their_names() -> None:
    for tokenizer in MAKERS.values():
        ids = tokenizer(TEXT)["input_ids"]
        text = Continuation(tokenizer, ids[:2], ["</s>"])
        assert not text.read(ids[2:4])
        assert text.read([*ids[2:4], END])
        assert TEXT.startswith(whole(tokenizer, ids[:2]) + text.text)
