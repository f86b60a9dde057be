"""Chat templates: where they come from, and the one place that renders them.

A template is foreign code that comes with a checkpoint. It is rendered by transformers, in a process of its own that
has bounds on time and memory and serves all renderings of this process (see `process`).
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.checkpoints.chat_template import process as child
from anyorder.checkpoints.tokenizer.encoding import begin_tokens
from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLAIN = (
    r"BEGIN{% if tools %}tools:{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '\n\n' }}{% endif %}"
    r"{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    r"{{ message['role'] + ':\n' + message['content'] }}{% if message['role'] == 'assistant' %}END{% endif %}"
    r"{% endfor %}"
    r"{% if add_generation_prompt %}{% if messages %}{{ '\n\n' }}{% endif %}{{ 'assistant:\n' }}{% endif %}"
)

LARGEST = 1 << 20
"""Bytes of a template's file."""

FATAL = 3
"""Renderings that may end the process before a template is given up."""


class ChatTemplateError(UserError):
    """A chat template does not write messages.

    Attributes:
        reason: what was wrong, as part of a sentence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the chat template does not write these messages ({reason}): change them, or give another template."
        )
        self.reason = reason


@dataclass(frozen=True)
class Rendering:
    """What a template is to write.

    Attributes:
        messages: in the form of transformers' `apply_chat_template`.
        tools: descriptions of functions, in JSON's types.
        add_generation_prompt: whether to write the beginning of the assistant's next message.
        with_null: whether fields that are None are given to the template, most of which write them as "None".
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None = None
    add_generation_prompt: bool = False
    with_null: bool = False


# ---- templates -------------------------------------------------------------------------------------


def chat_template(tokenizer: PreTrainedTokenizerBase, end_token_id: int | None = None) -> str:
    """Give the tokenizer's own chat template, or a plain one.

    The plain one writes the role and a colon on a line and the message below it, with an empty line between messages.
    Each answer ends with the end token. The whole begins as any text of this tokenizer does.

    Args:
        end_token_id: written after an answer; the tokenizer's own end token unless given.
    """
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, str):
        return own
    if isinstance(own, Mapping) and own:  # several by name
        return str(own.get("default") or next(iter(own.values())))
    end = _written(tokenizer, tokenizer.eos_token_id if end_token_id is None else end_token_id)
    bos = tokenizer.bos_token_id
    return _PLAIN.replace("BEGIN", _written(tokenizer, bos if begin_tokens(tokenizer)[:1] == [bos] else None)).replace(
        "END", end
    )


