"""`anyorder generate`."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.errors import UserError

if TYPE_CHECKING:
    from anyorder.decoding.trace import Trace


def command(
    model: str,
    prompt: str | None = None,
    *,
    prompts_file: Path | None = None,
    tokenizer: Path | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: list[str] = [],  # noqa: B006 (never changed)
    seed: int = 0,
    batch_size: int = 16,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    json: bool = False,
) -> None:
    """Continue a prompt, a file of prompts, or standard input.

    Args:
        model: Hugging Face folder or llama2.c file.
        prompt: Text to continue; "-", or nothing at all, reads standard input to its end.
        prompts_file: File with one prompt in each line, "-" for standard input.
        tokenizer: Folder or file of the tokenizer, if it is not with the model.
        max_new_tokens: Tokens to write per prompt at most.
        temperature: 0 always takes the most probable token; above 0, tokens are drawn.
        top_k: Draw only from this many most probable tokens.
        top_p: Draw only from the fewest tokens whose probabilities add up to this.
        stop: Text that ends the writing; may be repeated.
        seed: With the number of the prompt, decides what is drawn.
        batch_size: Prompts to write at a time; changes speed and memory, not what is written.
        dtype: Of the weights: auto (as stored), float32, bfloat16, float16 or float64.
        device: Such as cpu or cuda; auto takes a GPU where there is one.
        attention: auto, eager, sdpa, flex or flash.
        json: Print one JSON object a line instead of text.
    """
    prompts = _prompts(prompt, prompts_file)

    from rich.console import Console

    import anyorder

    notes = Console(stderr=True, highlight=False)
    with notes.status(f"reading {model}"):
        network, words = anyorder.load(model, dtype=dtype, device=device, attention=attention, tokenizer=tokenizer)
    with notes.status("writing"):
        out = anyorder.generate(
            network, words, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            stop=stop or None, seed=seed, batch_size=batch_size,
        )  # fmt: skip
    assert isinstance(out.text, list)
    for row, (before, text) in enumerate(zip(prompts, out.text, strict=True)):
        if json:
            record = {
                "prompt": before,
                "text": text,
                "token_ids": out.token_ids[row],
                "stopped": out.stopped[row],
                "trace": _row_summary(out.trace, row),
            }
            print(jsonlib.dumps(record, ensure_ascii=False))
        else:
            print_writing(before, text, first=row == 0)
    sys.stdout.flush()
    notes.print(out.trace.summary(), style="dim", soft_wrap=True)


def print_writing(prompt: str, text: str, *, first: bool = True) -> None:
    """A prompt and its continuation: the prompt is dimmed on a terminal; elsewhere the text is exact.

    Args:
        prompt: as given.
        text: what was written.
        first: otherwise an empty line goes before.
    """
    if not first:
        print()
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(highlight=False).print(Text.assemble((prompt, "dim"), text), soft_wrap=True)
    else:
        print(prompt + text)


def _row_summary(trace: Trace, row: int) -> dict[str, float]:
    """What one prompt's writing took: tokens, passes, and the log-probability of all that was written."""
    events = [event for event in trace.events if event.row == row]
    return {
        "tokens": len(events),
        "passes": 1 + max(event.step for event in events),
        "log_prob": sum(event.log_prob for event in events),
    }


def _prompts(prompt: str | None, prompts_file: Path | None) -> list[str]:
    """All prompts of the command line, in order."""
    if prompts_file is None:
        return [_standard_input().removesuffix("\n") if prompt in (None, "-") else str(prompt)]
    if prompt is not None:
        raise UserError(
            f"a prompt is given beside prompts_file, which is {str(prompts_file)!r}: leave out one of them."
        )
    if str(prompts_file) == "-":
        lines = _standard_input().splitlines()
    else:
        lines = _decode(prompts_file.read_bytes(), str(prompts_file)).splitlines()
    if not lines:
        raise UserError(f"prompts_file is {str(prompts_file)!r}, which is empty: write one prompt in each line.")
    return lines


def _standard_input() -> str:
    if sys.stdin.isatty():
        print("type the prompt, then Ctrl-D:", file=sys.stderr)
    return _decode(sys.stdin.buffer.read(), "standard input")


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 at byte {error.start}: convert it to UTF-8.") from None
