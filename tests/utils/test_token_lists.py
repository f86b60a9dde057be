import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from anyorder.errors import UserError
from anyorder.utils.token_lists import token_lists

ROWS = [[0, 0, 5, 6], [7, 8, 9, 4]]
MASK = [[0, 0, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("as_given", [list, torch.tensor, np.array], ids=["lists", "tensor", "array"])
def test_leaves_out_the_padding_of_what_a_tokenizer_returns(as_given):
    encoded = {"input_ids": as_given(ROWS), "attention_mask": as_given(MASK)}
    for given in (encoded, BatchEncoding(encoded)):
        assert token_lists(given) == [[5, 6], [7, 8, 9, 4]]
    assert token_lists(as_given(ROWS)) == ROWS  # where nothing says what is padding
    assert token_lists({"input_ids": as_given(ROWS[0]), "attention_mask": as_given(MASK[0])}) == [[5, 6]]
    assert token_lists(as_given(ROWS[0])) == [ROWS[0]]


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ({"ids": ROWS}, "ids has ['ids'] and no input_ids: give token ids, or what a tokenizer returns."),
        (
            {"input_ids": ROWS, "attention_mask": MASK[:1]},
            "attention_mask is [[0, 0, 1, 1]]: give a number for each of the input_ids.",
        ),
    ],
)
def test_refuses_what_is_no_encoding(encoded, message):
    with pytest.raises(UserError) as error:
        token_lists(encoded)
    assert str(error.value) == message
