"""`anyorder serve`."""

from __future__ import annotations


def command(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    name: str | None = None,
    max_running: int = 16,
    max_queued: int = 64,
    timeout: float = 600.0,
    max_new_tokens: int | None = None,
    tokenizer: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    revision: str | None = None,
) -> None:
    """Serve a model over HTTP, by OpenAI's routes and some of its own; each request says how it is to be written.

    Args:
        model: Hugging Face or Meta folder, llama2.c file, or hub id (org/name).
        host: Address to listen at; 0.0.0.0 lets other machines in.
        port: Port to listen at; 0 takes a free one.
        api_key: Key that requests must carry as "Authorization: Bearer KEY".
        name: What requests call the model; the last part of its path unless given.
        max_running: Texts that are written at a time at most.
        max_queued: Requests that wait at most; further ones are refused with status 429.
        timeout: Seconds that a request may take, from its arrival to its end.
        max_new_tokens: Tokens that a request may have written to each text; what the model was trained on unless given.
        tokenizer: Folder, file or hub id of the tokenizer, if it is not with the model.
        dtype: Of the weights: auto (as stored), float32, bfloat16, float16, float64, or int8 (those of the
            projections rounded to 8 bits).
        device: Such as cpu or cuda; auto takes a GPU where there is one.
        attention: auto, eager, sdpa, flex or flash.
        revision: Branch, tag or commit of a model on the hub.
    """
    import anyorder
    from anyorder.cli._console import PlainConsole
    from anyorder.serving.engine import Engine, Limits
    from anyorder.serving.run import listen, run

    limits = Limits(running=max_running, queued=max_queued, seconds=timeout)
    socket = listen(host, port)
    notes = PlainConsole(stderr=True)
    with socket:
        with notes.status(f"reading {model}"):
            network, words = anyorder.load(
                model, dtype=dtype, device=device, attention=attention, tokenizer=tokenizer, revision=revision
            )
        called = name or model.rstrip("/").rpartition("/")[2]
        place = f"http://{host}:{socket.getsockname()[1]}/v1"
        notes.print(f"{called} is served at {place}; Ctrl-C ends", soft_wrap=True)
        run(network, words, called, socket, Engine(limits), api_key=api_key, most_tokens=max_new_tokens)
