"""Other phrasings: what is asked of the network, what is kept of its answers, and that draws belong to questions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import anyorder
import anyorder.api.generate
import anyorder.api.prompts
from anyorder.api.output import Output
from anyorder.data import train_tokenizer
from anyorder.errors import UserError
from anyorder.evaluation import paraphrasing
from anyorder.evaluation.paraphrasing import EXAMPLES, paraphrase, prompt
from anyorder.evaluation.questions import MASK, Question, QuestionSet, question_set, read_jsonl
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama


def some(count: int, phrasing: str = "what is {}?") -> QuestionSet:
    return question_set(
        [
            Question(uuid=f"u{number}", phrasings=(phrasing.format(number),), answers=(f"{number}",))
            for number in range(count)
        ],
        "some",
    )


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, int], str]], list[list[str]]]:
    """Put a function from a prompt and a seed to a text in the place of `generate`; gives the prompts of each call."""

    def put(function: Callable[[str, int], str]) -> list[list[str]]:
        calls: list[list[str]] = []

        def generate(model: Any, tokenizer: Any, prompts: list[str], *, seed: int, stop: str, **options: Any) -> Output:
            calls.append(prompts)
            texts = [function(text, seed).split(stop)[0] for text in prompts]
            return Output(text=texts, full_text=None, token_ids=[], sequences=[], stopped=[], trace=None)

        monkeypatch.setattr(anyorder.api.generate, "generate", generate)
        monkeypatch.setattr(anyorder.api.prompts, "prompt_ids", lambda prompts, *others: (prompts, False))
        return calls

    return put


def asked(text: str) -> str:
    return text.removesuffix("\nB:").rpartition("A: ")[2]


def test_a_prompt_shows_examples_and_ends_where_the_text_goes() -> None:
    text = prompt("who?", "question", 2)
    assert text.startswith("Ask each question in other words.")
    assert text.endswith("\n\nA: who?\nB:")
    assert text.count("\nB: ") == 5
    for form in ("question", "mask"):
        assert len({prompt("who?", form, column) for column in range(5)}) == 5


def test_examples_are_worth_copying() -> None:
    for form, examples in EXAMPLES.items():
        everything = [text for asked, others in examples.items() for text in (asked, *others)]
        assert len(examples) == 5
        assert len(everything) == len({text.casefold() for text in everything}) == 30
        assert all((text.count(MASK) == 1) == (form == "mask") for text in everything)


def test_phrasings_follow_the_first_one(tmp_path: Path, says) -> None:
    numbers = itertools.count()
    calls = says(lambda text, seed: f' "{asked(text)} {next(numbers)}" \nA: more')
    progress: list[int] = []
    output = tmp_path / "below" / "out.jsonl"
    found = paraphrase(None, None, some(18), output, count=3, on_progress=progress.append)
    assert read_jsonl(output).questions == tuple(found)
    assert progress == [0, 16, 18]
    assert list(map(len, calls)) == [48, 6]
    assert found[0] == Question(
        uuid="u0", phrasings=("what is 0?", "what is 0? 0", "what is 0? 1", "what is 0? 2"), answers=("0",)
    )
    assert found[17].phrasings[1:] == ("what is 17? 51", "what is 17? 52", "what is 17? 53")
    assert [entry.name for entry in output.parent.iterdir()] == ["out.jsonl"]


def test_what_is_no_other_phrasing_is_drawn_again(tmp_path: Path, says) -> None:
    tried: dict[str, int] = {}

    def answer(text: str, seed: int) -> str:
        tried[text] = tried.get(text, 0) + 1
        column = next(c for c in range(3) if text == prompt(asked(text), "mask", c))
        return [
            [" it is [MASK], 1 "],  # at once
            ["\n", "IT IS [mask], 1", "it is [MASK], 2"],  # empty, then there already
            ["no mask", "[MASK] [MASK]", ""],  # never
        ][column][tried[text] - 1]

    says(answer)
    [found] = paraphrase(None, None, some(1, "{} is [MASK]."), tmp_path / "out.jsonl", count=3)
    assert found.phrasings == ("0 is [MASK].", "it is [MASK], 1", "it is [MASK], 2")
    assert sorted(tried.values()) == [1, 3, 3]


def test_an_interrupted_run_goes_on(tmp_path: Path, says) -> None:
    def answer(text: str, seed: int) -> str:
        return f"{asked(text)} {seed} {hash(text)}"

    says(answer)
    whole = paraphrase(None, None, some(40), tmp_path / "whole.jsonl", count=2)

    def breaks(text: str, seed: int) -> str:
        if asked(text) == "what is 20?":
            raise KeyboardInterrupt
        return answer(text, seed)

    output, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    says(breaks)
    with pytest.raises(KeyboardInterrupt):
        paraphrase(None, None, some(40), output, count=2)
    assert not output.exists()
    with partial.open("a") as file:
        file.write('{"uuid": "half')  # as a crash may leave it
    before = partial.read_bytes()
    calls = says(answer)
    with pytest.raises(UserError, match=r"partial' holds phrasings written with seed 0, not 1: give another"):
        paraphrase(None, None, some(40), output, count=2, seed=1)
    with pytest.raises(UserError, match=r"written with questions '.*', not '.*': give"):
        paraphrase(None, None, some(41), output, count=2)
    with pytest.raises(UserError, match=r"written with model None, not 'M': give"):
        paraphrase(None, None, some(40), output, count=2, settings={"model": "M"})
    assert partial.read_bytes() == before
    assert calls == []
    progress: list[int] = []
    assert paraphrase(None, None, some(40), output, count=2, on_progress=progress.append) == whole
    assert progress == [16, 32, 40]
    assert not partial.exists()


def test_phrasings_in_a_damaged_file_are_not_taken_as_they_are(tmp_path: Path, says) -> None:
    def breaks(text: str, seed: int) -> str:
        if asked(text) == "what is 40?":
            raise KeyboardInterrupt
        return f"tell me {asked(text)}"

    output, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    says(breaks)
    with pytest.raises(KeyboardInterrupt):
        paraphrase(None, None, some(60), output, count=1)
    content = partial.read_bytes()
    for at in range(0, len(content), 11):
        partial.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises((UserError, KeyboardInterrupt)) as raised:
            paraphrase(None, None, some(60), output, count=1)
        if raised.type is UserError:
            assert str(raised.value) == f"{str(partial)!r} is damaged: delete it, and its questions are reworded again."
        else:  # the end of the last line, which counts as cut
            assert at == len(content) - 1


def test_draws_do_not_depend_on_the_batch(tmp_path: Path, tiny_config: ModelConfig, monkeypatch) -> None:
    monkeypatch.setattr(paraphrasing, "GROUP", 2)
    tokenizer = train_tokenizer([prompt("what is 0?", "question", column) for column in range(5)] * 2, 600)
    model = Llama(tiny_config.replace(vocab_size=len(tokenizer), max_position_embeddings=512))
    options: dict[str, Any] = {"count": 2, "max_new_tokens": 5}
    one = paraphrase(model, tokenizer, some(3), tmp_path / "1.jsonl", batch_size=1, **options)
    four = paraphrase(model, tokenizer, some(3), tmp_path / "4.jsonl", batch_size=4, **options)
    other = paraphrase(model, tokenizer, some(3), tmp_path / "o.jsonl", batch_size=4, seed=1, **options)
    assert one == four
    assert len({question.phrasings[1] for question in one}) == 3
    assert {question.phrasings[1:] for question in one}.isdisjoint(question.phrasings[1:] for question in other)
    assert [question.uuid for question in one] == ["u0", "u1", "u2"]


def test_a_gap_sign_in_a_question_is_text(tmp_path: Path, tiny_config: ModelConfig) -> None:
    tokenizer = train_tokenizer([prompt("what is [...]?", "question", column) for column in range(5)] * 2, 600)
    model = Llama(tiny_config.replace(vocab_size=len(tokenizer), max_position_embeddings=512))
    found = some(1, "What is [...] in Python?")
    [written] = paraphrase(model, tokenizer, found, tmp_path / "out.jsonl", count=2, max_new_tokens=5)
    assert len(written.phrasings) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 6}, "count is 6: give 1 to 5, since each phrasing has examples of its own."),
        ({"temperature": 0}, "temperature is 0: give a number above 0, so that phrasings differ."),
    ],
)
def test_mistakes(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        paraphrase(None, None, some(1), tmp_path / "out.jsonl", **options)
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_openings_and_taken_places_are_refused(tmp_path: Path) -> None:
    opening = QuestionSet(questions=some(1).questions, form="opening")
    with pytest.raises(UserError, match="form is 'opening', but how a sentence ends cannot be kept"):
        paraphrase(None, None, opening, tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl").write_text("")
    with pytest.raises(UserError, match="is there already"):
        paraphrase(None, None, some(1), tmp_path / "out.jsonl")
