"""Wrong values are refused before PyTorch is imported, in sentences that name options as they are typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.backend_bases import FigureCanvasBase

from anyorder.api.text import GAP
from anyorder.attention import BACKENDS, TRANSFORMERS_NAMES
from anyorder.checkpoints import hub
from anyorder.checkpoints.weights import DTYPES
from anyorder.cli import COMMANDS, ELSEWHERE, _values
from anyorder.cli._messages import as_options
from anyorder.cli._prompts import has_gap
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.diffusion.sampler import PRESETS, REMASKING
from anyorder.decoding.fusion.layout import POSITIONS
from anyorder.decoding.fusion.method import METHODS, SAME_METHODS
from anyorder.evaluation.protocol import RUN_METHODS
from tests.cli.test_main import mistake

HERE = str(Path(__file__).parent)

WRONG = {
    "generate {here} p --max_new_tokens 0": "--max_new_tokens is 0: give a whole number above 0.",
    "generate {here} p --temperature=-1": "--temperature is -1.0: give 0 or a number above.",
    "generate {here} p --top_p 1.5": "--top_p is 1.5: give a probability above 0 and at most 1.",
    "generate {here} p --repetition_penalty 0": "--repetition_penalty is 0.0: give a number above 0, such as 1.1",
    "generate {here} p --gap_tokens 4,0": "--gap_tokens is 0: give a whole number above 0.",
    "generate {here} p --order left-to-rigth": "--order is 'left-to-rigth': did you mean left-to-right? If not, give",
    "generate {here} p --dtype bf16": "--dtype is 'bf16': did you mean bfloat16? If not, choose one of auto, float32",
    "generate {here} p --device gpu": "--device is 'gpu': did you mean cuda? If not, choose one of auto, cpu, cuda",
    "generate {here} p --attention flash3": "--attention is 'flash3': did you mean flash? If not, choose one of auto",
    "generate {here} p --preset lada": "--preset is 'lada': did you mean llada? If not, choose one of llada, ",
    "generate {here} p --remasking_strategy sure": "--remasking_strategy is 'sure': choose one of low_confidence, ",
    "generate {here} p --cache all": "--cache is 'all': give one of none, prefix, dual.",
    "generate {here} p --stream --json": "--stream is given with --json, but only a single text is streamed: leave",
    "generate {here} p --stream=yes": "--stream is given with 'yes', but takes no value: write it alone.",
    "generate {here} p --order random --steps 4": "--steps is given with --order 'random', but it is for diffusion: ",
    "generate {here} p --trace {here}": "tests/cli' is a folder: give the name of a file.",
    "replay x": "command 'replay' is unknown: did you mean inspect replay? If not, use one of generate, ",
    "generate nosuch p": "checkpoint 'nosuch' is no folder or file here: check the path.",
    "fuse {here} p --method mean": "--method is 'mean': choose one of attention, logit-mean, ",
    "fuse {here} p --positions left": "--positions is 'left': choose one of shared, running, right, spread.",
    "fuse {here} p --correction half": "--correction is 'half': choose one of 1/N, none, length or ape:TEMPERATURE",
    "fuse run --model {here} --dataset x --shots=-1": "--shots is -1: give 0 or a number above.",
    "evaluate likelihood {here} {here} --orders forwards": "--orders is 'forwards': give one of left-to-right, ",
    "evaluate likelihood {here} nosuch": "data 'nosuch' is no file or folder here: check the path.",
    "inspect attention {here} p --mode upwards": "--mode is 'upwards': give one of left-to-right, any-order, diffusion",
    "inspect compare {here} p --method llda": "--method is 'llda': did you mean llada? If not, give one of ",
    "convert {here} {here}": "' is not empty: give a new folder, empty this one first, or overwrite it with --force.",
    "convert {here} out --kv-heads 0": "--kv_heads is 0: give a whole number above 0.",
    "data tokenizer nosuch out": "data 'nosuch' is no file or folder here: check the path.",
    "pretrain --data {here} --output out --objective groups:4": "--objective is 'groups:4', one order of those in",
    "pretrain --data {here} --output out --objective mask-diffusion": "--objective is 'mask-diffusion': did you mean ",
    "pretrain --data nosuch --output out": "data 'nosuch' is no file or folder here: check the path.",
    "sft --data {here} --output out --init nosuch": "checkpoint 'nosuch' is no folder or file here: check the path.",
    "sft --data {here} --output out --precision bf16": "--precision is 'bf16': give bfloat16, or another of float32, ",
    "sft --data {here} --output out --width 8 --init {here}": "--width is 8 beside --init, which decides it: leave ",
    "pretrain --data {here} --output out --heads 3 --width 32": "--width is 32: give a multiple of ",
    "pretrain --data {here} --output out --shifted": "--shifted is given for the objective 'autoregressive', which ",
    "fuse run": "arguments --model and --dataset are missing: see `anyorder fuse run --help`.",
    "generate {here} -n 5": "option -n is unknown: options are written with two dashes and their whole name, see `any",
    "inspect attention {here} p --plot a.xyz": "--plot is 'a.xyz', of an unknown kind: end its name in .png or .svg.",
    "--verison": "option --verison is unknown: give a command, --help or --version.",
    "train --data x": "command 'train' is unknown: did you mean pretrain? If not, use one of generate, ",
}
"""Command lines, and the beginning or a part of what they answer."""


@pytest.mark.parametrize("line", WRONG)
def test_wrong_values(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert WRONG[line] in mistake(capsys, *line.format(here=HERE).split())


def test_what_is_long_or_of_another_program_is_refused_in_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    message = mistake(capsys, "generate", HERE, "p", "--order", f"random:{'9' * 5000}")
    assert message.startswith("--order is 'random:9999")
    assert len(message) < 400
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    for words in (["generate", str(file), "p"], ["info", str(file)], ["convert", str(file), "out"]):
        assert "x.gguf' is no whole GGUF file (" in mistake(capsys, *words)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_from_elsewhere(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Also where another command is spelt alike, as "compile" is beside "complete"."""
    assert f"did you mean {ELSEWHERE[name]}?" in mistake(capsys, name)


