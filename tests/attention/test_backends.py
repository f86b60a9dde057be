"""Which backend a name stands for, and how the others are refused."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch

from anyorder.attention import BACKENDS, TRANSFORMERS_NAMES, Request, compile_mask, resolve_backend
from anyorder.attention.flex import FlexMask
from anyorder.errors import UserError
from anyorder.visibility import causal


@pytest.mark.parametrize("name", ["eager", "sdpa", "flex"])
def test_a_name_of_ours(name: str) -> None:
    assert resolve_backend(name, "cpu", torch.float32).name == name


@pytest.mark.parametrize(("theirs", "ours"), [("eager", "eager"), ("sdpa", "sdpa"), ("flex_attention", "flex")])
def test_a_name_of_transformers(theirs: str, ours: str) -> None:
    choice = resolve_backend(theirs, torch.device("cpu"))
    assert (choice.name, choice.reason) == (ours, "asked for by name")


def test_transformers_flash_attention_2_is_flash() -> None:
    with pytest.raises(UserError) as error:
        resolve_backend("flash_attention_2", "cpu")
    assert str(error.value) == "attention 'flash' runs on cuda, not on cpu: choose 'sdpa' or 'auto'."


def test_every_mapped_name_is_a_backend() -> None:
    assert set(TRANSFORMERS_NAMES.values()) <= set(BACKENDS)


@pytest.mark.parametrize("name", ["flash_attention_3", "SDPA", "paged|sdpa", ""])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(UserError) as error:
        resolve_backend(name, "cpu")
    known = "auto, eager, sdpa, flex, flash, flash_attention_2, flex_attention"
    assert str(error.value) == f"attention is {name!r}: choose one of {known}."


def test_auto_says_what_it_chose(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="anyorder.attention"):
        choice = resolve_backend("auto", "cpu", torch.float64, backward=True)
    assert choice.name == "sdpa"
    assert choice.reason == "fused kernels with and without a mask, forwards and backwards, on cpu"
    assert caplog.messages == [f"attention: sdpa ({choice.reason})"]


def test_flex_has_no_backward_pass_on_a_cpu() -> None:
    rows = {"position": torch.arange(3).unsqueeze(0)}
    with pytest.raises(UserError) as error:
        compile_mask(Request(causal(), rows, rows), "flex")
    assert str(error.value) == (
        "attention 'flex' has no backward pass on cpu: use torch.no_grad(), or choose 'sdpa' or 'auto'."
    )
    with torch.no_grad():
        assert isinstance(compile_mask(Request(causal(), rows, rows), "flex"), FlexMask)


def test_flex_has_no_float64() -> None:
    with pytest.raises(UserError) as error:
        resolve_backend("flex_attention", "cpu", torch.float64)
    assert str(error.value) == (
        "attention 'flex' takes torch.float16 or torch.bfloat16 or torch.float32, not torch.float64: "
        "convert the model, or choose 'sdpa' or 'auto'."
    )


def test_flash_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        resolve_backend("flash", "cuda", torch.bfloat16)
    assert str(error.value) == (
        "attention 'flash' needs the package flash_attn: install it, or choose 'sdpa' or 'auto'."
    )


def test_a_device_without_kernels() -> None:
    for name in BACKENDS:
        with pytest.raises(UserError, match=r"runs on (cpu or )?cuda, not on mps: choose 'sdpa' or 'auto'\.$"):
            resolve_backend(name, "mps")
