"""`anyorder compile`."""

from __future__ import annotations

from anyorder.cli._options import ModelOptions


def command(model: str, *, loading: ModelOptions) -> None:
    """Compile a network's layers, so that later runs are fast at once.

    All modes of the network take them. The code is kept in ~/.cache/anyorder/layers (XDG_CACHE_HOME) and found there by
    every command and function that runs this network, or one of the same shape, on this machine. See docs/speed.md.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, hub id (org/name), or stories, which is shipped.
        loading: how the model is read.
    """
    import time

    from anyorder.api.compiling import compile_layers
    from anyorder.cli._console import PlainConsole
    from anyorder.model.packages import folder_of_packages

    notes = PlainConsole(stderr=True)
    loaded, _ = loading.load(model, notes)
    started = time.perf_counter()
    made = compile_layers(loaded, report=lambda line: notes.print(line, soft_wrap=True))
    seconds = time.perf_counter() - started
    done = f"{made} packages were made in {seconds:.0f} s" if made else "all packages are there already"
    notes.print(f"{done}; they are kept in {folder_of_packages()}", soft_wrap=True)
