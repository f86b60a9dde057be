"""`anyorder generate` with other ways of writing, and one prompt after another."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

import anyorder
from anyorder import DiffusionSampler
from anyorder.cli import main
from anyorder.model.llama import Llama
from anyorder.ways import LEFT_TO_RIGHT, diffusion
from tests.cli.test_main import mistake

MASK = 279


@pytest.fixture(scope="session")
def diffusing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `folder`, said to write by diffusion too."""
    model, tokenizer = anyorder.load(folder)
    network = Llama(model.config.replace(ways=(LEFT_TO_RIGHT, diffusion(MASK)), default_way="diffusion"))
    network.load_state_dict(model.state_dict())
    path = tmp_path_factory.mktemp("diffusing") / "tiny"
    anyorder.save(network, tokenizer, path)
    return path


def text(folder: Path, **options: Any) -> str:
    model, tokenizer = anyorder.load(folder)
    return f"Once upon{anyorder.generate(model, tokenizer, 'Once upon', max_new_tokens=16, **options).text}\n"


SEMI = DiffusionSampler.preset("llada-semi-ar", block_length=8)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("", {}),
        ("--order diffusion", {}),
        ("--order left-to-right", {"order": "left-to-right"}),
        ("--order diffusion --temperature 1.5 --seed 3", {"order": "diffusion", "temperature": 1.5, "seed": 3}),
        (
            "--preset dream-entropy --steps 4 --temperature 0.5 --top_p 0.9 --seed 3",
            {
                "order": DiffusionSampler.preset("dream-entropy", steps=4, temperature=0.5).replace(top_p=0.9),
                "seed": 3,
            },
        ),
        (
            "--sampling_method fixed_length --steps 8 --remasking_strategy random --seed 2",
            {"order": DiffusionSampler.preset("llada", steps=8, remasking="random"), "seed": 2},
        ),
        ("--sampling_method semi_ar_padding --block_length 8", {"order": SEMI}),
        ("--sampling_method semi_ar_origin --block_length 8", {"order": SEMI.replace(grow=True)}),
        (
            "--block_length 4 --cfg_scale 1.5 --cache dual --threshold 0.1",
            {"order": DiffusionSampler.preset("llada", block_length=4, cfg_scale=1.5, cache="dual", threshold=0.1)},
        ),
        (
            "--preset fast-dllm --block_length 4 --factor 1.2",
            {"order": DiffusionSampler.preset("fast-dllm", block_length=4, factor=1.2)},
        ),
    ],
)
def test_options_are_those_of_the_library(
    words: str, options: dict[str, Any], diffusing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(diffusing), "Once upon", "--max_new_tokens", "16", *words.split()]) == 0
    assert capsys.readouterr().out == text(diffusing, **options)


def test_a_text_is_streamed_up_to_its_first_mask(diffusing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--max_new_tokens", "16", "--block_length", "4"]
    assert main(["generate", str(diffusing), "Once upon", *words, "--stream"]) == 0
    assert capsys.readouterr().out == text(diffusing, order=DiffusionSampler.preset("llada", block_length=4))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--order left-to-right --steps 8",
            "steps is given with order 'left-to-right', but it is for diffusion: leave out one of them.",
        ),
        (
            "--sampling_method fixed_length --block_length 8",
            "block_length is 8 beside sampling_method fixed_length, one block: leave out one of them, or give "
            "semi_ar_padding.",
        ),
        ("--order blocks:4 --block_length 8", "block_length is 8 beside order 'blocks:4': leave out one of them."),
        ("--interactive", "interactive is given with a prompt, prompts_file or json: leave out one of them."),
        ("--cache all", "option cache is 'all': give one of 'none', 'prefix', 'dual'."),
    ],
)
def test_mistakes(words: str, message: str, diffusing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in mistake(capsys, "generate", str(diffusing), "Once upon", *words.split())


def test_one_prompt_after_another(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Once\n\nOnce upon\n")))
    assert main(["generate", str(folder), "--interactive", "--max_new_tokens", "4"]) == 0
    model, tokenizer = anyorder.load(folder)
    parts = [anyorder.generate(model, tokenizer, prompt, max_new_tokens=4).text for prompt in ("Once", "Once upon")]
    assert capsys.readouterr().out == f"Once{parts[0]}\nOnce upon{parts[1]}\n"
