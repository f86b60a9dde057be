"""Values at the public border: refused by name, converted where they say the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anyorder
from anyorder.data import DataConfig, prepare
from anyorder.decoding.diffusion.commit import Threshold
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.objectives import BlockDiffusion, MaskedDiffusion
from anyorder.training.settings import Run, Training
from anyorder.utils.annotations import check_fields, checked, fitted, shown
from tests.model.networks import network


@dataclass(frozen=True, kw_only=True)
class Record:
    number: float = 0.0
    whole: int | None = None
    file: Path | None = None
    place: str | Path | None = None
    ids: tuple[int, ...] = ()
    texts: str | Sequence[str] | None = None
    truth: bool = False
    mode: bool | Literal["auto"] = "auto"
    name: Literal["a", "b"] = "a"
    counts: Mapping[str, int] | None = None
    call: Callable[[int], None] | None = None
    dtype: str | torch.dtype = "auto"
    weights: Sequence[Sequence[float]] | None = None
    foreign: NotImportedHere | None = None  # type: ignore[name-defined]  # noqa: F821

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("number", [1], "number is [1], a list: give a number."),
        ("number", "0.5", "number is '0.5': give a number."),
        ("number", True, "number is True, a bool: give a number."),
        ("number", None, "number is None: give a number."),
        ("number", float("nan"), "number is nan: give a finite number."),
        ("number", 10**400, f"number is {str(10**400)[:100]}...: give a smaller number."),
        ("number", Record, "a class: give a number."),
        ("number", print, "builtin_function_or_method: give a number."),
        ("whole", 1.0, "whole is 1.0: give a whole number or None."),
        ("whole", 10**30, f"whole is {10**30}: give a smaller number."),
        pytest.param("whole", 10**5000, "whole is an int that cannot be shown: give a smaller number.", id="digits"),
        ("whole", torch.zeros(2), "whole is Tensor of shape [2]: give a whole number or None."),
        ("file", 3, "file is 3: give a path or None."),
        ("file", "a\0b", "file is 'a\\x00b': give a path without the character NUL."),
        ("place", 4, "place is 4: give a path or None."),
        ("place", "a\0b", "give a path without the character NUL."),
        ("ids", [1, "2"], "ids is [1, '2'], a list: give a list of whole numbers."),
        ("ids", 3, "ids is 3: give a list of whole numbers."),
        ("texts", 3, "texts is 3: give a string, a list of strings, or None."),
        ("texts", {"a": 1}, "texts is {'a': 1}, a dict: give a string, a list of strings, or None."),
        ("truth", "False", "truth is 'False': give True or False."),
        ("mode", "never", "mode is 'never': give True or False or 'auto'."),
        ("name", "c", "name is 'c': give one of a, b."),
        ("name", ["a"], "name is ['a'], a list: give one of a, b."),
        ("counts", {1: 2}, "counts is {1: 2}, a dict: give a dict from strings to whole numbers or None."),
        ("call", [print], "a list: give a function or None."),
        ("dtype", 32, "dtype is 32: give a string or an object of the class dtype."),
        ("weights", [[1.0, "a"]], "a list: give a list of lists of numbers or None."),
    ],
)
def test_values_of_another_kind_are_refused_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        Record(**{field: value})
    assert message in str(error.value)
    assert str(error.value).startswith(f"{field} is ")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("whole", np.int64(3), 3),
        ("whole", torch.tensor(3), 3),
        ("number", np.float32(0.5), 0.5),
        ("number", 2, 2),
        ("number", torch.tensor(0.5), 0.5),
        ("truth", np.bool_(True), True),
        ("file", "a", Path("a")),
        ("place", "a", "a"),
        ("ids", [1, 2], (1, 2)),
        ("ids", np.array([1, 2]), (1, 2)),
        ("ids", range(2), (0, 1)),
        ("weights", [(1, 2)], [(1, 2)]),
        ("weights", np.array([[1.0, 2.0]]), [[1.0, 2.0]]),
        ("weights", torch.tensor([[1, 2]]), [[1, 2]]),
        ("dtype", torch.float32, torch.float32),
        ("foreign", 3, 3),
    ],
)
def test_what_says_the_same_is_taken(field: str, value: Any, expected: Any) -> None:
    found = getattr(Record(**{field: value}), field)
    assert found == expected
    assert type(found) is type(expected)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(value=JSON, field=st.sampled_from(["number", "whole", "ids", "texts", "truth", "mode", "counts", "call"]))
def test_a_field_has_its_kind_or_the_record_is_refused(value: Any, field: str) -> None:
    holds = {
        "number": type(value) in (int, float) and abs(value) <= 1.8e308,
        "whole": value is None or (type(value) is int and abs(value) < 2**64),
        "ids": isinstance(value, list) and all(type(item) is int and abs(item) < 2**64 for item in value),
        "texts": value is None
        or isinstance(value, str)
        or (isinstance(value, list) and all(isinstance(item, str) for item in value)),
        "truth": isinstance(value, bool),
        "mode": isinstance(value, bool) or value == "auto",
        "counts": value is None or (isinstance(value, dict) and all(type(v) is int for v in value.values())),
        "call": value is None,
    }[field]
    if holds:
        Record(**{field: value})
    else:
        with pytest.raises(UserError, match=re.escape(f"{field} is ")):
            Record(**{field: value})


@checked("text")
def function(text: Any, count: int, *more: str, name: Literal["a"] = "a") -> tuple[Any, ...]:
    """A function."""
    return text, count, more, name


def test_functions_are_checked_and_stay_what_they_are() -> None:
    assert function([1], np.int64(2), "x", name="a") == ([1], 2, ("x",), "a")
    assert function.__name__ == "function"
    assert function.__doc__ == "A function."
    for call in (lambda: function("", "2"), lambda: function("", count="2")):
        with pytest.raises(UserError, match=r"^count is '2': give a whole number\.$"):
            call()  # type: ignore[no-untyped-call]
    with pytest.raises(TypeError, match="unexpected keyword"):
        function("", 2, size=3)  # type: ignore[call-arg]
    with pytest.raises(UserError, match="count is"):
        fitted(function, {"count": 1.5})


class Wild:
    def __repr__(self) -> str:
        raise RuntimeError


def test_values_are_shown_whatever_they_are() -> None:
    assert shown(Wild()) == "a Wild that cannot be shown"
    assert shown("x" * 1000) == "'" + "x" * 99 + "..."


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(temperature=[1]), "temperature is [1], a list: give a number."),
        (lambda: Sampling(top_k="5"), "top_k is '5': give a whole number or None."),
        (lambda: DiffusionSampler(steps=[4]), "steps of the sampler is [4], a list: give a whole number or None."),
        (lambda: DiffusionSampler(commit=Threshold), "a class: give an object of the class Commit."),
        (lambda: DiffusionSampler.preset("llada", threshold="0.9"), "above is '0.9': give a number."),
        (lambda: Training(steps="3"), "steps is '3': give a whole number or None."),
        (lambda: Run(data=3, output="x"), "data is 3: give a path."),
        (lambda: Run(data="x", output="x", shares="a=1"), "shares is 'a=1': give a list of strings."),
        (lambda: MaskedDiffusion(mask_token_id="5"), "mask_token_id is '5': give a whole number."),
        (lambda: BlockDiffusion(mask_token_id=5, block_length=[4]), "block_length is [4], a list: give a whole number"),
        (lambda: anyorder.load(3), "path is 3: give a path."),
        (lambda: anyorder.load("x", dtype=16), "dtype is 16: give a string or an object of the class dtype."),
        (
            lambda: anyorder.generate("x", None, "x"),
            "model is 'x': give the network, not its place: model, tokenizer = anyorder.load('x').",
        ),
        (lambda: anyorder.save(network(), None, ["x"]), "path is ['x'], a list: give a path."),
        (
            lambda: anyorder.generate(network(), None, "x", temperature=[1]),
            "temperature is [1], a list: give a number.",
        ),
        (lambda: anyorder.generate(network(), None, "x", watch=[print]), "a list: give a function or None."),
        (lambda: anyorder.stream(network(), None, "x", seed="0"), "seed is '0': give a whole number."),
        (lambda: anyorder.fuse(network(), None, ["x"], store=3), "store is 3: give a path or None."),
        (lambda: anyorder.GroupPlan.sequential(5.5), "lengths is 5.5: give a whole number or a list of whole numbers."),
        (lambda: anyorder.GroupPlan.spaced(4, stride="2"), "stride is '2': give a whole number."),
        (lambda: anyorder.GroupPlan.random(4, seed=[0]), "seed is [0], a list: give a whole number."),
        (lambda: anyorder.GroupPlan.sequential(4, given=5), "given is 5: give a list of booleans for each text."),
        (lambda: anyorder.GroupPlan.from_group_ids(5), "group_ids is 5: give"),
        (lambda: anyorder.GroupPlan.ordered("random", 4), "order is 'random': give an object of the class Order."),
        (lambda: anyorder.convert("x", 3), "target is 3: give a path."),
        (lambda: anyorder.convert("x", "y", kv_heads="2"), "kv_heads is '2': give a whole number or None."),
        (lambda: prepare(3, None, DataConfig(length=5)), "source is 3: give a path."),
        (lambda: prepare("x", None, 5), "config is 5: give an object of the class DataConfig."),
        (lambda: DataConfig(length="5"), "length is '5': give a whole number."),
        (lambda: anyorder.create_chunked_attention_mask("3", 2), "is '3': give a"),
    ],
)
def test_the_public_border(make: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("\ud800", "a path without halves of characters (surrogates)"),
        ("a" * 256, "a path whose names have at most 255 bytes"),
        ("x/" + "é" * 128 + "/y", "a path whose names have at most 255 bytes"),
    ],
)
def test_paths_that_no_file_can_have(path: str, remedy: str) -> None:
    @checked()
    def read(place: Path | str) -> None:
        pass

    with pytest.raises(UserError, match=re.escape(f": give {remedy}.")):
        read(path)
    read("a" * 255)


def test_nothing_stands_for_a_record() -> None:
    with pytest.raises(UserError, match=r"^plan is <list_iterator .*: give an object of the class GroupPlan"):
        anyorder.log_prob(network(), [1, 2], iter([1]))  # type: ignore[arg-type]


def test_whole_numbers_beyond_those_of_pytorch_are_numbers() -> None:
    @checked()
    def read(value: float) -> float:
        return value

    assert isinstance(read(10**30), float)
    assert isinstance(read(3), int)
