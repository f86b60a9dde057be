"""How a chat template ends what the assistant says: found by what it writes, not by what a configuration says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING

from anyorder.checkpoints.chat_template.render import Rendering, render_all

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED, _SAID, _NEXT = "qxvzjw", "kfwpyh", "jbtcmz"
"""Messages of a dialogue for trial: letters that no template writes or changes."""


@dataclass(frozen=True)
class TurnEnd:
    """What stands behind an answer that is the last message.

    Attributes:
        tail: all that the template writes there, up to the end of the text.
        end: its beginning, up to the token that ends the turn; empty where the template writes no end.
        found: whether the template writes a dialogue for trial.
        tokens: special and added tokens, as text and as token id: what may end a turn of another kind.
        ends: those of them that end turns and texts for sure.
    """

    tail: str
    end: str
    found: bool
    tokens: dict[str, int]
    ends: dict[str, int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, template: str, end_token_id: int | None) -> TurnEnd:
        """Find the end of a turn by writing a dialogue for trial.

        Args:
            end_token_id: the network's end token.
        """
        tokens = _end_tokens(tokenizer, end_token_id)
        asked, said, following = (
            {"role": role, "content": content}
            for role, content in (("user", _ASKED), ("assistant", _SAID), ("user", _NEXT))
        )
        prompt, silent, whole, longer = (
            text if isinstance(text, str) else ""
            for text in render_all(
                tokenizer,
                template,
                [
                    Rendering([asked], None, True),
                    Rendering([asked], None, False),
                    Rendering([asked, said], None, False),
                    Rendering([asked, said, following], None, False),
                ],
            )
        )
        tail = whole.rpartition(_SAID)[2] if _SAID in whole else ""
        zone = tail
        if prompt == silent:  # the header of a further answer may be in the tail
            zone = commonprefix([tail, longer.rpartition(_SAID)[2]])  # noqa: RUF071 - of characters
            if not _first(zone, tokens) and not prompt.endswith(tail):
                zone = tail
            if not _first(zone, tokens) and prompt.endswith(tail):
                zone = ""
        end = _first(zone, tokens)
        known = {tokenizer.eos_token_id, end_token_id}
        ends = {name: each for name, each in tokens.items() if each in known or (end and end.endswith(name))}
        return cls(tail=tail, end=end or zone.rstrip(), found=_SAID in whole, tokens=tokens, ends=ends)

    def is_end(self, token_id: int) -> bool:
        """Tell whether a text that ends with this token needs no end token behind it."""
        return token_id in self.ends.values()

    def split(self, text: str) -> tuple[str, str]:
        """Split an answer as written into what is said and the end of the turn, without anything behind that."""
        if self.found and text.endswith(self.tail):
            return text.removesuffix(self.tail), self.end
        # Other kinds of turns may end otherwise, as calls of tools do: the first of the tokens at the end.
        run = _run(text, self.tokens)
        if run is None:
            return text, ""
        return text[: run.start()], _first(run.group(), self.tokens)

    def without(self, text: str) -> str:
        """Take away ends of a turn that are written out at the end of a message."""
        run = _run(text, self.ends)
        return text if run is None else text[: run.start()]

    def closes(self, end: str) -> bool:
        """Tell whether the end of a turn has a token, so that no other one is needed behind it."""
        return bool(_first(end, self.tokens))


def _run(text: str, tokens: dict[str, int]) -> re.Match[str] | None:
    """The tokens at the end of a text, with blanks between them."""
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return re.search(rf"(?:\s*(?:{pattern}))+\s*\Z", text) if tokens else None


def _end_tokens(tokenizer: PreTrainedTokenizerBase, end_token_id: int | None) -> dict[str, int]:
    """Special and added tokens that a turn may end with, by their text; blanks and the begin of texts are none."""
    ids = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids -= {tokenizer.bos_token_id, tokenizer.mask_token_id} - {tokenizer.eos_token_id}
    ids |= {token_id for token_id in (tokenizer.eos_token_id, end_token_id) if token_id is not None}
    names = {str(tokenizer.convert_ids_to_tokens(token_id)): token_id for token_id in ids if token_id is not None}
    return {name: token_id for name, token_id in names.items() if name.strip()}


def _first(text: str, tokens: dict[str, int]) -> str:
    """The text up to the first of the tokens in it; empty where there is none."""
    ends = [(at, -len(token), at + len(token)) for token in tokens if (at := text.find(token)) >= 0]
    return text[: min(ends)[2]] if ends else ""
