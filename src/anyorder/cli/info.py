"""`anyorder info`."""

from __future__ import annotations


def command(
    model: str,
    *,
    heads: bool = False,
    no_measure: bool = False,
    parallel: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    revision: str | None = None,
) -> None:
    """Describe a checkpoint without reading its weights.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, hub id (org/name), or stories, which is shipped.
        heads: Compare the network with versions that have more or fewer key-value heads: size, cache, and time per
            token, taken with random weights.
        no_measure: Leave out the time per token.
        parallel: Say what a device would hold and send if the network were split over many, such as tp=8,fsdp=64
            (docs/parallel.md).
        dtype: Data type to calculate with: auto (as stored), float32, bfloat16, float16 or float64.
        device: Where the network would run, such as cpu or cuda; auto takes a GPU where there is one.
        attention: Attention backend to ask for: auto, eager, sdpa, flex or flash.
        revision: Branch, tag or commit of a model on the hub.
    """
    from rich import box
    from rich.table import Table

    from anyorder.attention import resolve_backend
    from anyorder.checkpoints import read_checkpoint
    from anyorder.checkpoints.weights import resolve_device, resolve_dtype
    from anyorder.cli import _describe
    from anyorder.cli._console import PlainConsole
    from anyorder.cli._describe import in_bytes
    from anyorder.inspection import head_sharing
    from anyorder.parallel.sizes import Layout, Sizes

    checkpoint = read_checkpoint(model, revision=revision)
    config = checkpoint.config
    kept = checkpoint.dtype if dtype == "auto" else resolve_dtype(dtype)
    place = resolve_device(device)
    backend = resolve_backend(attention, place, kept)
    sizes = None if parallel is None else Sizes(config, Layout.of(parallel), kept)
    parameters, cache_bytes = head_sharing.parameter_count(config), head_sharing.cache_bytes(config, kept)

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in {
        "checkpoint": model,
        "parameters": f"{parameters:,}",
        "weights": f"{in_bytes(parameters * kept.itemsize)} in {str(kept).removeprefix('torch.')}",
        "layers": _describe.layers(config.layers),
        "width": f"{config.hidden_size}, feed-forward {config.intermediate_size}",
        **({} if config.experts is None else {"experts": _describe.experts(config.experts)}),
        "heads": _describe.heads(config),
        "vocabulary": f"{config.vocab_size:,} tokens, {'tied' if config.tie_word_embeddings else 'untied'} head",
        **({} if config.vision is None else {"vision": _describe.vision(config.vision)}),
        "writes": _describe.modes(config),
        "trained length": f"{config.max_position_embeddings:,} tokens",
        "rotary": _describe.rotary(config.rotary),
        "key-value cache": f"{in_bytes(cache_bytes)} per token, "
        f"{in_bytes(cache_bytes * config.max_position_embeddings)} at the trained length",
        "attention": f"{backend.name} on {place}: {backend.reason}",
        **({} if sizes is None else _describe.split(sizes)),
    }.items():
        table.add_row(name, value)
    console = PlainConsole()
    console.print(table)
    if heads:
        needed, free = head_sharing.bytes_to_time(config, kept), head_sharing.free_bytes(place)
        timed = not no_measure and needed < free
        with PlainConsole(stderr=True).status("taking the time"):
            compared = head_sharing.compare_head_sharing(config, kept, place, backend=backend.name, timed=timed)
        console.print(_describe.head_sharing(compared, config))
        if timed:
            context = head_sharing.context_length(config)
            console.print(f"time: one token after {context:,} others, batch 1, random weights, {place}, not compiled")
        elif not no_measure:
            console.print(f"time: not taken, since it needs {in_bytes(needed)} of memory and {in_bytes(free)} are free")
