"""What the values of options must be, wherever that can be said before PyTorch is imported, which takes seconds.

The library checks all of it again; tests hold the names here to those of the library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from anyorder.cli._groups import OVERWRITE, TRAININGS
from anyorder.errors import UserError
from anyorder.model.modes import KINDS, mode_named
from anyorder.orders.names import read_order
from anyorder.utils.annotations import shown
from anyorder.utils.files import check_place

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64", "int8")
"""Names of data types; where int8 is none of them, the library says so."""

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla", "meta")
"""Kinds of devices, each with a number behind a colon, or without."""

ATTENTIONS = ("auto", "eager", "sdpa", "flex", "flash", "flash_attention_2", "flex_attention")

PRESETS = (
    "llada",
    "llada-semi-ar",
    "dream-maskgit",
    "dream-margin",
    "dream-entropy",
    "fast-dllm",
    "sdar",
    "llada2",
    "llada2.1",
    "nemotron",
)

REMASKING = ("low_confidence", "random", "maskgit_plus", "topk_margin", "entropy", "probability", "margin")

FUSIONS = (
    "attention", "logit-mean", "probability-mean", "max", "lowest-entropy", "contrast", "attention+logit-mean", "vote",
    "log-probability-mean",
)  # fmt: skip

RUN_METHODS = ("single", "concatenation", *FUSIONS)

POSITIONS = ("shared", "running", "right", "spread")

MEANT = {
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32", "fp64": "float64",
    "double": "float64", "int8_float32": "int8", "8bit": "int8", "gpu": "cuda", "greedy": "low_confidence",
}  # fmt: skip
"""What people also write for a value."""

GROWING = ("pretrain", "sft", "fuse run", "fuse compare", "data paraphrase")
"""Commands that may go on with an output that is there."""

FOLDERS = ("convert", "configs", "data tokenizer")
"""Commands that write folders, unless the name is one of a file: `FILES`."""

FILES = (".bin", ".gguf")

PICTURES = (
    ".eps", ".jpeg", ".jpg", ".pdf", ".pgf", ".png", ".ps", ".raw", ".rgba", ".svg", ".svgz", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""What matplotlib writes."""

