"""What rounding costs: perplexity of a network in float32, bfloat16 and with 8-bit projections.

    python benchmarks/int8_perplexity.py stories260K.bin tok512.bin tinystories.txt

Reads the first 400,000 characters of the text as rows of 256 tokens, of which it takes 200.
"""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama

CHARACTERS, LENGTH, ROWS, BATCH = 400_000, 256, 200, 20


@torch.no_grad()
def nats_per_token(model: Llama, ids_NL: Tensor) -> float:
    """Mean loss over all rows `[rows, length]`."""
    losses = [model(batch, labels=batch).loss.item() * len(batch) for batch in ids_NL.split(BATCH)]
    return sum(losses) / len(ids_NL)


def text_rows(tokenizer: PreTrainedTokenizerBase | None, bos_token_id: int | None, text: str) -> Tensor:
    """Rows `[rows, 1 + length]` of the beginning of a text, each behind the token that begins one."""
    assert tokenizer is not None
    ids = torch.tensor(tokenizer(text[:CHARACTERS], add_special_tokens=False)["input_ids"])
    rows_NL = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)[:ROWS]
    return torch.cat((torch.full((len(rows_NL), 1), bos_token_id or 0), rows_NL), dim=1)


def main(checkpoint: str, tokenizer_file: str, text_file: str) -> None:
    """Measure and print."""
    model, tokenizer = anyorder.load(checkpoint, tokenizer=tokenizer_file, device="cpu")
    rows_NL = text_rows(tokenizer, model.config.bos_token_id, Path(text_file).read_text(encoding="utf-8"))
    versions = {
        "float32": model.float(),
        "bfloat16": copy.deepcopy(model).bfloat16(),
        "int8": to_int8(copy.deepcopy(model)),
    }
    for name, version in versions.items():
        loss = nats_per_token(version, rows_NL)
        print(f"{name:10} {loss:.6f} nats/token, perplexity {math.exp(loss):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
