"""From a set of questions to an answer of the model for each: which are asked, in which prompt, by which method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from anyorder.decoding.checks import check_max_new_tokens
from anyorder.decoding.fusion.method import METHODS, Fusion
from anyorder.decoding.fusion.scores import SCORES
from anyorder.errors import UserError
from anyorder.evaluation.prompts import STOP, PromptParts, prompt_parts
from anyorder.evaluation.question_runs import Ask
from anyorder.evaluation.question_sets import read_questions
from anyorder.evaluation.questions import Form, Question
from anyorder.utils.annotations import check_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama

SINGLE, CONCATENATION = "single", "concatenation"
RUN_METHODS = (SINGLE, CONCATENATION, *METHODS)
"""Methods that can be compared: each phrasing by itself, all of them one after another, and those that fuse them."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything about a run but the model and the method.

    Attributes:
        dataset: what `read_questions` reads, as `split`, `form` and `relations` say.
        num_paraphrases: use the first this many phrasings of each question; 5 unless `indices` are given.
        indices: which of them, counted from 0.
        max_samples: number of questions to draw; all unless given.
        shots: number of examples in front, questions drawn from the set that are not asked themselves.
        shots_from: another set that the examples are drawn from.
        instruction: in front of the examples; that of the form unless given.
        chat: whether the tokenizer's chat template goes around the prompt.
        seed: of all that is drawn.
        max_new_tokens: tokens of an answer at most.
    """

    dataset: str
    split: str | None = None
    form: Form | None = None
    relations: tuple[str, ...] = ()
    num_paraphrases: int | None = None
    indices: tuple[int, ...] | None = None
    max_samples: int | None = None
    shots: int = 5
    shots_from: str | None = None
    instruction: str | None = None
    chat: Literal["auto", "always", "never"] = "auto"
    seed: int = 42
    max_new_tokens: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_paraphrases is None and self.indices is None:
            object.__setattr__(self, "num_paraphrases", 5)
        check_max_new_tokens(self.max_new_tokens)
        if self.shots < 0:
            raise UserError(f"shots is {self.shots}: give 0, or a whole number above it.")

    def settings(self) -> dict[str, Any]:
        """Return its part of the settings of a results file."""
        return asdict(self)

    def draw(self) -> Drawn:
        """Return the questions with the phrasings to be used, and the examples.

        Raises:
            UserError: the set cannot be read, or has too few questions or phrasings.
        """
        # A question with fewer phrasings than this is no error of the whole set: it is left out.
        needed = self.num_paraphrases or max(self.indices or (0,)) + 1
        found = read_questions(
            self.dataset, split=self.split, min_phrasings=max(1, needed), relations=self.relations, form=self.form
        )
        if self.shots_from is None:
            shots, found = found.split_off(self.shots, self.seed)
        else:
            shots, _ = read_questions(self.shots_from, form=self.form).split_off(self.shots, self.seed)
        asked = found.sample(self.max_samples, self.seed).questions
        picked = tuple(question.pick(self.num_paraphrases, self.indices) for question in asked)
        return Drawn(questions=picked, shots=shots, form=found.form)

    def parts(self, drawn: Drawn, tokenizer: PreTrainedTokenizerBase | None) -> PromptParts:
        """Return the text around the phrasings.

        Raises:
            UserError: `chat` is "always", and the tokenizer has no chat template.
        """
        return prompt_parts(
            drawn.form, drawn.shots, instruction=self.instruction, tokenizer=tokenizer, chat=self.chat
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Questions and examples, both of one form."""

    questions: tuple[Question, ...]
    shots: tuple[Question, ...]
    form: Form


def one_by_one(questions: Sequence[Question]) -> list[Question]:
    """Return each phrasing as a question of its own; those of one question follow each other and keep its name."""
    return [replace(question, phrasings=(phrasing,)) for question in questions for phrasing in question.phrasings]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to answer.

    Attributes:
        name: one of `RUN_METHODS`.
        positions, correction: of the method "attention".
        weights: what the phrasings count by: "confidence" or "likelihood"; all the same unless given.
        keep: use only this many phrasings of the highest weights.

    Raises:
        UserError: one of them is unknown, or weights are given where phrasings are not fused.
    """

    name: str = "attention"
    positions: str = "shared"
    correction: str = "1/N"
    weights: str | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.name not in RUN_METHODS:
            raise UserError(f"method is {self.name!r}: choose one of {', '.join(RUN_METHODS)}.")
        Fusion(method=self.engine, positions=self.positions, correction=self.correction)
        if self.weights not in (None, *SCORES):
            raise UserError(f"weights is {self.weights!r}: choose one of {', '.join(SCORES)}.")
        given = [name for name in ("weights", "keep") if getattr(self, name) is not None]
        if given and not self.fuses:
            value = getattr(self, given[0])
            raise UserError(f"{given[0]} is {value!r} beside method {self.name!r}, which fuses nothing: leave it out.")

    @property
    def fuses(self) -> bool:
        """Whether several phrasings go into an answer, each by itself."""
        return self.name not in (SINGLE, CONCATENATION)

    @property
    def engine(self) -> str:
        """The method of `anyorder.fuse`; of a single segment it is plain generation."""
        return self.name if self.fuses else METHODS[0]

    @property
    def label(self) -> str:
        """The name in tables, with what tells variants of "attention" apart."""
        return f"attention, {self.positions}, {self.correction}" if self.name == "attention" else self.name

    @property
    def same_alone(self) -> bool:
        """Whether with one phrasing it is plain generation."""
        return self.name != "contrast" and not self.correction.startswith("ape")

    def settings(self) -> dict[str, Any]:
        """Return its part of the settings of a results file."""
        return {"method": self.name, **{name: value for name, value in asdict(self).items() if name != "name"}}


def asker(
    model: Llama,
    tokenizer: PreTrainedTokenizerBase,
    parts: PromptParts,
    method: Method,
    *,
    max_new_tokens: int = 10,
) -> Ask:
    """Return a function that answers questions by a method: greedily, up to the end of a line."""

    def ask(segments: list[list[str]]) -> tuple[list[str], int]:
        from anyorder.api.fuse import fuse

        phrasings = segments if method.fuses else [["".join(of_question)] for of_question in segments]
        out = fuse(
            model, tokenizer, phrasings, prefix=parts.prefix, suffix=parts.suffix, positions=method.positions,
            correction=method.correction, method=method.engine, weights=method.weights, keep=method.keep,
            max_new_tokens=max_new_tokens, stop=STOP,
        )  # fmt: skip
        assert isinstance(out.text, list)
        return out.text, out.passes

    return ask
