"""Answers that see all phrasings, written in any order and by masked diffusion.

python examples/fuse_other_orders.py CHECKPOINT

A checkpoint that was not trained for these modes is given them here, to show the calls: what it writes means nothing.
"""

import sys
from typing import Any

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.model.modes import ANY_ORDER, diffusion

PHRASINGS = [" there was a little girl.", " a small girl lived there."]


def main(checkpoint: str) -> None:
    network, tokenizer = anyorder.load(checkpoint)
    parts: dict[str, Any] = {"prefix": "Once upon a time", "suffix": " She", "max_new_tokens": 8}

    model = adapt(network, [ANY_ORDER])
    for order in ("random", "groups:4"):
        out = anyorder.fuse(model, tokenizer, PHRASINGS, order=order, **parts)
        start = len(out.sequences[0]) - len(out.token_ids)
        places = [event.position - start for event in out.trace.events]
        print(f"{order}: {len(out.token_ids)} tokens in {out.passes} passes, at the places {places}")

    unused = max(set(range(network.config.vocab_size)) - set(out.sequences[0]))
    model = adapt(network, [diffusion(mask_token_id=unused)])
    sampler = anyorder.DiffusionSampler(steps=4)
    out = anyorder.fuse(model, tokenizer, PHRASINGS, order=sampler, **parts)
    print(f"diffusion: {len(out.token_ids)} tokens in {out.passes} passes")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
