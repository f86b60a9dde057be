"""Compiling: when it pays, what happens when it fails, and compiled for real where `slow` says so."""

from __future__ import annotations

import json
import logging
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.runtime.cache_dir_utils import cache_dir

from anyorder.checkpoints.weights import blank
from anyorder.decoding.left_to_right import bursts, decoder
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.model import compiled, step
from anyorder.model.compiled import CannotCompile, Compiled
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama
from tests.decoding.left_to_right.test_decoder import same
from tests.model.networks import EXPERTS, LAYERS
from tests.writers import write_left_to_right

KINDS = {
    "plain": (),
    "mixed layers": (LayerKind(window=3), LayerKind(chunk=4), LayerKind(rotary=False)),
    "experts": LAYERS["experts"],
}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def network(tiny_config: ModelConfig, kind: str) -> Llama:
    torch.manual_seed(0)
    experts = EXPERTS if kind == "experts" else None
    layers = {"layers": KINDS[kind], "num_hidden_layers": len(KINDS[kind]) or 2, "experts": experts}
    return Llama(tiny_config.replace(**layers)).double()


def after_ten(row: int, written: Sequence[int]) -> bool:
    return row == 1 and len(written) > 9


def test_without_a_compiler_it_stays_eager(tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    model = network(tiny_config, "plain")
    assert not compiled.pays_to_compile(step.one_token, model, 1, 10**9)
    with pytest.raises(UserError, match=r"^compile is True, but no C\+\+ compiler is at hand: install g\+\+, or give"):
        write_left_to_right(model, [[1]], max_new_tokens=2, compile=True)
    assert len(write_left_to_right(model, [[1]], max_new_tokens=2).written[0]) == 2


def test_compiling_needs_the_cache(tiny_config: ModelConfig) -> None:
    with pytest.raises(UserError, match=r"^compile is True and use_cache is False: leave one of them out"):
        write_left_to_right(network(tiny_config, "plain"), [[1]], max_new_tokens=2, compile=True, use_cache=False)


@needs_compiler
def test_it_is_compiled_unasked_only_where_that_pays(tiny_config: ModelConfig) -> None:
    model = network(tiny_config, "plain")
    for texts in (1, 3):
        enough = compiled.break_even(model, texts)
        assert not compiled.pays_to_compile(step.one_token, model, texts, enough - 1)
        assert compiled.pays_to_compile(step.one_token, model, texts, enough)
    model.backend = "eager"
    assert not compiled.pays_to_compile(step.one_token, model, 1, 10**9)


def test_the_estimates_are_near_what_was_measured(project_root: Path) -> None:
    """Within a factor of two, since machines differ."""
    rows = json.loads((project_root / "benchmarks/results/compile-break-even.json").read_text())["rows"]
    single = [row for row in rows if row["texts"] == 1 and row["dtype"] == "float32"]
    assert len(single) >= 2
    networks = runpy.run_path(str(project_root / "benchmarks/compile_break_even.py"))["NETWORKS"]
    for row in single:
        model = blank(networks[row["network"]]).to_empty(device="cpu")
        assert row["break_even"] / 2 < compiled.break_even(model, 1) < 2 * row["break_even"], row


@needs_compiler
def test_where_the_process_has_compiled_it_already_it_is_used(tiny_config: ModelConfig) -> None:
    """For one text, which is compiled apart from several, and for the same function."""
    model, other = network(tiny_config, "plain"), network(tiny_config, "plain")
    once = compiled.compiled(step.one_token, model)
    assert not compiled.pays_to_compile(step.one_token, model, 1, 5)  # it was never called
    once.known.add(True)
    assert compiled.compiled(step.one_token, model) is once
    assert compiled.pays_to_compile(step.one_token, model, 1, 5)
    assert not compiled.pays_to_compile(step.one_token, model, 2, 5)
    assert not compiled.pays_to_compile(bursts.greedy_tokens, model, 1, 5)
    assert not compiled.pays_to_compile(step.one_token, other, 1, 5)


@needs_compiler
@pytest.mark.parametrize(
    ("options", "function"),
    [({}, "greedy_tokens"), ({"sampling": Sampling(temperature=1.0)}, "one_token"), ({"stop": after_ten}, "one_token")],
)
def test_what_decides_is_how_much_can_be_written(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], function: str
) -> None:
    """The trained length leaves room for 62 tokens, whatever max_new_tokens says."""
    asked = []

    def pays(called: Any, model: Llama, texts: int, steps: int) -> bool:
        asked.append((called.__name__, texts, steps))
        return False

    monkeypatch.setattr(decoder, "pays_to_compile", pays)
    model = network(tiny_config, "plain")
    next(left_to_right_steps_of(model, [[1, 2], [1, 2, 3]], max_new_tokens=10**6, **options))
    next(left_to_right_steps_of(model, [[1, 2]], max_new_tokens=7, **options))
    assert asked == [(function, 2, 62), (function, 1, 7)]


