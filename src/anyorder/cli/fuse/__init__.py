"""Answer one question from several phrasings, which are read apart and answered together."""

from __future__ import annotations

import sys
from dataclasses import asdict

from anyorder.cli._options import ModelOptions, SamplingOptions
from anyorder.cli.fuse._options import AnswerOptions, FusionOptions, PartOptions
from anyorder.errors import UserError
from anyorder.utils.annotations import Listed

SUBCOMMANDS = ("run", "score", "compare")


def command(
    model: str,
    phrasings: list[str] = [],  # noqa: B006 (never changed)
    *,
    parts: PartOptions,
    fusion: FusionOptions,
    weights: list[Listed] = [],  # noqa: B006 (never changed)
    answer: AnswerOptions,
    sampling: SamplingOptions,
    loading: ModelOptions,
    json: bool = False,
) -> None:
    """Answer one question from several phrasings, read apart.

    Each phrasing is read by itself, between prefix and suffix; the answer attends to all of them. How much attention
    each of them got is printed behind the answer. For the questions of a data set: `anyorder fuse run --help`,
    `anyorder fuse score --help`, `anyorder fuse compare --help`.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, hub id (org/name), or stories, which is shipped.
        phrasings: The question, said several times, each in quotes.
        parts: text around the phrasings.
        fusion: how several phrasings become one answer.
        weights: How much each phrasing counts: a number for each, such as 2,1,1; or confidence, or likelihood.
        answer: what is written.
        sampling: how tokens are chosen.
        loading: how the model is read.
        json: Print one JSON object instead of text.
    """
    if not phrasings:
        raise UserError("there are 0 phrasings: write at least one behind the model, each in quotes.")

    import anyorder
    from anyorder.cli._console import PlainConsole
    from anyorder.decoding.fusion.method import Fusion
    from anyorder.modes import resolve
    from anyorder.utils.json_text import json_text

    # A wrong name is refused before a model is read.
    Fusion(method=fusion.method, positions=fusion.positions, correction=fusion.correction)

    notes = PlainConsole(stderr=True)
    loaded, tokenizer = loading.load(model, notes)
    mode, _ = resolve(answer.order, loaded.config)
    attended = fusion.method == "attention" and mode.kind.causal
    options = {**asdict(parts), **asdict(fusion), **asdict(answer), **asdict(sampling), "stop": answer.stop or None}
    with notes.status("writing"):
        out = anyorder.fuse(
            loaded, tokenizer, phrasings, weights=_weights(weights), attention_share=attended, **options
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


def _weights(given: list[str]) -> str | list[float] | None:
    """Return numbers, or the name of a score."""
    try:
        return [float(number) for number in given] or None
    except ValueError:
        return ",".join(given)
