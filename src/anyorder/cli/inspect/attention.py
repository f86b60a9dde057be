"""`anyorder inspect attention`."""

from __future__ import annotations

from pathlib import Path


def command(
    model: str,
    text: str,
    *,
    masks: int = 0,
    mode: str | None = None,
    plot: Path | None = None,
    tokenizer: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
) -> None:
    """Show where the heads of a network look: a table, and a picture of every map.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, or hub id (org/name).
        text: What is read.
        masks: So many mask tokens follow the text, for networks that diffuse; the table is about what they look at.
        mode: Mode, which says who sees whom, such as diffusion; that of the model unless given.
        plot: New file for the picture, such as attention.png.
        tokenizer: Folder, file or hub id of the tokenizer, if it is not with the model.
        dtype: Of the weights: auto (as stored), float32, bfloat16, float16 or float64.
        device: Such as cpu or cuda; auto takes a GPU where there is one.
        revision: Branch, tag or commit of a model on the hub.
    """
    from rich.table import Table

    import anyorder
    from anyorder.api.text import prompt_ids
    from anyorder.cli._console import PlainConsole
    from anyorder.errors import UserError
    from anyorder.inspection.attention import HeadStatistics, analyze_attention_patterns
    from anyorder.inspection.replay import token_pieces
    from anyorder.utils.files import check_place

    if masks < 0:
        raise UserError(f"masks is {masks}: give a number of mask tokens from 0 on.")
    if plot is not None:
        check_place(plot, folder=False)
    notes = PlainConsole(stderr=True)
    with notes.status(f"reading {model}"):
        network, words = anyorder.load(model, dtype=dtype, device=device, tokenizer=tokenizer, revision=revision)
    of_mode = network.config.mode(mode or network.config.default_mode)
    if masks and of_mode.mask_token_id is None:
        raise UserError(f"masks is {masks}, but the mode {of_mode.name!r} has no mask token: give --mode diffusion.")
    [ids], _ = prompt_ids(text, words, network.config.bos_token_id)
    masked = [of_mode.mask_token_id or 0] * masks
    rows = range(len(ids), len(ids) + masks) if masks else None
    patterns = analyze_attention_patterns(
        network, [*ids, *masked], mode=of_mode, prompt_length=len(ids) if masks else 0, rows=rows
    )
    table = Table(box=None, pad_edge=False)
    shown = HeadStatistics._fields[2:] if masks else HeadStatistics._fields[2:-2]
    for name in ("layer", *shown):
        table.add_column(name, justify="right")
    for layer in patterns.of_layers():
        table.add_row(str(layer.layer), *(f"{getattr(layer, name):.2f}" for name in shown))
    PlainConsole().print(table)
    if plot is not None:
        pieces = token_pieces(words, set(patterns.ids)) if words is not None else {}
        patterns.save_plot(plot, [pieces.get(token_id, str(token_id)) for token_id in patterns.ids])
        notes.print(f"wrote {plot}", soft_wrap=True)