def left_to_right_steps_of(model: Llama, prompts: list[list[int]], **options: Any) -> Any:
    usual: dict[str, Any] = {"sampling": Sampling(), "stop": None, "use_cache": True, "sample_ids": range(len(prompts))}
    return decoder.left_to_right_steps(model, prompts, **(usual | options))


def test_it_says_so_once(
    tiny_config: ModelConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = Compiled(step.one_token, network(tiny_config, "plain"))
    monkeypatch.setattr(once, "compiled", fails(0, failed()))
    for texts in (1, 1, 2, 3):
        once(None, torch.zeros(texts))
    seconds = f"{2 * (compiled.COMPILE_SECONDS + 2 * compiled.COMPILE_SECONDS_A_LAYER):.0f}"
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"compiling, once, about {seconds} s, less if it is on disk already"
    ] * 2  # for one text, and for several


def test_the_compiler_is_imported_where_something_is_compiled() -> None:
    """It takes as long as the rest of the start."""
    code = "import sys, anyorder; anyorder.generate; print([name for name in sys.modules if name == 'torch._dynamo'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("kind", "prompts"),
    [
        ("plain", [[1, 2]]),
        ("mixed layers", [[1, 2, 3], [4], [5, 6, 7, 8, 9]]),
        ("experts", [[1, 2, 3], [4], [5, 6, 7, 8, 9]]),
    ],
)
def test_compiled_writes_what_eager_writes(
    tiny_config: ModelConfig, kind: str, prompts: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    """One row and several, beyond the smallest extent, greedy and drawn, with rows that end early."""
    model = network(tiny_config.replace(max_position_embeddings=400), kind)
    with caplog.at_level(logging.INFO, logger="anyorder"):
        for sampling, stop in ((Sampling(), None), (Sampling(temperature=1.0, seed=3), after_ten)):
            eager, compiled = (
                write_left_to_right(model, prompts, max_new_tokens=150, sampling=sampling, compile=how, stop=stop)
                for how in (False, True)
            )
            same(compiled, eager)
    told = [record.message for record in caplog.records if record.message.startswith("compiled ")]
    assert [line.split()[1] for line in told] == ["greedy_tokens", "one_token"]


@pytest.mark.slow
@needs_compiler
def test_compiled_int8_writes_what_eager_int8_writes(tiny_config: ModelConfig) -> None:
    model = to_int8(network(tiny_config, "plain").float())
    eager, compiled = (write_left_to_right(model, [[1]], max_new_tokens=40, compile=how) for how in (False, True))
    assert compiled.sequences == eager.sequences


def fails(times: int, error: Exception) -> Any:
    """Counts how often it is called, and fails the first times."""

    def function(model: Llama, first_B: torch.Tensor) -> torch.Tensor:
        function.calls += 1  # type: ignore[attr-defined]
        if function.calls <= times:  # type: ignore[attr-defined]
            raise error
        return first_B + 1

    function.calls = 0  # type: ignore[attr-defined]
    return function


def failed() -> BackendCompilerFailed:
    """What PyTorch raises where its compiler fails."""
    return BackendCompilerFailed(lambda: None, RuntimeError("file format not recognized"), None)


def test_broken_files_are_passed_by(
    tiny_config: ModelConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt is made in a folder of its own."""
    folders = []
    once = Compiled(step.one_token, network(tiny_config, "plain"))
    function = fails(1, failed())

    def called(*arguments: Any) -> torch.Tensor:
        folders.append(cache_dir())
        return function(*arguments)

    monkeypatch.setattr(once, "compiled", called)
    with caplog.at_level(logging.WARNING, logger="anyorder"):
        assert int(once(None, torch.tensor([1]))) == 2
    assert folders[0] == cache_dir() != folders[1]
    assert f"is compiled anew; if this comes again, remove {cache_dir()}" in caplog.text
    assert "file format not recognized" in caplog.text


@pytest.mark.parametrize("times", [1, 2])
def test_writing_goes_on_uncompiled(
    tiny_config: ModelConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """First several tokens a call are given up, then, if that fails too, the compiled step."""
    model = network(tiny_config, "plain")
    expected = write_left_to_right(model, [[1, 2], [3]], max_new_tokens=40, compile=False)
    refused: list[str] = []

    def perhaps(function: Any, model: Llama) -> Any:
        def call(*arguments: Any) -> Any:
            if len(set(refused) | {function.__name__}) <= times:
                refused.append(function.__name__)
                raise CannotCompile("no such operator")
            return function(*arguments)

        return call

    for module in (decoder, bursts):
        monkeypatch.setattr(module, "compiled", perhaps)
    with caplog.at_level(logging.WARNING, logger="anyorder"):
        same(write_left_to_right(model, [[1, 2], [3]], max_new_tokens=40, compile=True), expected)
    assert refused == ["greedy_tokens", "one_token"][:times]
    assert "tokens are written one by one: several cannot be compiled (no such operator)" in caplog.text
    assert ("writing goes on uncompiled" in caplog.text) == (times == 2)
