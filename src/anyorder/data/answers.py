"""The text of an answer behind its prompt, found in what a chat template writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os.path import commonprefix

from anyorder.data.forms import BadRecordError
from anyorder.data.records import Message
from anyorder.data.turn_end import TurnEnd

_OPENED = re.compile(r"\s*<(\w+)>\s*\Z")
"""A prompt that opens a thought: `<think>` and a line break at its end."""


@dataclass(frozen=True)
class Answer:
    """An answer and its prompt.

    Attributes:
        prompt: what the network will get when it writes the answer.
        learnt: what follows: the answer, up to the token that ends the turn.
        said: what the assistant says, as the data have it.
        closed: whether it ends with a token that ends the turn.
    """

    prompt: str
    learnt: str
    said: str
    closed: bool

    @property
    def texts(self) -> tuple[str, str]:
        """The texts whose tokens are needed: the prompt, and the whole."""
        return self.prompt, self.prompt + self.learnt


def written_answer(prompt: str, whole: str, message: Message, turn_end: TurnEnd) -> Answer:
    """Find what is learnt of an answer.

    Args:
        prompt: the messages before it, and what asks the assistant to speak.
        whole: the messages up to it.
        message: the answer.
        turn_end: how the template ends a turn.

    Raises:
        BadRecordError: the template leaves out the answer.
    """
    content = turn_end.without(message.content)
    text, end = turn_end.split(whole)
    opened = ""
    if text.startswith(prompt):
        body = text[len(prompt) :]
    else:  # what asks for an answer is no beginning of it
        shared = len(commonprefix([prompt, text]))  # noqa: RUF071 - of characters
        opened, body = prompt[shared:], text[shared:]
        if opened.strip() and not _OPENED.match(opened):  # earlier messages are written otherwise behind a prompt
            opened, body = "", text[max(text.rfind(content.strip()), 0) :] if content.strip() in text else ""
    body = _spoken(body, content, message, opened)
    return Answer(prompt=prompt, learnt=body + end, said=message.content, closed=turn_end.closes(end))


def _spoken(body: str, content: str, message: Message, opened: str) -> str:
    """The answer as written, with a thought that the template leaves out, behind what the prompt has opened of it."""
    thought, _, final = content.rpartition("</think>")
    said = str(message.given.get("content") or "") if message.given is not None else content
    if said.strip() not in body:
        if not thought.strip() or final.strip() not in body:
            raise BadRecordError(
                "has an answer that the chat template leaves out or changes",
                "give a template that writes messages as they are",
            )
        body = content  # templates that leave out thoughts mean earlier ones, not the one to be learnt
    tag = _OPENED.match(opened)
    if tag is None:
        return body.lstrip() if opened else body
    opening, closing = f"<{tag[1]}>", f"</{tag[1]}>"
    body = body.lstrip().removeprefix(opening).lstrip("\n")
    return body if closing in body else f"\n{closing}\n\n{body}"
