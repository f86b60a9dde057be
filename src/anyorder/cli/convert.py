"""`anyorder convert`."""

from __future__ import annotations

from typing import Literal


def command(
    source: str,
    target: str,
    *,
    tokenizer: str | None = None,
    dtype: str = "auto",
    kv_heads: int | None = None,
    pooling: Literal["mean", "first", "random"] = "mean",
    experts: str | None = None,
    expert_sample: str | None = None,
    widen: int | None = None,
    seed: int = 0,
    form: Literal[
        "llada",
        "illada",
        "dream",
        "a2d-llama",
        "a2d-qwen2",
        "a2d-qwen3",
        "fast-dllm-v2",
        "sdar",
        "sdar-moe",
        "llada-moe",
        "llada2",
    ]
    | None = None,
    revision: str | None = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder, llama2.c or GGUF file.

    Args:
        source: Checkpoint to read: a Hugging Face folder, a Meta folder, a llama2.c file, or a hub id (org/name).
        target: New folder, or new file whose name ends in .bin for llama2.c or in .gguf for llama.cpp; written whole or
            not at all.
        tokenizer: Tokenizer to put into the folder or the .gguf: a folder, a llama2.c tokenizer file, or a
            SentencePiece or tiktoken model; that of the source unless given.
        dtype: Of the written weights: auto (as stored), float32, bfloat16, float16 or float64; a .bin holds float32
            alone, a .gguf no float64.
        kv_heads: Key-value heads that are left, a divisor of those that there are; all unless given.
        pooling: How several heads become one, mean (of the group), first (of the group) or random (drawn anew).
        experts: Of a dense network, copies of each feed-forward network as experts, such as 8, or 8:2 where two read
            each token; of a network with experts, how many of each layer are kept, the busiest.
        expert_sample: File of text, over whose beginning it is counted which experts are busy.
        widen: How many times as wide the network becomes; it computes the same, so that a training can begin from it.
        seed: Decides what is drawn for random and for widen.
        form: the published form to write a masked diffusion model in, such as llada or dream.
        revision: Branch, tag or commit of a model on the hub.
    """
    import anyorder
    from anyorder.cli._console import PlainConsole

    notes = PlainConsole(stderr=True)
    with notes.status(f"converting {source}"):
        anyorder.convert(
            source, target, tokenizer=tokenizer, dtype=dtype, kv_heads=kv_heads, pooling=pooling, seed=seed,
            form=form, revision=revision, experts=experts, expert_sample=expert_sample, widen=widen,
        )  # fmt: skip
    notes.print(f"wrote {target}", soft_wrap=True)
