"""`anyorder info`."""

from __future__ import annotations


def command(model: str, *, dtype: str = "auto", device: str = "auto", attention: str = "auto") -> None:
    """Describe a checkpoint without reading its weights.

    Args:
        model: Hugging Face folder or llama2.c file.
        dtype: Data type to calculate with: auto (as stored), float32, bfloat16, float16 or float64.
        device: Where the network would run, such as cpu or cuda; auto takes a GPU where there is one.
        attention: Attention backend to ask for: auto, eager, sdpa, flex or flash.
    """
    import torch
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from anyorder.attention import resolve_backend
    from anyorder.checkpoints import read_checkpoint
    from anyorder.checkpoints.weights import resolve_device, resolve_dtype
    from anyorder.cli._describe import heads, in_bytes, layers, rotary
    from anyorder.model.llama import Llama

    checkpoint = read_checkpoint(model)
    config = checkpoint.config
    kept = checkpoint.dtype if dtype == "auto" else resolve_dtype(dtype)
    place = resolve_device(device)
    backend = resolve_backend(attention, place, kept)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Llama(config).parameters())
    cache_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * kept.itemsize

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in {
        "checkpoint": model,
        "parameters": f"{parameters:,}",
        "weights": f"{in_bytes(parameters * kept.itemsize)} in {str(kept).removeprefix('torch.')}",
        "layers": layers(config.layers),
        "width": f"{config.hidden_size}, feed-forward {config.intermediate_size}",
        "heads": heads(config),
        "vocabulary": f"{config.vocab_size:,} tokens, {'tied' if config.tie_word_embeddings else 'untied'} head",
        "trained length": f"{config.max_position_embeddings:,} tokens",
        "rotary": rotary(config),
        "key-value cache": f"{in_bytes(cache_bytes)} per token, "
        f"{in_bytes(cache_bytes * config.max_position_embeddings)} at the trained length",
        "attention": f"{backend.name} on {place}: {backend.reason}",
    }.items():
        table.add_row(name, value)
    Console(highlight=False).print(table)
