"""What `anyorder demo` shows before it trains: the network that the package ships, in all of its ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

SHIPPED = "stories"

PROMPT = "Once upon a time, there was a little"

WAYS = {"left-to-right": "left to right", "random": "random order", "diffusion": "masked diffusion", "blocks": "blocks"}
"""Order by its name in options, with what it is called here."""

GAP = 'lily wanted to play with her [...]. her mom said, "yes, you can."'

PHRASINGS = ("tom was sad because he lost his toy.", "tom could not find his toy and he cried.")
ANSWER = " then his mom"

TOKENS = 48


def show(console: Console, seed: int) -> str:
    """Write in every way, fill a gap and fuse two phrasings.

    Args:
        console: where it is printed.
        seed: decides what is drawn.

    Returns:
        A page that replays the text of masked diffusion.
    """
    import anyorder
    from anyorder.inspection.replay import Recording

    model, tokenizer = anyorder.load(SHIPPED, device="cpu", dtype="float32")
    size = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"{SHIPPED}: a Llama of {size / 1e6:.1f} million parameters, in the package, that writes stories in any order"
    )
    page = ""
    for order, called in WAYS.items():
        out = anyorder.generate(
            model, tokenizer, PROMPT, order=order, max_new_tokens=TOKENS, temperature=0.7, top_p=0.9, seed=seed
        )
        _print(console, f"{called}, {out.passes} passes", str(out.full_text))
        if order == "diffusion":
            page = Recording.of(out.trace, out.sequences, tokenizer).page(PROMPT)
    filled = anyorder.generate(model, tokenizer, GAP, order="any-order", gap_tokens=[2, 3, 4, 5, 6], seed=seed)
    _print(console, f"a gap filled: {GAP}", str(filled.full_text))
    fused = anyorder.fuse(model, tokenizer, list(PHRASINGS), suffix=ANSWER, max_new_tokens=TOKENS // 2, seed=seed)
    _print(console, f"two phrasings fused: {' / '.join(PHRASINGS)}", ANSWER.strip() + str(fused.text))
    return page


def _print(console: Console, title: str, text: str) -> None:
    console.print()
    console.print(title, style="bold")
    console.print(" ".join(text.split()))
