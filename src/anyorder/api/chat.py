"""Conversations: messages in, the assistant's next message out, as far as the history fits into the context."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anyorder.api.generate import generate, stream
from anyorder.api.output import Output, Stream
from anyorder.checkpoints.chat_template.dialogue import dialogue_tokens
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.modes import Order
from anyorder.utils.annotations import checked, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Message = Mapping[str, Any]

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"

ROOM_TO_ANSWER = 4
"""The history leaves at least this part of the context, one of so many, for the answer."""


@checked("messages", "order")
def chat(
    model: Llama,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message] | Sequence[Sequence[Message]],
    order: Order | None = None,
    max_new_tokens: int = 256,
    **options: Any,
) -> Output:
    """Write the assistant's next message of a conversation, or of each of several.

    A conversation that leaves no room for the answer loses its oldest messages, but for the system message; a warning
    says how many.

    Args:
        model: the network.
        tokenizer: of the network; its chat template writes the messages.
        messages: as `apply_chat_template` takes them: each has a role and a content.
        order: see `anyorder.generate`.
        max_new_tokens: tokens of the answer at most.
        **options: further ones of `anyorder.generate`.

    Raises:
        UserError: the chat template does not write the messages, the last message alone is too long, or see
            `anyorder.generate`.
    """
    several = isinstance(messages, list | tuple) and bool(messages) and not isinstance(messages[0], Mapping)
    dialogues: Sequence[Any] = messages if several else [messages]
    for dialogue in dialogues:
        _check(dialogue)
    fitted = [fit(model, tokenizer, dialogue, max_new_tokens) for dialogue in dialogues]
    if dropped := sum(one.dropped for one in fitted):
        logger.warning("the oldest %d messages do not fit into the context and are left out", dropped)
    ids = [one.token_ids for one in fitted]
    return generate(model, tokenizer, ids if several else ids[0], order, max_new_tokens, **options)


def _check(messages: Any) -> None:
    if (
        isinstance(messages, str)
        or not isinstance(messages, Sequence)
        or not messages
        or not all(isinstance(message, Mapping) and "role" in message for message in messages)
    ):
        raise UserError(f"messages is {shown(messages)}: give a list of messages, each with a role and content.")


@dataclass(frozen=True)
class Fitted:
    """What of a conversation fits into the context.

    Attributes:
        token_ids: the prompt.
        dropped: messages that are left out.
    """

    token_ids: list[int]
    dropped: int


def fit(
    model: Llama, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_new_tokens: int
) -> Fitted:  # fmt: skip
    """Leave out the oldest messages until the answer has room; a system message at the beginning stays.

    Args:
        model: its context is what must not be exceeded.
        tokenizer: counts tokens.
        messages: the last one is to be answered, and is never left out.
        max_new_tokens: of the answer; at most a part of the context is kept free for it (`ROOM_TO_ANSWER`).

    Raises:
        UserError: the last message alone leaves no room.
    """
    context = model.config.context_length
    room = max(1, min(max_new_tokens, context // ROOM_TO_ANSWER))
    system = [messages[0]] if messages[0]["role"] == SYSTEM and len(messages) > 1 else []
    rest = list(messages[len(system) :])
    dropped = 0
    while True:
        ids = dialogue_tokens(tokenizer, [*system, *rest])
        if len(ids) + room <= context:
            return Fitted(ids, dropped)
        if len(rest) == 1:
            raise UserError(
                f"the last message makes a prompt of {len(ids)} tokens, and with {room} for the answer the network "
                f"reads {context}: shorten it by {len(ids) + room - context} tokens, or set max_new_tokens lower."
            )
        # A turn of the user with all that answers it, so that templates which want turns to alternate still write.
        count = next((at for at in range(1, len(rest)) if rest[at]["role"] == USER), len(rest) - 1)
        rest, dropped = rest[count:], dropped + count


@dataclass
class Conversation:
    """A conversation that goes on: a system message, a history, and how answers are written.

    Attributes:
        model, tokenizer: the network and its tokenizer.
        system: the system message; None for none of our own.
        order: see `anyorder.generate`.
        max_new_tokens: tokens of an answer at most.
        options: further ones of `anyorder.stream`. The seed grows by one with each answer, so that asking again draws
            another one.
        messages: the history, without the system message.
        dropped: messages that the last answer was written without.
        last: the stream of the last answer.
    """

    model: Llama
    tokenizer: PreTrainedTokenizerBase
    system: str | None = None
    order: Order | None = None
    max_new_tokens: int = 256
    options: Mapping[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    dropped: int = 0
    last: Stream | None = None
    _answers: int = 0

    def ask(self, text: str) -> Generator[str, None, None]:
        """Add a message of the user, and yield the answer while it is written.

        What is written when the iteration is closed or interrupted stays in the history as the answer.

        Raises:
            UserError: see `chat`; the message is taken back.
        """
        self.messages.append({"role": USER, "content": text})
        return self._answer()

    def regenerate(self) -> Generator[str, None, None]:
        """Yield another answer to the last message of the user.

        Raises:
            UserError: there is no message yet; see `ask`.
        """
        if self.messages and self.messages[-1]["role"] == ASSISTANT:
            self.messages.pop()
        if not self.messages:
            raise UserError("there is no message to answer again: write one first.")
        return self._answer()

    def _answer(self) -> Generator[str, None, None]:
        try:
            history = self.whole
            fitted = fit(self.model, self.tokenizer, history, self.max_new_tokens)
            options = {**self.options, "seed": self.options.get("seed", 0) + self._answers}
            pieces = stream(
                self.model, self.tokenizer, fitted.token_ids, self.order, self.max_new_tokens, **options
            )  # fmt: skip
        except UserError:
            self.messages.pop()
            raise
        self.dropped, self.last = fitted.dropped, pieces
        self._answers += 1
        return self._watched(pieces)

    def _watched(self, pieces: Stream) -> Generator[str, None, None]:
        written = ""
        try:
            for piece in pieces:
                written += piece
                yield piece
        finally:
            pieces.close()
            self.messages.append({"role": ASSISTANT, "content": written})

    @property
    def whole(self) -> list[Message]:
        """The messages with the system message."""
        return [*([] if self.system is None else [{"role": SYSTEM, "content": self.system}]), *self.messages]

    @whole.setter
    def whole(self, messages: Sequence[Message]) -> None:
        _check(messages)
        first = messages[0]
        self.system = str(first["content"]) if first["role"] == SYSTEM else None
        self.messages = [dict(message) for message in messages if message["role"] != SYSTEM]
        self.dropped = 0
