"""Load a checkpoint and continue a prompt.

python examples/load_and_write.py CHECKPOINT ["Once upon a time"]
"""

import sys

import anyorder


def main(checkpoint: str, prompt: str = "Once upon a time") -> None:
    model, tokenizer = anyorder.load(checkpoint)
    out = anyorder.generate(model, tokenizer, prompt, order="left-to-right", max_new_tokens=64)
    print(f"{prompt}{out.text}")
    print(f"\n{out.trace.summary()}")

    least = min(out.trace.events, key=lambda event: event.log_prob)
    print(f"The token it was least sure of is {least.token_id}, at position {least.position}.")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
