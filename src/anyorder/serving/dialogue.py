"""Messages of a chat, in the forms that clients send them, as token ids."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from anyorder.checkpoints.chat_template.dialogue import dialogue_parts, dialogue_template, dialogue_tokens
from anyorder.checkpoints.chat_template.render import render
from anyorder.errors import UserError
from anyorder.serving.fields import FieldError, require
from anyorder.utils.annotations import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Result = TypeVar("Result")

PHRASING = "\ue0a2"
"""Stands for the content that has several phrasings, while a template is rendered: of Unicode's private use."""


class Encoder:
    """The tokenizer for text that comes in, which is used by one thread at a time.

    Args:
        tokenizer: of the network; a copy of it is used, as its settings change.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()

    def call(self, function: Callable[[PreTrainedTokenizerBase], Result]) -> Result:
        """Call a function of the tokenizer."""
        with self._lock:
            return function(self.tokenizer)

    def dialogue(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of messages and of what begins the answer.

        Args:
            messages: see `plain_messages`.

        Raises:
            UserError: the chat template refuses them.
        """
        return self.call(lambda tokenizer: dialogue_tokens(tokenizer, messages))

    def text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return what the chat template writes for messages, up to the beginning of the answer, as text.

        Raises:
            UserError: see `dialogue`.
        """
        return self.call(
            lambda tokenizer: render(tokenizer, dialogue_template(tokenizer), messages, add_generation_prompt=True)
        )

    def around_last(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], str, list[int]]:
        """Return the token ids before and behind the content of the last message, and that content between them.

        Raises:
            UserError: see `dialogue`; or the chat template does not write the last content exactly once.
        """
        *before, last = messages
        marked = [*before, {**last, "content": PHRASING}]
        parts = self.call(lambda tokenizer: dialogue_parts(tokenizer, marked, PHRASING))
        if len(parts) != 2:
            raise UserError("phrasings are given, but the chat template leaves out the last message: leave them out.")
        return parts[0], last["content"], parts[1]


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return messages with role and content, and the `data:` URLs of their images.

    The content is text, or where there are images a list of parts of the types "text" and "image".

    Raises:
        FieldError: a message has no form that is known.
    """
    links: list[str] = []
    return [_plain(number, message, links) for number, message in enumerate(messages)], links


def _plain(number: int, message: Mapping[str, Any], links: list[str]) -> dict[str, Any]:
    """Return a message with role and content; add the links of its images."""
    for name in message:
        if name not in ("role", "content", "name", "refusal") and message[name] is not None:
            raise FieldError("messages", f"message {number} has the field {shown(name)}: give role and content alone.")
    role, content = message.get("role"), message.get("content")
    require(f"the role of message {number}", role, isinstance(role, str), "give system, user or assistant")
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [_part(number, part, links) for part in content]
        has_images = any(part["type"] == "image" for part in parts)
        content = parts if has_images else "".join(part["text"] for part in parts)
    else:
        require(f"the content of message {number}", content, isinstance(content, str), "give text")
    return {"role": "system" if role == "developer" else str(role), "content": content}


def _part(number: int, part: Any, links: list[str]) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image_url":
        link = part.get("image_url")
        place = link.get("url") if isinstance(link, Mapping) else link
        if not str(place).startswith("data:"):
            raise FieldError(
                "messages", f"message {number} has an image at {shown(place)}: nothing is fetched, so give a data: URL."
            )
        links.append(str(place))
        return {"type": "image"}
    if kind != "text" or not isinstance(part.get("text"), str):
        raise FieldError(
            "messages", f"message {number} has the part {shown(part)}: give parts of the types text and image_url."
        )  # fmt: skip
    return {"type": "text", "text": str(part["text"])}
