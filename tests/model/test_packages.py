"""Packages of layers: what they are made for, what they compute, how they are kept, and made for real where slow."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anyorder
from anyorder.attention import Corrections
from anyorder.attention.mask import BiasTerm
from anyorder.checkpoints.adapt import adapt
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.errors import UserError
from anyorder.model import compiled, packages
from anyorder.model.compiled import with_packages
from anyorder.model.config import ModelConfig
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, blocks, diffusion
from anyorder.model.packages import CompiledLayers, Form, HeadFunction, LayerFunction
from anyorder.orders.plan import GroupPlan
from anyorder.visibility import causal, same
from tests.model.networks import network

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")

ALL = (LEFT_TO_RIGHT, ANY_ORDER, diffusion(30), blocks(30, 4))

ORDERS: dict[str, Any] = {
    "left-to-right": "left-to-right", "random": "random", "groups": "groups:3", "diffusion": "diffusion",
    "blocks": "blocks:4", "dual cache": DiffusionSampler(steps=8, block_length=4, cache="dual"),
}  # fmt: skip


def writer(layers: str = "plain", **changes: Any) -> Llama:
    """A small network of all modes, in float64."""
    return adapt(network(layers, **changes), ALL, seed=1).double().eval()


def layer(model: Llama, index: int = 0) -> Any:
    return model.model.layers[index]


class Eager:
    """In place of packages: the functions that they are made of, run as they are."""

    def __init__(self) -> None:
        self.forms: list[Form] = []
        self.heads = 0

    def find(self, name: str, make: Any) -> Any:
        """What a package would be made of."""
        if make.func is packages.make_head:
            self.heads += 1
            return HeadFunction(make.args[0])
        layer, _, form, _ = make.args
        self.forms.append(form)
        function = LayerFunction(layer, form)
        return lambda weights, rows_BRE, *of_view: function(weights, rows_BRE, of_view)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Eager:
    found = Eager()
    monkeypatch.setattr(CompiledLayers, "_find", lambda layers, *given: found.find(*given))
    return found


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder of packages."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packages, "_LOADED", {})
    return tmp_path / "anyorder" / "layers"


def prepared(model: Llama, making: bool = True) -> Llama:
    return model.with_compiled_layers(1, making=making)


# ---- what they compute ----


# Not "chunk", where masks that see nothing but masks are equally sure, so that rounding decides; "experts" has a chunk.
@pytest.mark.parametrize("layers", ["plain", "NoPE", "window", "own rotary", "experts"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("prompts", [[[3, 4]], [[3, 4], [5], [6, 7, 8]]], ids=["one", "three"])
def test_each_mode_writes_what_it_writes_without(
    layers: str, order: str, prompts: list[list[int]], eager: Eager
) -> None:
    model = writer(layers)
    options: dict[str, Any] = {"order": ORDERS[order], "max_new_tokens": 9}
    options |= {} if "diffusion" in order or "dual" in order else {"temperature": 1.0, "seed": 3}
    slow = anyorder.generate(model, None, prompts, compile=False, **options)
    fast = anyorder.generate(prepared(model), None, prompts, **options)
    assert fast.token_ids == slow.token_ids
    assert [one.log_prob for one in fast.trace.events] == pytest.approx([one.log_prob for one in slow.trace.events])
    assert eager.forms
    assert {form.single_sample for form in eager.forms} == {len(prompts) == 1}
    if order in ("left-to-right", "random"):
        assert bool(eager.heads) == (len(prompts) == 1)


@pytest.mark.parametrize("norm", ["learned", "learned-full-width", "weightless"])
def test_norms_and_biases(norm: str, eager: Eager) -> None:
    model = writer("plain", qk_norm=norm, attention_bias=True, attention_output_bias=True, mlp_bias=True)
    slow = anyorder.generate(model, None, [3, 4], max_new_tokens=9, compile=False)
    assert anyorder.generate(prepared(model), None, [3, 4], max_new_tokens=9).token_ids == slow.token_ids


def test_int8(eager: Eager) -> None:
    model = to_int8(writer().float())
    slow = anyorder.generate(model, None, [3, 4], max_new_tokens=9, compile=False)
    assert anyorder.generate(prepared(model), None, [3, 4], max_new_tokens=9).token_ids == slow.token_ids
    assert eager.forms


def test_fused_phrasings(eager: Eager) -> None:
    """Whose corrections are added to the scores."""
    model = writer()
    answers = [
        anyorder.fuse(one, None, [[3, 4], [5, 6, 7]], suffix=[8], correction="1/N", max_new_tokens=6).token_ids
        for one in (model, prepared(model))
    ]
    assert answers[0] == answers[1]
    assert any(form.biased for form in eager.forms)


def read(model: Llama, ids_BR: Tensor, **options: Any) -> Tensor:
    labels = {"position": torch.arange(ids_BR.shape[1]).expand_as(ids_BR)}
    cache = model.new_cache(len(ids_BR), 8)
    read_first = model.prepare(causal(), {"position": torch.zeros_like(ids_BR[:, :1])}, cache=cache)
    model.hidden(ids_BR[:, :1], read_first, cache)
    labels = {name: label[:, 1:2] for name, label in labels.items()}
    return model.hidden(ids_BR[:, 1:2], model.prepare(causal(), labels, cache=cache, **options), cache)


@torch.no_grad()
def test_rows_that_see_nothing_and_a_bias(eager: Eager) -> None:
    model = writer()
    ids = torch.tensor([[3, 4], [5, 6]])
    for options in ({"valid": torch.tensor([[True], [False]])}, {"corrections": one_bias()}):
        torch.testing.assert_close(read(prepared(model), ids, **options), read(model, ids, **options))
    assert [form.biased for form in eager.forms[-1:]] == [True]


def one_bias() -> Corrections:
    return Corrections(bias=(BiasTerm(same("position"), -0.7),))


# ---- what has none ----


@torch.no_grad()
def test_passes_that_packages_are_not_for(eager: Eager, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(writer())
    ids = torch.tensor([[3, 4]])
    with torch.enable_grad():
        read(model, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read(prepared(writer().float()), ids)
    with monkeypatch.context() as patch:
        patch.setattr(packages, "LARGEST_PAIRS", 0)
        read(model, ids)
    model.hidden(ids[:, :1], model.prepare(causal(), {"position": torch.zeros_like(ids[:, :1])}))  # a single key
    handle = layer(model, 1).self_attn.register_forward_pre_hook(lambda module, given: None)
    read(model, ids)
    handle.remove()
    views = model.prepare(causal(), {"position": torch.arange(4)[None]}, backend="eager")
    model.hidden(torch.tensor([[3, 4, 5, 6]]), views)
    assert not eager.forms
    read(model, ids)
    assert eager.forms


class Adapted(nn.Linear):
    """As adapters replace projections."""


def test_networks_that_packages_are_not_for() -> None:
    model = writer()
    layer(model).self_attn.q_proj = Adapted(16, 16)
    assert prepared(model) is model
    assert with_packages(model, making=False) is model
    some = writer()
    to_int8(layer(some, 1))
    assert found(some) is None  # layers of a kind that differ
    with pytest.raises(UserError) as error:
        with_packages(model, making=True)
    assert str(error.value) == (
        "compile is True, but layers of this network are not compiled on cpu with attention 'auto': leave it out."
    )


@pytest.mark.usefixtures("folder")
def test_making_outdoes_taking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "packages_kept", lambda: {"one"})
    taking = with_packages(writer(), making=False)
    making = with_packages(taking, making=True)
    assert [one.compiled_layers.making for one in (taking, making) if one.compiled_layers] == [False, True]
    assert with_packages(making, making=False) is making
    assert with_packages(taking, making=False) is taking


@pytest.mark.usefixtures("folder")
def test_who_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = writer()
    monkeypatch.setattr(compiled, "compiler_at_hand", lambda device: False)
    for order in ("random", "diffusion"):
        with pytest.raises(UserError, match=r"^compile is True, but no C\+\+ compiler is at hand: install g\+\+, or"):
            anyorder.generate(model, None, [3], order=order, compile=True)
    assert with_packages(model, making=False) is model  # nothing is kept
    model.backend = "eager"
    monkeypatch.setattr(compiled, "compiler_at_hand", lambda device: True)
    with pytest.raises(UserError, match=r"not compiled on cpu with attention 'eager': leave it out\.$"):
        anyorder.generate(model, None, [3], order="random", compile=True)


# ---- how they are kept ----


def make_empty(layer: Any, config: ModelConfig, form: Form, dtype: torch.dtype, folder: Path, threads: int) -> None:
    (folder / packages.FILE).write_bytes(b"code")


def fail(*arguments: object) -> None:
    raise RuntimeError("\nno space left")


class Kept:
    """In place of a loaded package: what it was loaded from."""

    def __init__(self, file: Path) -> None:
        self.code = file.read_bytes()


FORM = Form(
    single_sample=True, single_row=True, keys="all", cached=True, angles=2, scaled=False, biased=False
)  # fmt: skip


def found(model: Llama, making: bool = True, form: Form = FORM) -> Any:
    layers = prepared(model, making).compiled_layers
    assert layers is not None
    return layers._layer(model.config.layers[0], form, model.dtype)


def test_made_once_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(packages, "make", make_empty)
    monkeypatch.setattr(packages, "Package", Kept)
    assert found(writer(), making=False) is None
    assert not folder.exists()
    package = found(writer())
    assert package.code == b"code"
    monkeypatch.setattr(packages, "make", fail)
    assert found(writer("NoPE"), making=False) is package  # another network of this shape
    packages._LOADED.clear()
    assert found(writer(), making=False).code == b"code"
    assert caplog.messages == ["compiling a layer, once, about 20 s"]
    assert packages.packages_kept() == {place.name for place in folder.iterdir()}


def test_a_damaged_one_is_not_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packages, "make", make_empty)
    monkeypatch.setattr(packages, "Package", Kept)
    found(writer())
    packages._LOADED.clear()
    (kept,) = folder.iterdir()
    (kept / packages.FILE).write_bytes(b"cod3")
    caplog.clear()
    assert found(writer(), making=False) is None
    (told,) = caplog.messages
    assert told == (
        f"a compiled layer is not used, because package.pt2 has changed: compile it again, or remove the folder {kept}"
    )
    assert found(writer()).code == b"code"  # made anew


def test_one_that_cannot_be_loaded_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is none of a package: the loader itself says so."""
    monkeypatch.setattr(packages, "make", make_empty)
    assert found(writer()) is None
    assert "a compiled layer is not used, because" in caplog.text


