"""Options of the commands that fuse phrasings: a dataclass for each group."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from anyorder.cli._options import OptionGroup
from anyorder.utils.annotations import Listed

if TYPE_CHECKING:
    from anyorder.evaluation.protocol import Method, Protocol


@dataclass(frozen=True, kw_only=True)
class PartOptions(OptionGroup):
    """Text around the phrasings of a question.

    Attributes:
        prefix: Text before each phrasing, such as examples.
        suffix: Text behind all of them, such as " A:"; let it begin with its space.
        separator: Text that each phrasing ends with.
    """

    prefix: str = ""
    suffix: str = ""
    separator: str = ""


@dataclass(frozen=True, kw_only=True)
class FusionOptions(OptionGroup):
    """How several phrasings become one answer.

    Attributes:
        method: attention, logit-mean, probability-mean, max, lowest-entropy, contrast, attention+logit-mean or vote.
        positions: Where phrasings are read: shared, running, right or spread; right did best where it was measured.
        correction: 1/N, none, length, or ape:TEMPERATURE,SCALE.
        keep: Use only this many phrasings of the highest weights.
    """

    method: str = "attention"
    positions: str = "shared"
    correction: str = "1/N"
    keep: int | None = None


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(OptionGroup):
    """What is written for one question.

    Attributes:
        order: Mode of the answer, such as left-to-right, random, groups:4 or diffusion; that of the model
            unless given.
        max_new_tokens: Tokens to write at most.
        stop: Text that ends the answer; may be repeated.
        num_beams: Above 1, beam search with so many beams.
    """

    order: str | None = None
    max_new_tokens: int = 64
    stop: list[str] = field(default_factory=list)
    num_beams: int = 1


@dataclass(frozen=True, kw_only=True)
class MethodOptions(FusionOptions):
    """How the questions of a data set are answered.

    Attributes:
        method: single (each phrasing by itself), concatenation, or a way to fuse: attention, logit-mean,
            probability-mean, max, lowest-entropy, contrast, attention+logit-mean, vote.
        positions: Of the method attention: shared, running, right, spread.
        correction: Of the method attention: 1/N, none, length, or ape:TEMPERATURE,SCALE.
        weights: What the phrasings count by: confidence, or likelihood; all the same unless given.
    """

    weights: str | None = None

    def to_method(self) -> Method:
        """Return the method of these options.

        Raises:
            UserError: one of them is unknown, or does not go with another one.
        """
        from anyorder.evaluation.protocol import Method

        fields = dataclasses.asdict(self)
        return Method(name=fields.pop("method"), **fields)


@dataclass(frozen=True, kw_only=True)
class QuestionOptions(OptionGroup):
    """Which questions of a data set are asked, and how.

    Attributes:
        dataset: Questions: a .jsonl file, the folder of PARAREL or WebQuestions, a .parquet file, a folder of
            datasets, or the id of a data set on the hub.
        num_paraphrases: Take the first so many phrasings of each question; 5 unless indices are given.
        indices: Which phrasings, counted from 0, such as 0,1,2.
        max_samples: Ask only so many questions, drawn with the seed.
        shots: Questions shown with their answer in front, drawn from the set, of which these are not asked.
        shots_from: Another set that the examples are drawn from.
        instruction: First line of the prompt instead of the usual one; "" for none.
        chat: Whether the tokenizer's chat template goes around the prompt; auto does so where there is one.
        split: Of the data set; test unless given.
        form: What a phrasing is, if not told by the set: question, mask (a sentence with [MASK]) or opening (the
            beginning of a sentence that the answer ends).
        relations: Of PARAREL, such as P20. May be repeated; all unless given.
        max_new_tokens: Tokens of an answer at most; it ends with its line.
        seed: Decides the examples and the sample.
    """

    dataset: str
    num_paraphrases: int | None = None
    indices: list[int] = field(default_factory=list)
    max_samples: int | None = None
    shots: int = 5
    shots_from: str | None = None
    instruction: str | None = None
    chat: Literal["auto", "always", "never"] = "auto"
    split: str | None = None
    form: Literal["question", "mask", "opening"] | None = None
    relations: list[Listed] = field(default_factory=list)
    max_new_tokens: int = 10
    seed: int = 42

    def to_protocol(self) -> Protocol:
        """Return the protocol of these options.

        Raises:
            UserError: one of them cannot be.
        """
        from anyorder.evaluation.protocol import Protocol

        fields = dataclasses.asdict(self)
        return Protocol(**fields | {"indices": tuple(self.indices) or None, "relations": tuple(self.relations)})


@dataclass(frozen=True, kw_only=True)
class ComparedQuestionOptions(QuestionOptions):
    """Which questions are asked by every method.

    Attributes:
        seed: Decides the examples, the sample and the resampling behind the intervals, which hold 95 %.
    """

    max_samples: int | None = 250