def test_names_from_elsewhere_mean_commands() -> None:
    assert {meant.partition(" ")[0] for meant in ELSEWHERE.values()} <= set(COMMANDS)


def test_wrong_values_import_no_torch() -> None:
    lines = [line.format(here=HERE).split() for line in WRONG]
    code = f"""
import sys
from anyorder.cli import main
for words in {lines}:
    assert main(words) == 2, words
    assert not {{"torch", "transformers", "numpy"}} & set(sys.modules), words
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_writing_imports_no_compiler(folder: Path) -> None:
    code = f"""
import sys
from anyorder.cli import main
assert main(["generate", {str(folder)!r}, "Once", "--max_new_tokens", "3"]) == 0
heavy = {{"torch._dynamo", "torch._inductor", "sympy", "torch.distributed.fsdp", "pandas", "matplotlib", "datasets",
          "accelerate", "peft", "scipy", "sklearn", "spacy"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_names_are_those_of_the_library() -> None:
    assert set(_values.DTYPES) == {"auto", "int8", *DTYPES}
    assert set(_values.ATTENTIONS) == {"auto", *TRANSFORMERS_NAMES, *BACKENDS} - {"traced"}
    assert set(_values.PRESETS) == set(PRESETS)
    assert set(_values.REMASKING) == set(REMASKING)
    assert set(_values.POSITIONS) == set(POSITIONS)
    assert set(_values.FUSIONS) == {*METHODS, *SAME_METHODS}
    assert set(_values.RUN_METHODS) == {*RUN_METHODS, *SAME_METHODS}
    assert hub.HUB_ID.pattern == _values.HUB_ID.pattern
    assert tuple(hub.SHIPPED) == _values.SHIPPED
    assert all(torch.device(kind).type == kind for kind in set(_values.DEVICES) - {"auto"})
    assert has_gap(f"a {GAP} b")
    assert has_gap([5, BLANK])
    assert not has_gap("a ... b")
    everything = {*_values.DTYPES, *_values.DEVICES, *_values.REMASKING}
    assert set(_values.MEANT.values()) <= everything


def test_pictures_are_those_of_matplotlib() -> None:
    assert {f".{kind}" for kind in FigureCanvasBase.filetypes} >= set(_values.PICTURES)


OPTIONS = {"order", "top_k", "max_new_tokens", "compile", "stream", "init", "stop", "resume", "batch_size"}


@pytest.mark.parametrize(
    ("library", "typed"),
    [
        ("top_k is 0: give a whole number above 0, or None to keep every token.",
         "--top_k is 0: give a whole number above 0, or leave it out."),
        ("order is 'x': give one of a.", "--order is 'x': give one of a."),
        ("from left to right no gap is filled: give order='any-order'.",
         "from left to right no gap is filled: give --order any-order."),
        ("in the order of the files, stop words stop nothing.", "in the order of the files, stop words stop nothing."),
        ("compile is True, but no g++ is at hand: install it, or give compile=False.",
         "--compile is always, but no g++ is at hand: install it, or give --compile never."),
        ("the text is longer than max_new_tokens: give max_new_tokens=9.",
         "the text is longer than --max_new_tokens: give --max_new_tokens 9."),
        ("where no training began: leave out resume.", "where no training began: leave out --resume."),
        ("width is 8 beside init, which decides it.", "width is 8 beside --init, which decides it."),
        ("see --top_k and 'top_k' and x.top_k, top_k_more.", "see --top_k and 'top_k' and x.top_k, top_k_more."),
        ("give stream=True.", "give --stream."),
        ("the text 'no top_k here, order is x' is beside top_k.",
         "the text 'no top_k here, order is x' is beside --top_k."),
        ('"leave out top_k" is its top_k.', '"leave out top_k" is its --top_k.'),
        ("the model has no stop: give it with --stop.", "the model has no stop: give it with --stop."),
    ],
)  # fmt: skip
def test_sentences_of_the_library_name_options(library: str, typed: str) -> None:
    assert as_options(library, OPTIONS, {"stream", "resume"}) == typed
