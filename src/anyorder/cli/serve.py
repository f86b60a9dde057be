"""`anyorder serve`."""

from __future__ import annotations

from anyorder.cli._options import ModelOptions


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
    loading: ModelOptions,
) -> None:
    """Serve a model over HTTP, each request in the mode that it names.

    The routes are those of OpenAI, so that their clients work unchanged, and some of our own: see docs/serving.md.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, or hub id (org/name).
        host: Address to listen at; 0.0.0.0 lets other machines in.
        port: Port to listen at; 0 takes a free one.
        api_key: Key that requests must carry as "Authorization: Bearer KEY".
        name: What requests call the model; the last part of its path unless given.
        max_running: Texts that are written at a time at most.
        max_queued: Requests that wait at most; further ones are refused with status 429.
        timeout: Seconds that a request may take, from its arrival to its end.
        max_new_tokens: Tokens that a request may have written to each text; what the model was trained on unless given.
        loading: how the model is read.
    """
    from anyorder.cli._console import PlainConsole
    from anyorder.serving.engine import Engine, Limits
    from anyorder.serving.run import listen, run

    limits = Limits(running=max_running, queued=max_queued, seconds=timeout)
    socket = listen(host, port)
    notes = PlainConsole(stderr=True)
    with socket:
        loaded, tokenizer = loading.load(model, notes)
        called = name or model.rstrip("/").rpartition("/")[2]
        place = f"http://{host}:{socket.getsockname()[1]}/v1"
        notes.print(f"{called} is served at {place}; Ctrl-C ends", soft_wrap=True)
        run(loaded, tokenizer, called, socket, Engine(limits), api_key=api_key, most_tokens=max_new_tokens)
