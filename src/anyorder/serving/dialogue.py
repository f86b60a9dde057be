"""Messages of a chat, in the forms that clients send them, as token ids."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from anyorder.checkpoints.chat_template.dialogue import dialogue_parts, dialogue_tokens
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

        Raises:
            UserError: a message has no form that is known, or the chat template refuses them.
        """
        plain = [_plain(number, one) for number, one in enumerate(messages)]
        return self.call(lambda tokenizer: dialogue_tokens(tokenizer, plain))

    def around_last(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], str, list[int]]:
        """Return the token ids before and behind the content of the last message, and that content between them.

        Raises:
            UserError: see `dialogue`; or the chat template does not write the last content exactly once.
        """
        plain = [_plain(number, one) for number, one in enumerate(messages)]
        content, plain[-1]["content"] = plain[-1]["content"], PHRASING
        parts = self.call(lambda tokenizer: dialogue_parts(tokenizer, plain, PHRASING))
        if len(parts) != 2:
            raise UserError("phrasings are given, but the chat template leaves out the last message: leave them out.")
        return parts[0], content, parts[1]


def _plain(number: int, message: Mapping[str, Any]) -> dict[str, str]:
    """A message with role and content, both text."""
    for name in message:
        if name not in ("role", "content", "name", "refusal") and message[name] is not None:
            raise FieldError("messages", f"message {number} has the field {shown(name)}: give role and content alone.")
    role, content = message.get("role"), message.get("content")
    require(f"the role of message {number}", role, isinstance(role, str), "give system, user or assistant")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_text_of_part(number, part) for part in content)
    require(f"the content of message {number}", content, isinstance(content, str), "give text")
    return {"role": "system" if role == "developer" else str(role), "content": str(content)}


def _text_of_part(number: int, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image_url":
        link = part.get("image_url")
        place = link.get("url") if isinstance(link, Mapping) else link
        if not str(place).startswith("data:"):
            raise FieldError(
                "messages", f"message {number} has an image at {shown(place)}: nothing is fetched, so give a data: URL."
            )
        raise FieldError(
            "messages", f"message {number} has an image, but this network reads text alone: leave it out."
        )  # fmt: skip
    if kind != "text" or not isinstance(part.get("text"), str):
        raise FieldError("messages", f"message {number} has the part {shown(part)}: give parts of the type text.")
    return str(part["text"])
