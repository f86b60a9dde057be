"""Keywords that other libraries have are led to ours."""

from __future__ import annotations

import re
from typing import Any

import pytest

import anyorder
from anyorder.errors import UserError
from tests.model.networks import network

KEYWORDS = {
    "max_length": "the name is max_new_tokens.",
    "max_tokens": "the name is max_new_tokens.",
    "n_predict": "the name is max_new_tokens.",
    "num_return_sequences": "the name is num_samples.",
    "do_sample": "the name is temperature=1.0.",
    "temp": "the name is temperature.",
    "repeat_penalty": "the name is repetition_penalty.",
    "stop_strings": "the name is stop.",
    "random_seed": "the name is seed.",
    "objective": "the name is order.",
    "max_new_token": "did you mean max_new_tokens?",
}


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_generate_names_ours(keyword: str) -> None:
    options: dict[str, Any] = {keyword: 1}
    message = f"^{re.escape(f'generate has no {keyword}: {KEYWORDS[keyword]}')}$"
    with pytest.raises(UserError, match=message) as error:
        anyorder.generate(network(), None, [[1, 2]], **options)
    assert isinstance(error.value, TypeError)  # as Python raises


def test_load_names_ours() -> None:
    for keyword, ours in {"torch_dtype": "dtype", "device_map": "device", "attn_implementation": "attention"}.items():
        options: dict[str, Any] = {keyword: "auto"}
        with pytest.raises(UserError, match=rf"^load has no {keyword}: the name is {ours}\.$"):
            anyorder.load("nowhere", **options)


def test_what_no_library_has_stays_pythons_mistake() -> None:
    options: dict[str, Any] = {"colour": "red"}
    with pytest.raises(TypeError, match="unexpected keyword"):
        anyorder.generate(network(), None, [[1, 2]], **options)


def test_the_error_is_at_hand() -> None:
    assert anyorder.UserError is UserError
    assert "UserError" in anyorder.__all__


def test_an_order_by_the_name_of_its_objective() -> None:
    out = anyorder.generate(network(), None, [[1, 2]], order="autoregressive", max_new_tokens=2)
    assert out.token_ids == anyorder.generate(network(), None, [[1, 2]], max_new_tokens=2).token_ids
