"""Answer one question from several phrasings, which are read apart and answered together."""

from __future__ import annotations

import sys
from typing import Any

from anyorder.errors import UserError
from anyorder.utils.annotations import Listed

SUBCOMMANDS = ("run", "score", "compare")


def command(
    model: str,
    phrasings: list[str] = [],  # noqa: B006 (never changed)
    *,
    prefix: str = "",
    suffix: str = "",
    separator: str = "",
    method: str = "attention",
    positions: str = "shared",
    correction: str = "1/N",
    weights: list[Listed] = [],  # noqa: B006 (never changed)
    keep: int | None = None,
    order: str | None = None,
    tokenizer: str | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: list[str] = [],  # noqa: B006 (never changed)
    seed: int = 0,
    num_beams: int = 1,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    revision: str | None = None,
    json: bool = False,
) -> None:
    """Answer one question from several phrasings, read apart.

    Each phrasing is read by itself, between prefix and suffix; the answer looks at all of them. How much attention
    each of them got is told behind the answer. For the questions of a data set: `anyorder fuse run --help`,
    `anyorder fuse score --help`, `anyorder fuse compare --help`.

    Args:
        model: Hugging Face or Meta folder, llama2.c file, or hub id (org/name).
        phrasings: The question, said several times, each in quotes.
        prefix: Text before each phrasing, such as examples.
        suffix: Text behind all of them, such as " A:"; let it begin with its space.
        separator: Text that each phrasing ends with.
        method: attention, logit-mean, probability-mean, max, lowest-entropy, contrast, attention+logit-mean or vote.
        positions: Where phrasings are read: shared, running, right or spread; right did best where it was measured.
        correction: 1/N, none, length, or ape:TEMPERATURE,SCALE.
        weights: How much each phrasing counts: a number for each, such as 2,1,1; or confidence, or likelihood.
        keep: Use only this many phrasings of the highest weights.
        order: Mode of the answer, such as left-to-right, random, groups:4 or diffusion; that of the model
            unless given.
        tokenizer: Folder, file or hub id of the tokenizer, if it is not with the model.
        max_new_tokens: Tokens to write at most.
        temperature: 0 always takes the most probable token; above 0, tokens are drawn.
        top_k: Draw only from this many most probable tokens.
        top_p: Draw only from the fewest tokens whose probabilities add up to this.
        min_p: Draw only from tokens at least this many times as probable as the most probable one.
        repetition_penalty: Above 1, tokens that the question or the answer has already become rarer.
        stop: Text that ends the answer; may be repeated.
        seed: Decides what is drawn.
        num_beams: Above 1, beam search with so many beams.
        dtype: Of the weights: auto (as stored), float32, bfloat16, float16, float64, or int8.
        device: Such as cpu or cuda; auto takes a GPU where there is one.
        attention: auto, eager, sdpa, flex or flash.
        revision: Branch, tag or commit of a model on the hub.
        json: Print one JSON object instead of text.
    """
    if not phrasings:
        raise UserError("there are 0 phrasings: write at least one behind the model, each in quotes.")

    import anyorder
    from anyorder.cli._console import PlainConsole
    from anyorder.decoding.fusion.question import Fusion
    from anyorder.modes import resolve
    from anyorder.utils.json_text import json_text

    Fusion(method=method, positions=positions, correction=correction)  # a wrong name is told before a network is read

    notes = PlainConsole(stderr=True)
    with notes.status(f"reading {model}"):
        network, words = anyorder.load(
            model, dtype=dtype, device=device, attention=attention, tokenizer=tokenizer, revision=revision
        )
    mode, _ = resolve(order, network.config)
    attended = method == "attention" and mode.kind.causal
    options: dict[str, Any] = {
        "prefix": prefix, "suffix": suffix, "separator": separator, "method": method, "positions": positions,
        "correction": correction, "order": order, "max_new_tokens": max_new_tokens, "temperature": temperature,
        "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
        "stop": stop or None, "seed": seed,
    }  # fmt: skip
    with notes.status("writing"):
        out = anyorder.fuse(
            network, words, phrasings, weights=_weights(weights), keep=keep, num_beams=num_beams,
            attention_share=attended, **options,
        )  # fmt: skip
    if json:
        record = {
            "phrasings": phrasings, "text": out.text, "token_ids": out.token_ids, "stopped": out.stopped[0],
            "attention_share": out.attention_share,
        }  # fmt: skip
        print(json_text(record))
    else:
        print(out.text)
    sys.stdout.flush()
    if attended:
        for share, phrasing in zip(out.attention_share or (), phrasings, strict=True):
            notes.print(f"{share:6.1%}  {phrasing}", style="dim", soft_wrap=True)
    notes.print(out.trace.summary(), style="dim", soft_wrap=True)


def _weights(words: list[str]) -> str | list[float] | None:
    """Numbers, or the name of what gives them."""
    try:
        return [float(number) for number in words] or None
    except ValueError:
        return ",".join(words)