def tool_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give the template that transformers takes where there are tools, if the tokenizer has several by name."""
    own = getattr(tokenizer, "chat_template", None)
    return str(own["tool_use"]) if isinstance(own, Mapping) and "tool_use" in own else None


def _written(tokenizer: PreTrainedTokenizerBase, token_id: int | None) -> str:
    """Return what writes a token in a template."""
    return "" if token_id is None else "{{ " + json.dumps(tokenizer.convert_ids_to_tokens(token_id)) + " }}"


def given_template(tokenizer: PreTrainedTokenizerBase | None, template: str | Path) -> str:
    """Give the chat template that a user names.

    Args:
        tokenizer: may have several templates, of which one is named.
        template: a template in Jinja, a file that holds one (`.json`: under `chat_template`), or such a name.

    Raises:
        UserError: it is none of these, or the file cannot be read.
    """
    text = str(template)
    named = getattr(tokenizer, "chat_template", None)
    if isinstance(named, Mapping) and text in named:
        return str(named[text])
    if _is_jinja(text):
        return text
    content = _content(Path(text).expanduser(), text)
    if not _is_jinja(content):
        raise UserError(
            f"template is the file {text!r}, which has no Jinja in it ({{{{ ... }}}} or {{% ... %}}) and writes no "
            "message: give a file with a chat template."
        )
    return content


def _is_jinja(text: str) -> bool:
    return "{{" in text or "{%" in text


def _content(file: Path, text: str) -> str:
    try:
        if not file.is_file():
            raise UserError(
                f"template is {text!r}, which is no file here and no template in Jinja: give the path of a file, or "
                "the template itself."
            )
        size = file.stat().st_size
        if size > LARGEST:
            raise UserError(
                f"template is the file {text!r} of {size} bytes: give a chat template, of at most {LARGEST}."
            )
        content = file.read_text(encoding="utf-8-sig")
        return str(json.loads(content)["chat_template"]) if file.suffix.lower() == ".json" else content
    except UserError:
        raise
    except UnicodeDecodeError:
        raise UserError(f"template is the file {text!r}, which is not UTF-8: convert it to UTF-8.") from None
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError):
        raise UserError(
            f"template is the file {text!r}, which is no JSON object with the field `chat_template`: give such an "
            "object, or a file of Jinja that ends in .jinja."
        ) from None
    except (OSError, ValueError) as error:  # a name too long, or with NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"template is {text[:80]!r}, which cannot be read ({reason}): give the path of a file, or the template."
        ) from None


# ---- rendering -------------------------------------------------------------------------------------


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool,
) -> str:
    """Write messages as text, as transformers' `apply_chat_template` does.

    Args:
        tokenizer: gives the special tokens that templates write by name.
        template: in Jinja.
        messages: each with `role` and `content`, and perhaps more fields of OpenAI's form.
        tools: descriptions of functions in JSON's types, or Python functions.
        add_generation_prompt: whether to write the beginning of the assistant's next message.

    Raises:
        ChatTemplateError: the template raises, writes nothing, or takes too much time or memory.
    """
    [text] = render_all(tokenizer, template, [Rendering(messages, tools, add_generation_prompt)])
    if isinstance(text, ChatTemplateError):
        raise text
    return text


def render_all(
    tokenizer: PreTrainedTokenizerBase, template: str, renderings: Sequence[Rendering]
) -> list[str | ChatTemplateError]:
    """Write each of several lists of messages, or say why that cannot be; see `render`."""
    tokens = {name: _plain(token) for name, token in tokenizer.special_tokens_map.items()}
    return _SERVICE.texts(template, tokens, renderings)


def _plain(token: Any) -> Any:
    return [str(item) for item in token] if isinstance(token, (list, tuple)) else str(token)


def _as_json(rendering: Rendering) -> list[Any]:
    messages = [
        {key: value for key, value in message.items() if value is not None or rendering.with_null}
        for message in rendering.messages
    ]
    tools = None if not rendering.tools else [_description(tool) for tool in rendering.tools]
    return [messages, tools, rendering.add_generation_prompt]


def _description(tool: Any) -> Any:
    if not callable(tool):
        return tool
    from transformers.utils import get_json_schema

    return get_json_schema(tool)


class _Service:
    """The process that renders, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._fatal: dict[str, list[str]] = {}

    def texts(
        self, template: str, tokens: Mapping[str, Any], renderings: Sequence[Rendering]
    ) -> list[str | ChatTemplateError]:
        results: list[str | ChatTemplateError] = []
        with self._lock:
            while len(results) < len(renderings):
                fatal = self._fatal.get(template, [])
                if len(fatal) >= FATAL:
                    results += [ChatTemplateError(fatal[-1]) for _ in renderings[len(results) :]]
                    break
                left = renderings[len(results) :]
                done = self._exchange({"template": template, "tokens": tokens}, left)
                results += done
                if len(done) < len(left):  # the next one ended the process
                    reason = self._end()
                    self._fatal.setdefault(template, []).append(reason)
                    results.append(ChatTemplateError(reason))
        return results

    def _exchange(
        self, request: Mapping[str, Any], renderings: Sequence[Rendering]
    ) -> list[str | ChatTemplateError]:  # fmt: skip
        try:
            line = json.dumps({**request, "renderings": [_as_json(rendering) for rendering in renderings]})
        except (TypeError, ValueError, RecursionError) as error:
            raise ChatTemplateError(f"messages or tools are no JSON: {error}") from None
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        results: list[str | ChatTemplateError] = []
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            for _ in renderings:
                response = process.stdout.readline()
                if not response.endswith(b"\n"):
                    break
                fields = json.loads(response)
                results.append(fields["text"] if "text" in fields else ChatTemplateError(fields["error"]))
        except BrokenPipeError:
            pass
        except BaseException:  # an interrupt between a request and its response
            process.kill()
            self._end()
            raise
        return results

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, child.__file__, json.dumps([str(path) for path in sys.path])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process

    def _end(self) -> str:
        """Forget a process that has ended, and say why it has."""
        assert self._process is not None
        process, self._process = self._process, None
        with process:
            pass
        if process.returncode is not None and -process.returncode == getattr(child.signal, "SIGPROF", 0):
            return f"it takes more than {child.SECONDS:g} seconds"
        return f"it ends the process that writes it, exit status {process.returncode}"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process.wait()
            self._process = None

    def forked(self) -> None:
        """Forget the parent's process in a new one."""
        self._lock = threading.Lock()
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process.returncode = 0  # it is not ours to wait for
            self._process = None


_SERVICE = _Service()
atexit.register(_SERVICE.close)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_SERVICE.forked)
