"""Further phrasings of questions, written by a model from examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.errors import UserError
from anyorder.evaluation.questions import MASK, Form, Question, QuestionSet, to_json
from anyorder.utils.files import check_place, claimed, is_overwriting, whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama

INSTRUCTIONS: dict[Form, str] = {
    "question": "Ask each question in other words. What is asked stays the same.",
    "mask": "Say each sentence in other words. Its meaning and [MASK] stay.",
}

# A column is one prompt: different examples lead to different wordings.
EXAMPLES: dict[Form, dict[str, tuple[str, ...]]] = {
    "question": {
        "what is the highest mountain of japan?": (
            "which mountain in japan is the highest?",
            "no mountain in japan is higher than which one?",
            "name the tallest peak of japan.",
            "if you climbed as high as you can in japan, where would you stand?",
            "what do people call japan's tallest mountain?",
        ),
        "who invented the telephone?": (
            "the telephone was invented by whom?",
            "which inventor do we owe the telephone to?",
            "whose invention was the telephone?",
            "tell me the name of the person behind the first telephone.",
            "who came up with the telephone?",
        ),
        "when did the berlin wall come down?": (
            "in which year did the berlin wall fall?",
            "the fall of the berlin wall was when?",
            "what is the date on which the berlin wall was opened?",
            "how long ago did berlin lose its wall?",
            "at what time in history was the berlin wall gone?",
        ),
        "what language is spoken in brazil?": (
            "which language do brazilians speak?",
            "what do people in brazil speak?",
            "name the language of brazil.",
            "if i move to brazil, which language should i learn?",
            "brazil's official language is which?",
        ),
        "where was marie curie born?": (
            "what is the birthplace of marie curie?",
            "in which town did marie curie come into the world?",
            "marie curie was a native of what city?",
            "which place was marie curie originally from?",
            "do you know where marie curie's life began?",
        ),
    },
    "mask": {
        "Lima is the capital of [MASK].": (
            "The capital of [MASK] is Lima.",
            "Lima, which is the capital of [MASK]",
            "[MASK] has Lima as its capital.",
            "It is from Lima that [MASK] is governed.",
            "[MASK]'s capital city is Lima.",
        ),
        "Vermeer worked as a [MASK].": (
            "The occupation of Vermeer was [MASK].",
            "Vermeer was a [MASK] by profession.",
            "Vermeer earned his living as a [MASK].",
            "By trade, Vermeer was a [MASK].",
            "What Vermeer did for a living was being a [MASK].",
        ),
        "Nokia was founded in [MASK].": (
            "[MASK] is where Nokia was founded.",
            "Nokia got its start in [MASK].",
            "The company Nokia comes from [MASK].",
            "It was in [MASK] that Nokia began.",
            "Nokia, a company that started in [MASK]",
        ),
        "The native language of Goethe was [MASK].": (
            "Goethe grew up speaking [MASK].",
            "[MASK] was Goethe's mother tongue.",
            "The first language Goethe learnt was [MASK].",
            "Goethe, whose native language was [MASK]",
            "From childhood on, Goethe spoke [MASK].",
        ),
        "Honey is made by [MASK].": (
            "[MASK] make honey.",
            "The makers of honey are [MASK].",
            "Honey comes from [MASK].",
            "It is [MASK] that produce honey.",
            "Honey is a product of [MASK].",
        ),
    },
}

GROUP = 16
"""Questions that are reworded together. It is part of what decides the random draws, unlike the batch size."""

TRIES = 3


def paraphrase(
    model: Llama,
    tokenizer: PreTrainedTokenizerBase,
    found: QuestionSet,
    output: Path,
    *,
    count: int = 5,
    temperature: float = 1.5,
    top_p: float | None = 0.9,
    max_new_tokens: int = 30,
    seed: int = 0,
    batch_size: int = 16,
    settings: Mapping[str, Any] | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Question]:
    """Write questions with `count` further phrasings each to a file in the format of `read_jsonl`.

    Until all are there they are in `output` + ".partial", which a later call resumes. What is drawn depends on the
    seed and the number of the question, not on the batch. A phrasing that is empty, lacks its `[MASK]` or is there
    already is drawn again; a question for which that does not help has fewer.

    Args:
        model: the network.
        tokenizer: its tokenizer.
        found: the questions; their first phrasing is reworded.
        output: new file.
        count: phrasings to write for each.
        temperature: above 0.
        top_p: draw only from the fewest tokens whose probabilities add up to this.
        max_new_tokens: tokens of a phrasing at most.
        seed: of the draws.
        batch_size: phrasings written at a time.
        settings: whatever else the phrasings depend on, such as the model's name.
        on_progress: callback, called with the number of questions that are done.

    Raises:
        UserError: the questions are openings of sentences, an option is invalid, or the file cannot be written or is
            from other settings.
    """
    if found.form not in EXAMPLES:
        raise UserError("form is 'opening', but how a sentence ends cannot be kept in other words: give 'mask'.")
    most = len(next(iter(EXAMPLES[found.form].values())))
    if not 1 <= count <= most:
        raise UserError(f"count is {count}: give 1 to {most}, since each phrasing has examples of its own.")
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}: give a number above 0, so that phrasings differ.")
    check_place(output, folder=False)
    depends_on = {
        **(settings or {}), "count": count, "temperature": temperature, "top_p": top_p,
        "max_new_tokens": max_new_tokens, "seed": seed, "questions": _fingerprint(found),
    }  # fmt: skip
    partial = output.with_name(output.name + ".partial")

    def write(prompts: list[str], seed: int) -> list[str]:
        from anyorder.api.generate import generate
        from anyorder.api.prompts import prompt_ids

        ids, _ = prompt_ids(prompts, tokenizer, None)  # in a text, "[...]" would be a gap
        out = generate(
            model, tokenizer, ids, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, stop="\n",
            seed=seed, batch_size=batch_size,
        )  # fmt: skip
        assert isinstance(out.text, list)
        return out.text

    with claimed(output):
        if is_overwriting():
            partial.unlink(missing_ok=True)
        done = _resume(partial, json.loads(json.dumps(depends_on)))
        on_progress(len(done))
        with partial.open("a", encoding="utf-8") as file:
            while len(done) < len(found.questions):
                group = found.questions[len(done) : len(done) + GROUP]
                written = _reword(group, found.form, count, f"{seed} {len(done)}", write)
                file.write("".join(_sealed(to_json(question)) for question in written))
                file.flush()
                done += written
                on_progress(len(done))
    with whole_file(output) as whole:
        whole.write_text("".join(to_json(question) + "\n" for question in done), encoding="utf-8")
    partial.unlink()
    return done


def prompt(phrasing: str, form: Form, column: int) -> str:
    """Return instruction, examples and the phrasing, up to where the other one is to be written."""
    shown = "".join(f"A: {asked}\nB: {others[column]}\n\n" for asked, others in EXAMPLES[form].items())
    return f"{INSTRUCTIONS[form]}\n\n{shown}A: {phrasing}\nB:"


def _reword(
    group: tuple[Question, ...], form: Form, count: int, key: str, write: Callable[[list[str], int], list[str]]
) -> list[Question]:
    """Return the questions with further phrasings."""
    found: dict[tuple[int, int], str] = {}
    for attempt in range(TRIES):
        missing = [(number, column) for number in range(len(group)) for column in range(count)]
        missing = [place for place in missing if place not in found]
        if not missing:
            break
        prompts = [prompt(group[number].phrasings[0], form, column) for number, column in missing]
        texts = write(prompts, _seed(f"{key} {attempt}"))
        for (number, column), text in zip(missing, texts, strict=True):
            there = [*group[number].phrasings, *(other for place, other in found.items() if place[0] == number)]
            if _useful(text := text.strip().strip('"'), there, form):
                found[number, column] = text
    return [
        replace(
            question,
            phrasings=question.phrasings + tuple(found[n, column] for n, column in sorted(found) if n == number),
        )
        for number, question in enumerate(group)
    ]


def _useful(text: str, there: list[str], form: Form) -> bool:
    new = text.casefold() not in (other.casefold() for other in there)
    return bool(text) and new and (form != "mask" or text.count(MASK) == 1)


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def _fingerprint(found: QuestionSet) -> str:
    return hashlib.sha256("\n".join(map(to_json, found.questions)).encode()).hexdigest()[:16]


def _resume(partial: Path, settings: Mapping[str, Any]) -> list[Question]:
    """Return the questions that are done, in whole groups; afterwards the file holds these alone."""
    text = partial.read_bytes() if partial.exists() else b""
    lines = [_opened(line, partial) for line in text.split(b"\n")[:-1]]  # the last may be cut
    if lines:
        there = json.loads(lines[0])
        different = [name for name in {**settings, **there} if settings.get(name) != there.get(name)]
        if different:
            name = different[0]
            raise UserError(
                f"{str(partial)!r} holds phrasings written with {name} {there.get(name)!r}, not "
                f"{settings.get(name)!r}: give another output, or the settings of that run."
            )
    kept = lines[1 : 1 + (len(lines) - 1) // GROUP * GROUP] if lines else []
    with whole_file(partial, replace=True) as beside:
        beside.write_text("".join(map(_sealed, [json.dumps(settings), *kept])), encoding="utf-8")
    done = []
    for line in kept:
        record = json.loads(line)
        done.append(
            Question(uuid=record["uuid"], phrasings=tuple(record["phrasings"]), answers=tuple(record["answers"]))
        )
    return done


def _sealed(text: str) -> str:
    """Return a line with a checksum before the text."""
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n"


def _opened(line: bytes, file: Path) -> str:
    checksum, _, text = line.partition(b" ")
    if checksum != hashlib.sha256(text).hexdigest()[:16].encode():
        raise UserError(f"{str(file)!r} is damaged: delete it, and its questions are reworded again.")
    return text.decode()
