"""What decoders refuse, in the same words; each of them has tests of its own that it does."""

from __future__ import annotations

from typing import Any

import pytest

from anyorder.decoding.checks import (
    check_max_new_tokens,
    check_room,
    check_sample_ids,
    check_token_ids,
)
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig


@pytest.mark.parametrize("number", [0, -1, 2.0, True, None])
def test_a_number_of_tokens_is_a_whole_one_above_0(number: Any) -> None:
    check_max_new_tokens(1)
    with pytest.raises(UserError, match=f"^max_new_tokens is {number!r}: give a whole number above 0.$"):
        check_max_new_tokens(number)


def test_every_prompt_has_a_number_of_its_own() -> None:
    check_sample_ids([7, 3], 2)
    with pytest.raises(UserError, match=r"^there are 0 prompts: give at least one\.$"):
        check_sample_ids([], 0)
    for rows in ([4], [4, 4], [4, 5, 6]):
        with pytest.raises(
            UserError, match=r"^sample_ids is \[4.*\] for 2 prompts: give each prompt a number of its own\.$"
        ):
            check_sample_ids(rows, 2)


def test_tokens_are_of_the_vocabulary(tiny_config: ModelConfig) -> None:
    last = tiny_config.vocab_size - 1
    check_token_ids(tiny_config, [0, last], "text 2")
    for token_id in (-1, last + 1):
        remedy = f"give ids from 0 to {last}, from the tokenizer of this network"
        with pytest.raises(UserError, match=f"^text 2 has the token id {token_id}: {remedy}.$"):
            check_token_ids(tiny_config, [0, token_id], "text 2")


def test_a_prompt_leaves_room(tiny_config: ModelConfig) -> None:
    longest = tiny_config.context_length - 1
    check_room(tiny_config, 3, longest)
    with pytest.raises(UserError, match=f"^prompt 3 has {longest + 1} tokens, .* shorten it to at most {longest}, "):
        check_room(tiny_config, 3, longest + 1)
