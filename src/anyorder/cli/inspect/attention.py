"""`anyorder inspect attention`."""

from __future__ import annotations

from pathlib import Path

from anyorder.cli._options import CheckpointOptions


def command(
    model: str,
    text: str,
    *,
    masks: int = 0,
    mode: str | None = None,
    plot: Path | None = None,
    loading: CheckpointOptions,
) -> None:
    """Measure what the heads of a network attend to: a table, and a picture of every map.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, hub id (org/name), or stories, which is shipped.
        text: What is read.
        masks: So many mask tokens follow the text, for networks that diffuse; the table is about their attention.
        mode: Mode, which says who sees whom, such as diffusion; that of the model unless given.
        plot: New file for the picture, such as attention.png.
        loading: how the model is read.
    """
    from rich.table import Table

    from anyorder.api.prompts import prompt_ids
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
    loaded, tokenizer = loading.load(model, notes)
    of_mode = loaded.config.mode(mode or loaded.config.default_mode)
    if masks and of_mode.mask_token_id is None:
        raise UserError(f"masks is {masks}, but the mode {of_mode.name!r} has no mask token: give --mode diffusion.")
    [ids], _ = prompt_ids(text, tokenizer, loaded.config.bos_token_id)
    masked = [of_mode.mask_token_id or 0] * masks
    rows = range(len(ids), len(ids) + masks) if masks else None
    patterns = analyze_attention_patterns(
        loaded, [*ids, *masked], mode=of_mode, prompt_length=len(ids) if masks else 0, rows=rows
    )
    table = Table(box=None, pad_edge=False)
    shown = HeadStatistics._fields[2:] if masks else HeadStatistics._fields[2:-2]
    for name in ("layer", *shown):
        table.add_column(name, justify="right")
    for layer in patterns.of_layers():
        table.add_row(str(layer.layer), *(f"{getattr(layer, name):.2f}" for name in shown))
    PlainConsole().print(table)
    if plot is not None:
        pieces = token_pieces(tokenizer, set(patterns.ids)) if tokenizer is not None else {}
        patterns.save_plot(plot, [pieces.get(token_id, str(token_id)) for token_id in patterns.ids])
        notes.print(f"wrote {plot}", soft_wrap=True)
