"""The process in which chat templates are rendered: foreign code, with bounds on its time and its memory.

It is run as a script by `render`, beside it. A request is a line of JSON with the template, the special tokens and a
list of renderings; the response is a line for each rendering, `{"text": ...}` or `{"error": ...}`. A rendering that
takes too long ends the process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import IO, Any

SECONDS = 5.0
"""CPU time of one rendering, the first of which compiles the template."""

MEMORY = 1 << 29
"""Bytes that all renderings may need beyond what the process has at its start."""

LONGEST = 1 << 24
"""Characters that a rendering may have beyond sixteen times the length of its request."""


def main() -> None:
    """Serve requests until the standard input ends."""
    sys.path[:] = json.loads(sys.argv[1])
    # What a library prints must not come between the responses.
    responses = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    from transformers.utils.chat_template_utils import render_jinja_template

    _bound_memory()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        for messages, tools, asks in request["renderings"]:
            _bound_time(SECONDS)
            response = _response(
                render_jinja_template, request, messages, tools, asks, longest=LONGEST + 16 * len(line)
            )
            _bound_time(0.0)
            _send(responses, response)
        responses.flush()


def _response(
    render: Any, request: dict[str, Any], messages: list[Any], tools: list[Any] | None, asks: bool, *, longest: int
) -> dict[str, str]:
    try:
        # Special tokens under the names of these arguments would collide with them.
        tokens = {name: token for name, token in request["tokens"].items() if name not in _ARGUMENTS}
        [text], _ = render(
            conversations=[messages], tools=tools, chat_template=request["template"], add_generation_prompt=asks,
            **tokens,
        )  # fmt: skip
        if len(text) > longest:
            return {"error": f"it writes {len(text)} characters"}
        text.encode()
    except MemoryError:
        return {"error": f"it takes more than {MEMORY >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it calls itself without an end"}
    except UnicodeEncodeError:
        return {"error": "it writes half a character, a surrogate alone"}
    except Exception as error:  # of foreign code: anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return {"error": reason.rstrip(".")}
    return {"text": text} if text else {"error": "it writes nothing"}


_ARGUMENTS = {"conversations", "tools", "chat_template", "add_generation_prompt", "messages", "documents"}


def _send(responses: IO[bytes], response: dict[str, str]) -> None:
    responses.write(json.dumps(response).encode() + b"\n")
    responses.flush()


def _bound_time(seconds: float) -> None:
    """End the process when it has computed for so long from now on; 0 takes the bound away."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _bound_memory() -> None:
    try:
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = size + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    except (ImportError, OSError, ValueError):  # a system without such bounds
        pass


if __name__ == "__main__":
    main()
