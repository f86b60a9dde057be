"""Messages of a chat as token ids, in which no content can pass for a special token.

A chat template writes special tokens between contents, and its text is then made token ids. So where a content has the
text of a special token, a mark stands for that text while the template is rendered, and its characters become tokens
of their own.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anyorder.checkpoints.chat_template.render import chat_template, render
from anyorder.checkpoints.tokenizer.encoding import continuing_tokens, plain_tokens
from anyorder.errors import UserError
from anyorder.serving.fields import FieldError, require
from anyorder.utils.annotations import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST_MARK = 0xF0000
"""The first of the characters that stand for special tokens: of a plane for private use."""

PHRASING = "\U000ffffd"
"""Stands for the content that has several phrasings."""

MARKS = re.compile("[\U000f0000-\U000ffffc]")


class Dialogues:
    """Turns messages into token ids.

    Args:
        tokenizer: of the network; a copy of it is used, as its settings change.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = copy.deepcopy(tokenizer)
        self.lock = threading.Lock()
        added = self.tokenizer.added_tokens_decoder.values() if hasattr(tokenizer, "added_tokens_decoder") else ()
        special = {str(token) for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        self.special = sorted(special, key=len, reverse=True)
        self.any_special = re.compile("|".join(map(re.escape, self.special))) if self.special else None

    def ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of messages and of what begins the answer.

        Raises:
            UserError: a message has no form that is known, or the chat template refuses them.
        """
        return self._encode(self._rendered([_plain(number, one) for number, one in enumerate(messages)]))

    def parts(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], str, list[int]]:
        """Return the token ids before and behind the content of the last message, and that content between them.

        Raises:
            UserError: see `ids`; the chat template does not write the last content exactly once.
        """
        plain = [_plain(number, one) for number, one in enumerate(messages)]
        content, plain[-1]["content"] = plain[-1]["content"], PHRASING
        before, *behind = self._rendered(plain).split(PHRASING)
        if len(behind) != 1:
            raise UserError(
                "phrasings are given, but the chat template leaves out the last message: leave them out, too."
            )
        return self._encode(before), content, self._encode(behind[0], goes_on=True)

    def _rendered(self, messages: Sequence[Mapping[str, Any]]) -> str:
        marked = [{name: self._marked(value) for name, value in message.items()} for message in messages]
        return render(self.tokenizer, chat_template(self.tokenizer), marked, add_generation_prompt=True)

    def _marked(self, text: str) -> str:
        if MARKS.search(text):
            raise UserError(f"the message {shown(text)} has characters of the private plane 15: leave them out.")
        if self.any_special is None:
            return text
        return self.any_special.sub(lambda found: chr(FIRST_MARK + self.special.index(found[0])), text)

    def _encode(self, text: str, *, goes_on: bool = False) -> list[int]:
        ids: list[int] = []
        start = 0
        with self.lock:
            for mark in [*MARKS.finditer(text), None]:
                part = text[start : mark.start() if mark else None]
                first = start == 0 and not goes_on
                ids += plain_tokens(self.tokenizer, part) if first else continuing_tokens(self.tokenizer, part)
                if mark is not None:
                    special = self.special[ord(mark[0]) - FIRST_MARK]
                    ids += self.tokenizer(special, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                    start = mark.end()
        return ids


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
