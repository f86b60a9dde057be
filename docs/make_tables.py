"""Fill the generated tables of the docs: sizes in hardware.md, checkpoints in models.md; `make docs` runs this.

A table stands between `<!-- table NAME -->` and `<!-- end -->`. It is computed from published.json: configurations of
published networks, read by the package itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from anyorder.checkpoints.config_json import config_from_json
from anyorder.checkpoints.masked_diffusion import form_of
from anyorder.checkpoints.weights import DTYPES
from anyorder.inspection.memory import cache_bytes, lora_bytes, training_bytes, weight_bytes
from anyorder.model.config import ModelConfig

DOCS = Path(__file__).resolve().parent
PAGES = ("hardware.md", "models.md")

PUBLISHED: list[dict[str, Any]] = json.loads((DOCS / "published.json").read_text(encoding="utf-8"))

CONTEXT = 4096
"""Tokens of the cache in the tables."""

CARDS = (8, 16, 24, 48, 80)
"""Memory of usual devices, GB."""

SHARE = 0.9
"""Of a device's memory that weights and cache may take: the rest is the driver, activations and fragments."""

RANK = 16


# ---------------------------------------------------------------------------------------------- rows


def sized() -> list[tuple[str, ModelConfig]]:
    """The networks of the tables of sizes, from the smallest to the largest."""
    networks = [(entry["size_of"], config_from_json(entry["config"])) for entry in PUBLISHED if "size_of" in entry]
    return sorted(networks, key=lambda network: weight_bytes(network[1]))


def gigabytes(count: int) -> str:
    """Bytes in GB (10^9 bytes), with two digits that count."""
    size = count / 1e9
    return f"{size:.2f}" if size < 1 else f"{size:.1f}" if size < 10 else f"{size:,.0f}"


def cache_of(config: ModelConfig) -> int:
    """Bytes of the keys and values of `CONTEXT` tokens in bfloat16; 0 where nothing is kept unless asked for."""
    writes_by_diffusion = config.default_mode == "diffusion"
    return 0 if writes_by_diffusion else CONTEXT * cache_bytes(config, DTYPES["bfloat16"])


def writing() -> Iterable[tuple[str, ...]]:
    yield "network", "parameters", "float32", "bfloat16", "int8", "cache of a token", f"cache of {CONTEXT:,} tokens"
    for name, config in sized():
        parameters = weight_bytes(config, "bfloat16") // 2
        sizes = [gigabytes(weight_bytes(config, dtype)) for dtype in ("float32", "bfloat16", "int8")]
        one, many = cache_bytes(config, DTYPES["bfloat16"]), CONTEXT * cache_bytes(config, DTYPES["bfloat16"])
        yield name, f"{parameters / 1e6:,.0f} M", *sizes, f"{one / 1e3:,.0f} KB", gigabytes(many)


def fitting() -> Iterable[tuple[str, ...]]:
    yield "network", *(f"{card} GB" for card in CARDS)
    for name, config in sized():
        cells = []
        for card in CARDS:
            room = SHARE * card * 1e9 - cache_of(config)
            fits = [dtype for dtype in ("bfloat16", "int8") if weight_bytes(config, dtype) <= room]
            cells.append(fits[0] if fits else "-")
        yield name, *cells


def training() -> Iterable[tuple[str, ...]]:
    yield "network", "all weights", f"`--lora_rank {RANK}`", "a checkpoint on disk"
    for name, config in sized():
        whole = training_bytes(config)
        yield name, gigabytes(whole), gigabytes(lora_bytes(config, RANK)), gigabytes(whole * 3 // 4)


def causal() -> Iterable[tuple[str, ...]]:
    yield "networks", "for example", "`model_type`", "parameters of the example", "context, tokens", "note"
    for entry in of_group("left to right"):
        config = config_from_json(entry["config"])
        count = f"{weight_bytes(config) / 2e9:.2f} billion"
        context = f"{config.context_length:,}"
        yield entry["name"], example_of(entry), model_type(entry), count, context, entry.get("note", "")


def diffusion() -> Iterable[tuple[str, ...]]:
    yield "networks", "for example", "`model_type`", "writes by", "shifted", "mask token", "`--form`"
    for entry in of_group("diffusion"):
        config = config_from_json(entry["config"])
        form = form_of(entry["config"])
        assert form is not None, entry["name"]
        *others, mode = config.modes
        length = "" if mode.block_length is None else f" of {mode.block_length}"
        ways = [*(other.name for other in others), f"{mode.name}{length}"]
        mask = entry.get("mask", str(mode.mask_token_id))
        yield (
            entry["name"], example_of(entry), model_type(entry), ", ".join(ways),
            "yes" if mode.shifted else "no", mask, f"`{form.name}`",
        )  # fmt: skip


def unread() -> Iterable[tuple[str, ...]]:
    yield "networks", "`model_type`", "what is not supported"
    for entry in of_group("no"):
        yield entry["name"], model_type(entry), entry["why"]


TABLES: dict[str, Callable[[], Iterable[tuple[str, ...]]]] = {
    "writing": writing, "fitting": fitting, "training": training, "causal": causal, "diffusion": diffusion,
    "unread": unread,
}  # fmt: skip


def of_group(name: str) -> list[dict[str, Any]]:
    return [entry for entry in PUBLISHED if entry["group"] == name]


def example_of(entry: dict[str, Any]) -> str:
    return f"`{entry['example']}`" if entry["example"] else ""


def model_type(entry: dict[str, Any]) -> str:
    return f"`{entry['config']['model_type']}`"


# ---------------------------------------------------------------------------------------------- pages


def filled(page: str) -> str:
    """A page with all its tables computed anew."""

    def table(found: re.Match[str]) -> str:
        head, *rows = TABLES[found["name"]]()
        lines = [head, tuple("---" for _ in head), *rows]
        drawn = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"<!-- table {found['name']} -->\n{drawn}\n<!-- end -->"

    return re.sub(r"<!-- table (?P<name>\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def main() -> None:
    for name in PAGES:
        page = (DOCS / name).read_text(encoding="utf-8")
        (DOCS / name).write_text(filled(page), encoding="utf-8")


if __name__ == "__main__":
    main()
