"""Configurations are checked when they are built; every message is read here."""

from __future__ import annotations

from typing import Any

import pytest

from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.rope import DynamicRotary, LinearRotary, Llama3Rotary, Rotary
from anyorder.visibility import chunks, sliding_window

FIELDS: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rotary": Rotary(theta=1e4),
}


def test_what_is_not_given_follows_from_the_rest() -> None:
    config = ModelConfig(**FIELDS)
    assert (config.num_key_value_heads, config.head_dim) == (4, 2)
    assert config.layers == (LayerKind(), LayerKind())
    assert config.replace(num_key_value_heads=1, head_dim=6).head_dim == 6
    assert ModelConfig(**FIELDS) == config
    assert hash(ModelConfig(**FIELDS)) == hash(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({name: value}, f"configuration field {name!r} is {value}: give a whole number above 0.")
            for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
            for value in (0, -1)
        ),
        (
            {"hidden_size": 10},
            "configuration field 'hidden_size' is 10: give a multiple of num_attention_heads, which is 4, "
            "or set head_dim.",
        ),
        *(
            (
                {"num_key_value_heads": value},
                f"configuration field 'num_key_value_heads' is {value}: "
                "give a divisor of num_attention_heads, which is 4.",
            )
            for value in (3, 8, -2)
        ),
        *(
            (
                {"head_dim": value},
                f"configuration field 'head_dim' is {value}: rotary embeddings turn pairs, so give an even number.",
            )
            for value in (3, -2)
        ),
        (
            {"hidden_size": 12},
            "configuration field 'head_dim' is 3: rotary embeddings turn pairs, so give an even number.",
        ),
        (
            {"attention": "MQA"},
            "configuration field 'attention' is 'MQA': the 4 key-value heads make it MHA.",
        ),
        (
            {"attention": "MHA", "num_key_value_heads": 2},
            "configuration field 'attention' is 'MHA': the 2 key-value heads make it GQA.",
        ),
        (
            {"qk_norm": "rms"},
            "configuration field 'qk_norm' is 'rms': give one of none, learned, learned-full-width, weightless.",
        ),
        (
            {"max_position_embeddings": 0},
            "configuration field 'max_position_embeddings' is 0: give the trained length in tokens.",
        ),
        (
            {"layers": (LayerKind(),)},
            f"configuration field 'layers' is {(LayerKind(),)!r}: give one kind for each of the 2 layers.",
        ),
    ],
)
def test_values_that_no_network_can_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        ModelConfig(**{**FIELDS, **changes})
    assert str(error.value) == message


@pytest.mark.parametrize(("kv_heads", "layout"), [(4, "MHA"), (2, "GQA"), (1, "MQA")])
def test_key_value_heads_make_the_layout(kv_heads: int, layout: str) -> None:
    config = ModelConfig(**FIELDS, num_key_value_heads=kv_heads)
    assert config.head_layout == layout
    assert config.replace(attention=layout) == config  # the heads say as much


def test_context_length() -> None:
    assert ModelConfig(**FIELDS, max_position_embeddings=64).context_length == 64
    stretched = DynamicRotary(theta=1e4, factor=4.0, original_max_position_embeddings=64)
    assert ModelConfig(**{**FIELDS, "rotary": stretched}, max_position_embeddings=64).context_length == 256


@pytest.mark.parametrize("name", ["window", "chunk"])
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_of_layers(name: str, size: int) -> None:
    with pytest.raises(UserError) as error:
        LayerKind(**{name: size})
    assert str(error.value) == f"layer field {name!r} is {size}: give a whole number above 0, or None."


def test_a_layer_has_a_window_or_chunks() -> None:
    with pytest.raises(UserError) as error:
        LayerKind(window=4, chunk=8)
    assert str(error.value) == "layer field 'chunk' is 8 beside the window 4: give one of them."


def test_narrowing() -> None:
    assert LayerKind().narrowing is None
    assert LayerKind(window=4).narrowing == sliding_window(4)
    assert LayerKind(chunk=4).narrowing == chunks(4)


LLAMA3: dict[str, Any] = {
    "theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("value", [0, -2.0, float("nan")])
def test_rotary_numbers_are_above_zero(value: float) -> None:
    for name in LLAMA3:
        with pytest.raises(UserError) as error:
            Llama3Rotary(**{**LLAMA3, name: value})
        assert str(error.value) == f"rotary field {name!r} is {value}: give a number above 0."
    with pytest.raises(UserError, match=r"^rotary field 'theta' is "):
        Rotary(theta=value)
    with pytest.raises(UserError, match=r"^rotary field 'factor' is "):
        LinearRotary(theta=1e4, factor=value)


def test_llama3_bands_are_in_order() -> None:
    with pytest.raises(UserError) as error:
        Llama3Rotary(**{**LLAMA3, "low_freq_factor": 5.0})
    assert (
        str(error.value)
        == "rotary field 'high_freq_factor' is 4.0: give a number not below low_freq_factor, which is 5.0."
    )
