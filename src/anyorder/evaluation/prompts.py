"""From questions to the parts of a prompt: instruction and examples, each phrasing, and what leads to the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from anyorder.checkpoints.chat_template.render import chat_template, render
from anyorder.errors import UserError
from anyorder.evaluation.questions import Form, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTIONS: dict[Form, str] = {
    "question": "Answer each question in a few words.",
    "mask": "In each sentence one word is missing, written [MASK]. Say which word it is.",
    "opening": "Say how each sentence ends.",
}

ASKED: dict[Form, str] = {"question": "Q: {}\n", "mask": "Q: {}\n", "opening": "Q: {} ...\n"}
ANSWERED = "A:"
STOP = "\n"


@dataclass(frozen=True, kw_only=True)
class PromptParts:
    """The text around the phrasings of a question: `prefix | phrasing 1..N | suffix | answer`.

    Attributes:
        prefix: instruction and examples, the same for all questions.
        suffix: what the answer follows at once. All phrasings share it, so that the first token of an answer already
            attends to all of them.
        form: of the phrasings.
    """

    prefix: str
    suffix: str
    form: Form

    def segment(self, phrasing: str) -> str:
        """Return a phrasing as it is written in the prompt."""
        return ASKED[self.form].format(phrasing)

    def prediction(self, generation: str) -> str:
        """Return the answer in a generation: its first line, or for a missing word its first word."""
        line = generation.strip().split("\n")[0].strip()
        if self.form != "mask":
            return line
        return (line.split() or [""])[0].strip(".,;:!?\"'")


def prompt_parts(
    form: Form,
    shots: Sequence[Question] = (),
    *,
    instruction: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat: Literal["auto", "always", "never"] = "auto",
) -> PromptParts:
    """Return the parts of a prompt with examples.

    Args:
        form: of the phrasings.
        shots: questions with their answer, in their first phrasing and with their first answer.
        instruction: what is written first; that of the form unless given, nothing if empty.
        tokenizer: whose chat template is used.
        chat: whether the template of instruct models goes around the prompt; "auto" does so where there is one.

    Raises:
        UserError: there is no chat template, or it changes what it is given.
    """
    instruction = INSTRUCTIONS[form] if instruction is None else instruction
    examples = "".join(f"{ASKED[form].format(shot.phrasings[0])}{ANSWERED} {shot.answers[0]}\n\n" for shot in shots)
    prefix = (f"{instruction}\n\n" if instruction else "") + examples
    template = getattr(tokenizer, "chat_template", None)
    if chat == "never" or (chat == "auto" and not template):
        return PromptParts(prefix=prefix, suffix=ANSWERED, form=form)
    if tokenizer is None or not template:
        raise UserError("chat is 'always', but the tokenizer has no chat template: give 'auto' or 'never'.")
    before, after = _around(tokenizer, prefix)
    return PromptParts(prefix=before, suffix=ANSWERED + after, form=form)


def _around(tokenizer: PreTrainedTokenizerBase, prefix: str) -> tuple[str, str]:
    """Return the turn of a user that begins with `prefix`, cut where the phrasings go."""
    here = "<<phrasings>>"
    turn = [{"role": "user", "content": prefix + here}]
    text = render(tokenizer, chat_template(tokenizer), turn, add_generation_prompt=True)
    before, found, after = text.partition(here)
    if not found or here in after:
        raise UserError("the chat template of this tokenizer changes the text of a turn: give chat 'never'.")
    return before, after
