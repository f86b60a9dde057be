"""What sharing keys and values costs before any further training: the loss by number of key heads and way of pooling.

    python benchmarks/head_pooling.py stories260K.bin tok512.bin tinystories.txt
    python benchmarks/head_pooling.py FOLDER FOLDER text.txt

Reads the same rows as `int8_perplexity.py`. "random" is the mean of three seeds.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from int8_perplexity import nats_per_token, text_rows

import anyorder
from anyorder.checkpoints.heads import share_heads

SEEDS = (0, 1, 2)


def main(checkpoint: str, tokenizer_file: str, text_file: str) -> None:
    """Measure and print."""
    model, tokenizer = anyorder.load(checkpoint, tokenizer=tokenizer_file, device="cpu")
    rows_NL = text_rows(tokenizer, model.config.bos_token_id, Path(text_file).read_text(encoding="utf-8"))
    heads = model.config.num_key_value_heads
    print(f"{heads} key heads: {nats_per_token(model, rows_NL):.3f} nats/token")
    for fewer in range(heads - 1, 0, -1):
        if heads % fewer:
            continue
        losses = {
            pooling: statistics.mean(
                nats_per_token(share_heads(model, fewer, pooling, seed), rows_NL)
                for seed in (SEEDS if pooling == "random" else SEEDS[:1])
            )
            for pooling in ("mean", "first", "random")
        }
        print(f"{fewer} key heads: " + ", ".join(f"{pooling} {loss:.3f}" for pooling, loss in losses.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
