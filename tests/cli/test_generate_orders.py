"""`anyorder generate` with other modes, and one prompt after another."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import anyorder
from anyorder import DiffusionSampler
from anyorder.cli import main
from anyorder.cli._options import DiffusionOptions, SamplingOptions
from anyorder.cli._order_options import chosen_order
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.diffusion.sampler import PRESETS
from anyorder.errors import UserError
from anyorder.inspection.replay import Recording
from anyorder.model.llama import Llama
from anyorder.model.modes import LEFT_TO_RIGHT, blocks, diffusion
from tests.cli.test_main import mistake

MASK = 279


@pytest.fixture(scope="session")
def diffusing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `folder`, said to write by diffusion too."""
    model, tokenizer = anyorder.load(folder)
    network = Llama(model.config.replace(modes=(LEFT_TO_RIGHT, diffusion(MASK)), default_mode="diffusion"))
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


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_alone_is_that_of_the_library(preset: Any) -> None:
    published = DiffusionSampler.preset(preset)
    assert chosen_order(None, DiffusionOptions(preset=preset), SamplingOptions()) == published
    assert chosen_order("blocks", DiffusionOptions(preset=preset), SamplingOptions()).stop_at_end


@pytest.mark.parametrize("default", ["diffusion", "blocks"])
@pytest.mark.parametrize("order", ["diffusion", "blocks:8"])
def test_the_way_of_an_order_stays_beside_options(
    order: str, default: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = anyorder.load(folder)
    both = Llama(model.config.replace(modes=(diffusion(MASK), blocks(MASK, 4)), default_mode=default))
    both.load_state_dict(model.state_dict())
    anyorder.save(both, tokenizer, tmp_path / "both")
    words = ["generate", str(tmp_path / "both"), "Once upon", "--max_new_tokens", "16", "--order", order]
    assert main([*words, "--threshold", "0.99"]) == 0
    by = DiffusionSampler.preset("llada", threshold=0.99).replace(mode=order.partition(":")[0])
    if order == "blocks:8":
        by = by.replace(block_length=8, cache="prefix", stop_at_end=True)
    written = capsys.readouterr().out
    assert written == text(tmp_path / "both", order=by)
    other = {"diffusion": "blocks", "blocks": "diffusion"}[str(by.mode)]
    assert written != text(tmp_path / "both", order=by.replace(mode=other, cache="none"))


def test_a_text_is_streamed_up_to_its_first_mask(diffusing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--max_new_tokens", "16", "--block_length", "4"]
    assert main(["generate", str(diffusing), "Once upon", *words, "--stream"]) == 0
    assert capsys.readouterr().out == text(diffusing, order=DiffusionSampler.preset("llada", block_length=4))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--order left-to-right --steps 8",
            "steps is given with --order 'left-to-right', but it is for diffusion: leave out one of them.",
        ),
        (
            "--sampling_method fixed_length --block_length 8",
            "block_length is 8 beside --sampling_method fixed_length, one block: leave out one of them, or give "
            "semi_ar_padding.",
        ),
        ("--order blocks:4 --block_length 8", "block_length is 8 beside --order 'blocks:4': leave out one of them."),
        ("--interactive", "interactive is given with a prompt, --prompts_file or json: leave out one of them."),
        ("--cache all", "--cache is 'all': give one of none, prefix, dual."),
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


# ------------------------------------------------------------------------------------------- shown and recorded


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("order", ["diffusion", "left-to-right"])
def test_show_draws_the_canvas_while_it_fills(order: str, diffusing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    assert main(["generate", str(diffusing), "Once upon", "--max_new_tokens", "4", "--order", order, "--show"]) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    left = re.findall(r"step (\d)(?:, (\d) to write)?", shown)
    numbers = list(dict.fromkeys(left))
    if order == "diffusion":
        assert numbers == [("0", "4"), ("1", "3"), ("2", "2"), ("3", "1"), ("4", "")]
    else:
        assert numbers == [(str(step), "") for step in range(5)]
    assert "Once upon" in shown


def test_show_prints_the_end_where_there_is_no_terminal(diffusing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(diffusing), "Once upon", "--max_new_tokens", "16"]
    assert main([*words, "--show"]) == 0
    assert capsys.readouterr().out == text(diffusing)


def test_a_trace_file_replays(diffusing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, prompts = tmp_path / "trace.json", tmp_path / "prompts.txt"
    prompts.write_text("Once upon\nOnce\n")
    words = ["generate", str(diffusing), "--prompts_file", str(prompts), "--max_new_tokens", "5", "--json"]
    assert main([*words, "--trace", str(file)]) == 0
    texts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    recording = Recording.from_json(file.read_text())
    for row, record in enumerate(texts):
        first, *_, last = recording.states(row)
        assert [place.token_id for place in first.values()].count(BLANK) == 5
        assert "".join(recording.piece(last[at].token_id) for at in sorted(last)).startswith(record["prompt"])
        assert [last[at].token_id for at in sorted(last)][-5:] == record["token_ids"]
    assert main(["inspect", "replay", str(file), "--row", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "step 5"


def test_mistakes_of_showing_are_told(diffusing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(diffusing), "Once"]
    assert "--stream is given with --show, and both are for" in mistake(capsys, *words, "--stream", "--show")
    assert "show is given with --num_samples 2, but only" in mistake(capsys, *words, "--show", "--num_samples", "2")
    file = tmp_path / "there.json"
    file.write_text("{}")
    assert "there.json" in mistake(capsys, *words, "--trace", str(file))
    interactive = ["generate", str(diffusing), "--interactive", "--trace", str(tmp_path / "new.json")]
    assert "--trace is given with --interactive, but one file holds one run" in mistake(capsys, *interactive)
    model, tokenizer = anyorder.load(diffusing)
    with pytest.raises(UserError, match=r"watch is given beside num_beams 2, .*: leave out one\."):
        anyorder.generate(model, tokenizer, "Once", order="left-to-right", num_beams=2, watch=print)
