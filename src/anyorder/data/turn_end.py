"""How a chat template ends what the assistant says: found by what it writes, not by what a configuration says."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING

from anyorder.checkpoints.chat_template.render import Rendering, render_all

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED, _SAID, _NEXT = "qxvzjw", "kfwpyh", "jbtcmz"
"""Messages of a dialogue for trial: letters that no template writes or changes."""

_CUT = re.compile(r"<[^<>\s]*\Z")
"""The beginning of a tag or special token at the end of a text."""

_END_OF_TAG = re.compile(r"\A[^<>\s]*>")

_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "f", "parameters": {"type": "object", "properties": {}, "required": []}},
}


@dataclass(frozen=True)
class TurnEnd:
    """What surrounds an answer that is the last message.

    Attributes:
        tail: all that the template writes behind it, up to the end of the text.
        end: the beginning of that, up to the token that ends the turn; empty where the template writes no end.
        found: whether the template writes a dialogue for trial.
        in_parts: whether the template takes the content of messages as a list of parts alone.
        header: what the template writes before an answer, if the prompt shows where that begins.
        opened: what a prompt has behind that and an answer has not, such as the beginning of a thought.
        tokens: special and added tokens, as text and as token id: what may end a turn of another kind.
        ends: those of them that end turns and texts for sure.
    """

    tail: str
    end: str
    found: bool
    in_parts: bool
    header: str
    opened: str
    tokens: dict[str, int]
    ends: dict[str, int]

    @property
    def asks_again(self) -> bool:
        """Whether the template writes the question behind the answer."""
        return _ASKED in self.tail

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, template: str, end_token_id: int | None) -> TurnEnd:
        """Find the end of a turn by writing a dialogue for trial.

        Args:
            end_token_id: the network's end token.
        """
        tokens = _end_tokens(tokenizer, end_token_id)
        known = {tokenizer.eos_token_id, end_token_id}
        trial = _Trial.of(tokenizer, template)
        end = trial.end(tokens, {name for name, each in tokens.items() if each in known})
        ends = {name: each for name, each in tokens.items() if each in known or (end and end.endswith(name))}
        asks, opened = trial.generation_prompt, trial.opened
        return cls(
            tail=trial.tail, end=end, found=trial.found, in_parts=trial.in_parts,
            header=asks.removesuffix(opened) if asks.endswith(opened) else "", opened=opened, tokens=tokens, ends=ends,
        )  # fmt: skip

    def is_end(self, token_id: int) -> bool:
        """Tell whether a text that ends with this token needs no end token behind it."""
        return token_id in self.ends.values()

    def split(self, text: str) -> tuple[str, str]:
        """Split an answer as written into what is said and the end of the turn, without anything behind that."""
        run = _run(text, self.tokens)
        if self.found and text.endswith(self.tail) and (self.tail or run is None):
            return text.removesuffix(self.tail), self.end
        # Other kinds of turns may end otherwise, as calls of tools do.
        if run is None:
            return text, ""
        return text[: run.start()], _until(run.group(), self.ends) or _until(run.group(), self.tokens)

    def without(self, text: str) -> str:
        """Take away ends of a turn that are written out at the end of a message."""
        run = _run(text, self.ends)
        return text if run is None else text[: run.start()]

    def closes(self, end: str) -> bool:
        """Tell whether the end of a turn has a token, so that no other one is needed behind it."""
        return bool(_until(end, self.tokens))


@dataclass(frozen=True)
class _Trial:
    """What a template writes of a short dialogue.

    Attributes:
        prompt, silent: the question, with and without the generation prompt.
        whole: the question and its answer.
        longer: with a further question.
        in_parts: whether contents were lists of parts.
    """

    prompt: str
    silent: str
    whole: str
    longer: str
    in_parts: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, template: str) -> _Trial:
        """Write it; with a tool, or with contents in parts, where the template writes it only so."""
        trial = cls("", "", "", "", False)
        for tools, in_parts in ((None, False), ([_TOOL], False), (None, True)):
            asked, said, following = (
                {"role": role, "content": [{"type": "text", "text": content}] if in_parts else content}
                for role, content in (("user", _ASKED), ("assistant", _SAID), ("user", _NEXT))
            )
            renderings = [
                Rendering([asked], tools, True),
                Rendering([asked], tools, False),
                Rendering([asked, said], tools, False),
                Rendering([asked, said, following], tools, False),
            ]
            texts = render_all(tokenizer, template, renderings)
            prompt, silent, whole, longer = (text if isinstance(text, str) else "" for text in texts)
            trial = cls(prompt, silent, whole, longer, in_parts)
            if trial.found:
                return trial
        return dataclasses.replace(trial, in_parts=False)

    @property
    def found(self) -> bool:
        """Whether the answer is in it."""
        return _SAID in self.whole

    @property
    def tail(self) -> str:
        """What is written behind an answer that is the last message."""
        return self.whole.rpartition(_SAID)[2] if self.found else ""

    @property
    def generation_prompt(self) -> str:
        """The generation prompt; empty where the template always writes it, or never."""
        return self.prompt.removeprefix(self.silent) if self.prompt.startswith(self.silent) else ""

    @property
    def opened(self) -> str:
        """What the prompt has behind the header of an answer, and the answer has not."""
        begin = len(beginning(self.prompt, self.whole))
        opened, before = self.prompt[begin:], self.whole[begin:].partition(_SAID)[0]
        # Of the header itself nothing is shared where it comes behind something else.
        differs = len(opened) >= len(self.generation_prompt) if self.generation_prompt else before.endswith(opened)
        return "" if differs or not self.found else opened

    def end(self, tokens: Collection[str], known: Collection[str]) -> str:
        """Return what is written behind an answer, up to the token that ends the turn.

        Args:
            tokens: what may end it.
            known: what ends texts.
        """
        always_asks = self.prompt == self.silent  # so that the header of a further answer may be in the tail
        between = self.longer.rpartition(_SAID)[2].partition(_NEXT)[0]
        shared = commonprefix([self.tail, between])  # noqa: RUF071 - of characters
        # Several tokens may end a turn together; what is apart behind them ends the text.
        if first := _until(shared, tokens):
            shared = first + shared[len(first) :].partition(" ")[0].partition("\n")[0]
        if end := _until(shared, known) or _until(shared, tokens, last=not always_asks):
            return end
        if always_asks and self.prompt.endswith(self.tail):
            return shared.rstrip()
        # The last answer ends otherwise than those before it, or only once a question follows.
        end = _until(self.tail, tokens) or (_until(_without_header(self.longer, between), tokens) if self.found else "")
        return end or (shared if always_asks and shared.strip() else self.tail).rstrip()


def beginning(prompt: str, text: str) -> str:
    """Return the text with which both begin, up to a tag or special token that begins alike in both and differs."""
    shared = commonprefix([prompt, text])  # noqa: RUF071 - of characters
    return shared if shared == prompt else _CUT.sub("", shared)


def _without_header(longer: str, between: str) -> str:
    """Return the text between an answer and a question, without the header that the first question has too."""
    before = longer.partition(_ASKED)[0]
    header = commonprefix([before[::-1], between[::-1]])[::-1]  # noqa: RUF071 - of characters
    return between[: len(between) - len(_END_OF_TAG.sub("", header))]


def _run(text: str, tokens: dict[str, int]) -> re.Match[str] | None:
    """Return the tokens at the end of a text, with blanks between them."""
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return re.search(rf"(?:\s*(?:{pattern}))+\s*\Z", text) if tokens else None


def _end_tokens(tokenizer: PreTrainedTokenizerBase, end_token_id: int | None) -> dict[str, int]:
    """Return special and added tokens that a turn may end with, by text; blanks and the begin of texts are none."""
    ids = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids -= {tokenizer.bos_token_id, tokenizer.mask_token_id} - {tokenizer.eos_token_id}
    ids |= {token_id for token_id in (tokenizer.eos_token_id, end_token_id) if token_id is not None}
    names = {str(tokenizer.convert_ids_to_tokens(token_id)): token_id for token_id in ids if token_id is not None}
    return {name: token_id for name, token_id in names.items() if name.strip()}


def _until(text: str, tokens: Collection[str], *, last: bool = False) -> str:
    """Return the text up to the first of the tokens in it, or the last; empty where there is none."""
    if last:
        return text[: max((text.rfind(token) + len(token) for token in tokens if token in text), default=0)]
    ends = [(at, -len(token), at + len(token)) for token in tokens if (at := text.find(token)) >= 0]
    return text[: min(ends)[2]] if ends else ""