@pytest.mark.usefixtures("folder")
def test_a_failing_compiler_is_no_failure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("make", "make_head"):
        monkeypatch.setattr(packages, name, fail)
    model = writer()
    slow = anyorder.generate(model, None, [3], order="random", max_new_tokens=4, compile=False)
    assert anyorder.generate(model, None, [3], order="random", max_new_tokens=4, compile=True).text == slow.text
    assert "writing goes on uncompiled: a layer cannot be compiled (no space left)" in caplog.messages
    assert packages.packages_kept() == set()


def names(model: Llama, monkeypatch: pytest.MonkeyPatch, form: Form = FORM, dtype: Any = torch.float64) -> str:
    """The name that is searched for the first layer."""
    layers = prepared(model).compiled_layers
    assert layers is not None
    monkeypatch.setattr(layers, "_find", lambda name, make: name)
    return str(layers._layer(model.config.layers[0], form, dtype))


def test_names_tell_what_cannot_be_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = writer()

    def name(model: Llama = model, **changes: Any) -> str:
        return names(model, monkeypatch, **changes)

    others = [name()]
    assert others == [name(writer(seed=2))] == [name(writer("window"))]
    others += [
        name(dtype=torch.float32),
        name(form=dataclasses.replace(FORM, single_row=False)),
        name(writer().float()),
        name(writer(attention_bias=True)),
        name(writer(rms_norm_eps=1e-6)),
        name(writer(qk_norm="weightless")),
        name(to_int8(writer())),
        packages.name_of(layer(model), {}, torch.float64, 1),
        packages.name_of(layer(model), {}, torch.float64, 2),
    ]
    packages._machine.cache_clear()
    monkeypatch.setattr(torch, "__version__", "0.0")
    others.append(name())
    packages._machine.cache_clear()
    assert len(set(others)) == len(others)


