"""Dialogues as tokens, and exactly which of them are answers.

A dialogue is written out by a chat template, the tokenizer's own where it has one. The text up to an answer, with the
words that ask the assistant to speak, is what a prompt will be when the network writes; so the tokens before an answer
must be the tokens of that text alone, whatever comes behind it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from anyorder.data.forms import BadRecordError
from anyorder.data.records import ASSISTANT, SYSTEM, Dialogue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLAIN = (
    r"BEGIN{% if tools %}tools:{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '\n\n' }}{% endif %}"
    r"{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    r"{{ message['role'] + ':\n' + message['content'] }}{% if message['role'] == 'assistant' %}END{% endif %}"
    r"{% endfor %}"
    r"{% if add_generation_prompt %}{% if messages %}{{ '\n\n' }}{% endif %}{{ 'assistant:\n' }}{% endif %}"
)


def chat_template(tokenizer: PreTrainedTokenizerBase, end_token_id: int | None = None) -> str:
    """The tokenizer's own chat template, or a plain one.

    The plain one writes the role and a colon on a line and the message below it, with an empty line between messages.
    Each answer ends with the end token. The whole begins as any text of this tokenizer does.

    Args:
        end_token_id: written after an answer; the tokenizer's own end token unless given.
    """
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, str):
        return own
    if isinstance(own, Mapping):  # several by name
        return str(own.get("default") or next(iter(own.values())))
    end = _written(tokenizer, tokenizer.eos_token_id if end_token_id is None else end_token_id)
    bos = tokenizer.bos_token_id
    begins = bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [bos]
    return _PLAIN.replace("BEGIN", _written(tokenizer, bos if begins else None)).replace("END", end)


def _written(tokenizer: PreTrainedTokenizerBase, token_id: int | None) -> str:
    """What writes a token in a template."""
    return "" if token_id is None else "{{ " + json.dumps(tokenizer.convert_ids_to_tokens(token_id)) + " }}"


@dataclass(frozen=True)
class Answered:
    """A dialogue as tokens.

    Attributes:
        ids: of the whole.
        turns: begin and end of each answer in `ids`; the end token that the template writes belongs to it.
        text_bytes: of the whole as text, in UTF-8.
        answer_bytes: of what the assistant says.
    """

    ids: list[int]
    turns: list[tuple[int, int]]
    text_bytes: int
    answer_bytes: int


class Chat:
    """Writes dialogues as tokens.

    Args:
        tokenizer: turns text into tokens.
        template: in Jinja, as transformers' chat templates.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.template = template
        self._tokenizer = tokenizer

    def tokens(self, dialogues: Sequence[Dialogue]) -> list[Answered | BadRecordError]:
        """Each dialogue as tokens, or why that cannot be."""
        written: list[list[str] | BadRecordError] = []
        for dialogue in dialogues:
            try:
                written.append(self._cuts(dialogue))
            except BadRecordError as error:
                written.append(error)
        texts = [text for cuts in written if not isinstance(cuts, BadRecordError) for text in cuts]
        encoded = iter(self._encode(texts))
        results: list[Answered | BadRecordError] = []
        for dialogue, cuts in zip(dialogues, written, strict=True):
            if isinstance(cuts, BadRecordError):
                results.append(cuts)
                continue
            ids = [next(encoded) for _ in cuts]
            whole, ends = self._parted(cuts, ids)
            answers = [message.content for message in dialogue.messages if message.role == ASSISTANT]
            results.append(
                Answered(
                    ids=whole,
                    turns=list(zip(ends[::2], ends[1::2], strict=True)),
                    text_bytes=len(cuts[-1].encode()),
                    answer_bytes=sum(len(answer.encode()) for answer in answers),
                )
            )
        return results

    def _cuts(self, dialogue: Dialogue) -> list[str]:
        """The dialogue's text up to the begin and up to the end of each answer in turn; the last is the whole."""
        messages, tools = self._messages(dialogue)
        cuts: list[str] = []
        for at, message in enumerate(dialogue.messages):
            if message.role == ASSISTANT:
                cut = at + len(messages) - len(dialogue.messages)
                cuts.append(self._text(messages[:cut], tools, asks=True))
                cuts.append(self._text(messages[: cut + 1], tools, asks=False))
        if not all(longer.startswith(cut) for cut, longer in itertools.pairwise(cuts)):
            raise BadRecordError(
                "is written by the chat template so that earlier messages change when others follow, which leaves no "
                "place where an answer begins",
                "give a template that only appends, or put each turn into a line of its own",
            )
        return cuts

    def _messages(self, dialogue: Dialogue) -> tuple[list[dict[str, str]], list[Any] | None]:
        messages = [{"role": message.role, "content": message.content} for message in dialogue.messages]
        if not dialogue.tools or "tools" in self.template:
            return messages, list(dialogue.tools) or None
        # A template without a place for tools: the system message says what they are.
        described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in dialogue.tools)
        if messages[0]["role"] == SYSTEM:
            messages[0] = {"role": SYSTEM, "content": f"{messages[0]['content']}\n{described}"}
        else:
            messages.insert(0, {"role": SYSTEM, "content": described})
        return messages, None

    def _text(self, messages: list[dict[str, str]], tools: list[Any] | None, *, asks: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tools=tools, chat_template=self.template, tokenize=False, add_generation_prompt=asks
                )
            )
        except (TemplateError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise BadRecordError(
                f"is refused by the chat template ({reason})", "change the messages, or give another template"
            ) from None

    def _parted(self, cuts: Sequence[str], ids: Sequence[list[int]]) -> tuple[list[int], list[int]]:
        """Tokens of the whole, and how many of them each cut has, given the tokens of each cut alone."""
        whole = ids[-1]
        if all(whole[: len(before)] == before for before in ids):
            return whole, [len(before) for before in ids]
        # A token reaches over a border. What comes before an answer stays as it is when it stands alone.
        pieces = [ids[0], *(self._continue(longer[len(cut) :]) for cut, longer in itertools.pairwise(cuts))]
        return list(itertools.chain(*pieces)), list(itertools.accumulate(map(len, pieces)))

    def _continue(self, text: str) -> list[int]:
        """Tokens of a text that stands behind another, without the space that some tokenizers put before every text."""
        line, both = self._encode(["\n", "\n" + text])
        return both[len(line) :] if both[: len(line)] == line else self._encode([text])[0]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        # Templates write the special tokens that they want.
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids
