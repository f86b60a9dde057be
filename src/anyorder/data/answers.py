"""The text of an answer behind its prompt, found in what a chat template writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from anyorder.data.forms import BadRecordError
from anyorder.data.records import Message
from anyorder.data.turn_end import TurnEnd, beginning

_OPENED = re.compile(r"\s*<([\w:]+)>\s*\Z")
"""A prompt that opens a thought: `<think>` and a line break at its end."""

_TAG = re.compile(r"</[^<>]*>\s*\Z")
"""The end of a thought at the end of a prompt."""

_EMPTY = re.compile(r"\A\s*(<[\w:]+>\s*)?</[\w:]+>\s*")
"""An empty thought at the beginning of an answer."""


@dataclass(frozen=True)
class Answer:
    """An answer and its prompt.

    Attributes:
        prompt: what the network will get when it writes the answer.
        target: what follows and is trained on: the answer, up to the token that ends the turn.
        said: what the assistant says, as the data have it.
        closed: whether it ends with a token that ends the turn.
    """

    prompt: str
    target: str
    said: str
    closed: bool

    @property
    def texts(self) -> tuple[str, str]:
        """The texts whose tokens are needed: the prompt, and the whole."""
        return self.prompt, self.prompt + self.target


def written_answer(prompt: str, whole: str, message: Message, turn_end: TurnEnd) -> Answer:
    """Find what an answer is trained on.

    Args:
        prompt: the messages before it, and the generation prompt.
        whole: the messages up to it.
        message: the answer.
        turn_end: how the template ends a turn.

    Raises:
        BadRecordError: the template leaves out the answer, or a part of it, or does not end in it.
    """
    said = _Said.of(message, turn_end)
    text, end = turn_end.split(whole)
    opened, body = _parted(prompt, text, said.text, turn_end)
    body = said.completed(body)
    if turn_end.found and not said.calls and (turn_end.asks_again or not body.rstrip().endswith(said.text.rstrip())):
        raise BadRecordError(
            "has an answer behind which the chat template writes more than the end of the turn",
            "give a template that ends in the answer",
        )
    body = _opened(body, opened if opened else prompt, is_written=bool(opened))
    return Answer(prompt=prompt, target=body + end, said=message.content, closed=turn_end.closes(end))


@dataclass(frozen=True)
class _Said:
    """The parts of an answer, each of which must be trained on.

    Attributes:
        whole: all of it, as plain text.
        thought, text: what is thought, and what is said.
        calls: names of the functions that are called.
    """

    whole: str
    thought: str
    text: str
    calls: Sequence[str]

    @classmethod
    def of(cls, message: Message, turn_end: TurnEnd) -> _Said:
        whole = turn_end.without(message.content)
        if message.given is None:
            thought, _, text = whole.rpartition("</think>")
            return cls(whole, thought.strip().removeprefix("<think>").strip(), text.strip(), ())
        calls = [call["function"]["name"] for call in message.given.get("tool_calls", ())]
        thought = str(message.given.get("reasoning_content") or "")
        return cls(whole, thought.strip(), turn_end.without(str(message.given.get("content") or "")).strip(), calls)

    def completed(self, body: str) -> str:
        """Return the answer as a template writes it, with a thought that it leaves out.

        Raises:
            BadRecordError: more than a thought is left out.
        """
        if self.whole.strip() and self.whole.strip() in body:
            return body
        before, found, behind = body.rpartition(self.text) if self.text else ("", "", body)
        left_out = "" if found or not self.text else "an answer"
        rest = before + behind
        if any(rest.count(name) < self.calls.count(name) for name in self.calls):
            left_out = "a call of a tool"
        if left_out:
            raise BadRecordError(
                f"has {left_out} that the chat template leaves out or changes"
                + (", beside text and calls in one message" if self.text and self.calls else ""),
                "give a template that writes messages as they are",
            )
        ahead = before if self.text or not self.calls else body.partition(self.calls[0])[0]
        if not self.thought or re.search(rf"(?<!\w){re.escape(self.thought)}(?!\w)", ahead):
            return body
        # Templates that leave out thoughts mean earlier ones, not the one to be trained on.
        if not self.text:
            before, behind = "", _EMPTY.sub("", behind)
        thought_out = f"<think>\n{self.thought}\n</think>\n\n{self.text}{behind}" if self.calls else self.whole
        return _EMPTY.sub("", before) + thought_out


def _parted(prompt: str, text: str, said: str, turn_end: TurnEnd) -> tuple[str, str]:
    """Return what a prompt has that is no beginning of the answer, and the answer as it is written."""
    if prompt.startswith(text):  # the words of a short answer may be in the question
        return "", ""
    begin = len(beginning(prompt, text))
    opened = prompt[begin:]
    if not opened.strip() or opened == turn_end.opened or _OPENED.match(opened):
        closed = _TAG.search(opened)  # an empty thought, the end of which an answer has as well
        return opened, text[begin:].removeprefix(closed[0]) if closed else text[begin:]
    # Earlier messages are written otherwise behind a prompt.
    header = turn_end.header
    if header.strip() and header in text and said in (body := text[max(begin, text.rfind(header) + len(header)) :]):
        return turn_end.opened if prompt.endswith(turn_end.opened) else "", body
    return "", said + text.rpartition(said)[2] if said and said in text else ""


def _opened(body: str, prompt: str, *, is_written: bool) -> str:
    """Return the answer behind a prompt that may have opened a thought.

    Args:
        prompt: its end.
        is_written: whether the template opens thoughts in prompts alone, so that answers must close them.
    """
    tag = _OPENED.search(prompt)
    if tag is None:
        return body.lstrip() if is_written else body
    opening, closing = f"<{tag[1]}>", f"</{tag[1]}>"
    if not is_written and not body.lstrip().startswith(opening):
        return body
    body = body.lstrip().removeprefix(opening).lstrip("\n")
    return body if closing in body else f"\n{closing}\n\n{body}"