# ---- made for real ----


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("folder")
def test_made_ones_write_what_layers_write(caplog: pytest.LogCaptureFixture) -> None:
    """Rows of one text and of several, keys of all and of some, with and without a cache; sizes that change."""
    model = writer()
    runs: Sequence[tuple[Any, list[list[int]]]] = [
        ("random", [[3]]), ("diffusion", [[3, 4, 5]]), ("blocks:4", [[3, 4], [5]]),
    ]  # fmt: skip
    with caplog.at_level(logging.INFO, logger="anyorder"):
        for order, prompts in runs:
            for tokens in (9, 14):
                slow, fast = (
                    anyorder.generate(model, None, prompts, order=order, max_new_tokens=tokens, compile=how)
                    for how in (False, True)
                )
                assert fast.token_ids == slow.token_ids, order
                given = [[one.log_prob for one in out.trace.events] for out in (fast, slow)]
                assert given[0] == pytest.approx(given[1], abs=1e-9)
    assert "uncompiled" not in caplog.text
    assert caplog.text.count("compiled a layer in") == len(packages.packages_kept())


SECOND = """
import sys, anyorder, torch
torch.set_num_threads(1)
model, tokenizer = anyorder.load("stories", dtype="float32")
fast = anyorder.generate(model, tokenizer, "One day", max_new_tokens=40)
assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules
slow = anyorder.generate(model, tokenizer, "One day", max_new_tokens=40, compile=False)
assert fast.token_ids == slow.token_ids
from anyorder.model import packages
print(len(packages._LOADED))
"""


@pytest.mark.slow
@needs_compiler
def test_a_later_process_finds_them_and_needs_no_compiler(folder: Path) -> None:
    model, tokenizer = anyorder.load("stories", dtype="float32", device="cpu")
    anyorder.generate(prepared(model), tokenizer, "Once", max_new_tokens=3)
    environment = os.environ | {"XDG_CACHE_HOME": str(folder.parents[1])}
    done = subprocess.run([sys.executable, "-c", SECOND], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("2\n", 0), done.stderr  # a layer and the head
    assert len(packages.packages_kept()) == 2


def test_plans_are_orders_too(eager: Eager) -> None:
    model = writer()
    plan = GroupPlan.from_order([[0, 3, 1, 2, 4]])
    slow = anyorder.log_prob(model, [[3, 4, 5, 6, 7]], plan)
    with torch.no_grad():
        fast = anyorder.log_prob(prepared(model), [[3, 4, 5, 6, 7]], plan)
    assert float(fast.total) == pytest.approx(float(slow.total))