SHIPPED = ("stories",)
"""Networks of the package, by name."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

DATA = ("data", "validation", "data convert source", "data inspect source", "data tokenizer source")

Check = Callable[[str, Any], None]


def check_values(command: str, values: Mapping[str, Any]) -> None:
    """Compare values that were given with what their options take.

    Args:
        command: the command's name.
        values: of options and words, by name; what is None was not given.

    Raises:
        UserError: one cannot be.
    """
    if command == "configs":  # which writes what another command will take
        return
    if command in TRAININGS:  # whose settings check themselves, but read no file
        values = {name: value for name, value in values.items() if name in ("init", "data", "validation")}
    # Options come before the files that they are about.
    for name, value in sorted(values.items(), key=lambda item: item[0] in ("model", "init", "source", "data")):
        check = CHECKS.get(f"{command} {name}") or CHECKS.get(name)
        if check is not None and value is not None:
            check(name, value)
        if value is not None and name in OVERWRITE.get(command, ()) and command not in GROWING:
            is_folder = command in FOLDERS and Path(value).suffix not in FILES
            check_place(Path(value), folder=is_folder)


def _number(lowest: float, remedy: str, *, above: bool = False, highest: float = float("inf")) -> Check:
    def check(name: str, value: Any) -> None:
        for number in value if isinstance(value, list) else [value]:
            if not (lowest < number if above else lowest <= number) or number > highest:
                raise UserError(f"{name} is {shown(number)}: give {remedy}.")

    return check


def _one_of(known: tuple[str, ...], *, numbered: bool = False) -> Check:
    def check(name: str, value: Any) -> None:
        for item in value if isinstance(value, list) else [value]:
            word = item.removeprefix("torch.").partition(":")[0] if numbered else item.removeprefix("torch.")
            if word not in known:
                close = [MEANT[word]] if MEANT.get(word) in known else get_close_matches(word, known, n=1, cutoff=0.7)
                meant = f"did you mean {close[0]}? If not, " if close else ""
                raise UserError(f"{name} is {shown(item)}: {meant}choose one of {', '.join(known)}.")

    return check


def _order(name: str, value: Any) -> None:
    for words in value if isinstance(value, list) else [value]:
        read_order(words, name)


def _method(name: str, value: Any) -> None:
    for words in value:
        if "=" not in words.partition(",")[0] and words.partition(",")[0] not in PRESETS:
            read_order(words, name, others=PRESETS)


def _mode(name: str, value: Any) -> None:
    if mode_named(value) is None:
        raise UserError(f"{name} is {shown(value)}: give one of {', '.join(KINDS)}.")


def _correction(name: str, value: Any) -> None:
    if value not in ("1/N", "none", "length") and not value.startswith("ape:"):
        raise UserError(f"{name} is {shown(value)}: choose one of 1/N, none, length or ape:TEMPERATURE,SCALE.")


def _picture(name: str, value: Any) -> None:
    if value.suffix.lower() not in PICTURES:
        raise UserError(f"{name} is {str(value)!r}, of an unknown kind: end its name in .png or .svg.")


def _is_there(name: str, value: Any) -> None:
    try:
        there = Path(value).exists()
    except (OSError, ValueError):  # a name that no file can have, which the library explains
        return
    if not there:
        raise UserError(f"data {shown(str(value))} is no file or folder here: check the path.")


def _is_checkpoint(name: str, value: Any) -> None:
    try:
        there = Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, which the library explains
        return
    if not there and value not in SHIPPED and HUB_ID.fullmatch(str(value)) is None:
        raise UserError(f"checkpoint {shown(str(value))} is no folder or file here: check the path.")


_ABOVE = _number(0, "a whole number above 0", above=True)
_FROM = _number(0, "0 or a number above")
_SHARE = _number(0, "a probability above 0 and at most 1", above=True, highest=1)

CHECKS: dict[str, Check] = {
    **dict.fromkeys(
        ("max_new_tokens", "gap_tokens", "draft", "top_k", "num_samples", "num_beams", "batch_size", "steps",
         "block_length", "num_paraphrases", "max_samples", "counts", "texts", "draws", "gap", "new_tokens", "repeats",
         "samples", "mask_samples", "kv_heads", "vocab_size", "fuse keep", "fuse run keep", "data inspect length"),
        _ABOVE,
    ),
    **dict.fromkeys(("top_p", "min_p"), _SHARE),
    **dict.fromkeys(
        ("temperature", "cfg_scale", "shots", "indices", "masks", "examples", "row", "seconds", "mask_token_id"), _FROM
    ),
    "data paraphrase temperature": _number(0, "a number above 0, so that phrasings differ", above=True),
    "repetition_penalty": _number(0, "a number above 0, such as 1.1, or 1 for no penalty", above=True),
    "convert widen": _number(2, "a whole number from 2 to 64", highest=64),
    "model": _is_checkpoint,
    "init": _is_checkpoint,
    "convert source": _is_checkpoint,
    **dict.fromkeys(DATA, _is_there),
    "evaluate likelihood length": _number(2, "a whole number of tokens above 1"),
    "dtype": _one_of(DTYPES),
    "device": _one_of(DEVICES, numbered=True),
    "attention": _one_of(ATTENTIONS),
    "preset": _one_of(PRESETS),
    "remasking_strategy": _one_of(REMASKING),
    "order": _order,
    "orders": _order,
    "inspect compare method": _method,
    "mode": _mode,
    "plot": _picture,
    "fuse method": _one_of(FUSIONS),
    "fuse run method": _one_of(RUN_METHODS),
    "fuse compare methods": _one_of(RUN_METHODS),
    "positions": _one_of(POSITIONS),
    "correction": _correction,
}  # fmt: skip
"""By the name of an option, or of a command and its option."""
