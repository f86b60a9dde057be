"""`anyorder generate` with many prompts: where they come from, and what is seen and kept of them."""

from __future__ import annotations

import builtins
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import anyorder
from anyorder.cli import main
from anyorder.data import chat_template
from anyorder.inspection.replay import Recording
from anyorder.serving.many import ManyPrompts
from anyorder.utils import progress
from tests.cli.test_main import mistake

LOG_PROB = re.compile(r'"log_prob": [-.\d]+')
"""Whose last digits depend on the company of a text."""

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def records(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["generate", *words, "--max_new_tokens", "3", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    """Put text on standard input."""

    def put(data: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.encode())))

    return put


def test_json_lines_of_prompts(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, typed) -> None:
    lines = [
        "Once\nupon", {"prompt": "Lily", "id": "b7", "answer": 4}, {"text": "Lily\n"}, {"prompt_token_ids": [70, 71]},
        {"prompt": [70]}, {"prompt": None, "text": "a"},
    ]  # fmt: skip
    text = "\ufeff" + "\n\n".join(json.dumps(line) for line in lines) + "\r\n"
    file = tmp_path / "prompts.JSONL"
    file.write_text(text, encoding="utf-8", newline="")
    found = records(capsys, str(folder), "--prompts_file", str(file), "--batch_size", "2")
    prompts: list[Any] = ["Once\nupon", "Lily", "Lily\n", [70, 71], [70], "a"]
    model, tokenizer = anyorder.load(folder)
    out = anyorder.generate(model, tokenizer, prompts, max_new_tokens=3)
    assert [record["prompt"] for record in found] == prompts
    assert [record["text"] for record in found] == out.text
    assert [record["full_text"] for record in found] == out.full_text
    assert [record["token_ids"] for record in found] == out.token_ids
    assert (found[1]["id"], found[1]["answer"]) == ("b7", 4)
    assert "id" not in found[0]
    typed(text)
    assert [one["text"] for one in records(capsys, str(folder), "--prompts_file", "-")] == out.text


def test_messages_as_prompts(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    model, tokenizer = anyorder.load(folder)
    assert tokenizer is not None
    tokenizer.chat_template = TEMPLATE
    assert chat_template(tokenizer) == TEMPLATE
    anyorder.save(model, tokenizer, tmp_path / "chat")
    messages = [{"role": "user", "content": "Once"}]
    file = tmp_path / "p.jsonl"
    file.write_text(f"{json.dumps({'messages': messages})}\n{json.dumps({'prompt': messages})}\n", encoding="utf-8")
    one, other = records(capsys, str(tmp_path / "chat"), "--prompts_file", str(file))
    out = anyorder.generate(model, tokenizer, messages, max_new_tokens=3)
    assert one["text"] == other["text"] == out.text
    assert one["prompt"] == messages
    assert one["full_text"] == f"user: Once\n{out.text}"
    assert main(["generate", str(tmp_path / "chat"), "--prompts_file", str(file), "--max_new_tokens", "3"]) == 0
    assert capsys.readouterr().out == f"{out.text}\n\n{out.text}\n"


def test_lines_of_standard_input_are_text_unless_all_are_json(
    capsys: pytest.CaptureFixture[str], folder: Path, typed
) -> None:
    typed('"Once"\nOnce\n')
    assert [one["prompt"] for one in records(capsys, str(folder), "--prompts_file", "-")] == ['"Once"', "Once"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON (Expecting property name enclosed in double quotes): write one JSON string or object in"),
        ("3", "is 3: write one JSON string or object in each line."),
        (
            '{"question": "a"}',
            "has the keys question: give the prompt under one of prompt, text, messages,",
        ),
        ('{"prompt": "a", "text": "b"}', "has prompt and text: give the prompt under one of prompt, text, messages,"),
        ('{"prompt": 3}', "has the prompt 3: give text, a list of messages, or a list of token ids."),
        ('{"prompt": "a", "trace": 1}', "has the key trace, which the result has itself: give it another name."),
    ],
)
def test_lines_that_have_no_prompt(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, line: str, message: str
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(f'"a"\n{line}\n')
    told = mistake(capsys, "generate", str(folder), "--prompts_file", str(file))
    assert told.startswith(f"line 2 of {str(file)!r} {message}")


# ---- progress ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--num_beams", "2"]], ids=["steps", "beams"])
def test_progress_is_told_on_standard_error(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    tmp_path: Path,
    options: list[str],
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    (tmp_path / "p").write_text("Once\nLily\na\n")
    words = ["generate", str(folder), "--prompts_file", str(tmp_path / "p"), "--max_new_tokens", "2"]
    assert main([*words, "--batch_size", "2", *options]) == 0
    printed = capsys.readouterr()
    assert "2/3 texts, 4 tokens in " in printed.err
    assert "3/3 texts, 6 tokens in " in printed.err
    assert "texts" not in printed.out


def test_python_shows_progress_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    model, tokenizer = anyorder.load(folder)
    quiet = anyorder.generate(model, tokenizer, ["Once", "Lily"], max_new_tokens=2)
    assert capsys.readouterr().err == ""
    steps: list[Any] = []
    out = anyorder.generate(model, tokenizer, ["Once", "Lily"], max_new_tokens=2, progress=True, watch=steps.append)
    assert out.sequences == quiet.sequences
    assert len(steps) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("2/2 texts, 4 tokens in ")) == ("", 1)
    batches: list[Any] = []
    anyorder.generate(
        model, tokenizer, ["Once", "Lily", "a"], max_new_tokens=2, batch_size=2, progress=batches.append
    )  # fmt: skip
    last = anyorder.generate(model, tokenizer, ["a"], max_new_tokens=2)
    assert [batch.text for batch in batches] == [quiet.text, last.text]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_is_finished_is_kept_when_interrupted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, form: str
) -> None:
    (tmp_path / "p").write_text("Once\nLily\na\nb\nc\n")
    words = ["generate", str(folder), "--prompts_file", str(tmp_path / "p"), "--max_new_tokens", "2"]
    words += ["--batch_size", "2", *(["--json"] if form == "json" else [])]
    assert main(words) == 0
    whole = capsys.readouterr().out
    write = ManyPrompts.write
    seen: list[str] = []

    def interrupted(self: ManyPrompts, prompts: Any, first: int = 0) -> Any:
        for number, text in enumerate(write(self, prompts, first)):
            seen.append(capsys.readouterr().out)  # each text is printed before the next is there
            if number == 4:
                raise KeyboardInterrupt
            yield text

    monkeypatch.setattr(ManyPrompts, "write", interrupted)
    assert main([*words, "--trace", str(tmp_path / "trace.json")]) == 130
    printed = capsys.readouterr()
    assert len(seen) == 5
    assert all(seen[1:])
    kept = "".join(seen) + printed.out
    assert LOG_PROB.sub("", whole).startswith(LOG_PROB.sub("", kept))
    assert kept.count("\n") == (4 if form == "json" else 4 + 3)
    assert "4 of 5 texts are finished" in printed.err
    assert "interrupted" in printed.err
    recording = Recording.from_json((tmp_path / "trace.json").read_text())
    assert {event.sample_id for event in recording.trace.events} == {0, 1, 2, 3}


# ---- at the terminal --------------------------------------------------------------------------------


def test_prompts_are_typed_with_line_editing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """A terminal is read by `input`, to which readline gives its keys; a wrong prompt does not end the dialogue."""
    lines = iter(["Once", "  ", "Once [...] a", "Lily"])

    def type_in(prompt: str) -> str:
        assert prompt == "> "
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", type_in)
    monkeypatch.setenv("TERM", "dumb")
    assert main(["generate", str(folder), "--interactive", "--max_new_tokens", "3"]) == 0
    assert "readline" in sys.modules
    printed = capsys.readouterr()
    model, tokenizer = anyorder.load(folder)
    texts = [anyorder.generate(model, tokenizer, prompt, max_new_tokens=3).text for prompt in ("Once", "Lily")]
    assert [isinstance(text, str) and text in printed.out for text in texts] == [True, True]
    assert printed.err.count("error: prompt 0 has a gap") == 1


def test_show_can_be_slowed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    waits: list[float] = []
    monkeypatch.setattr("anyorder.cli._canvas.time.sleep", waits.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    words = ["generate", str(folder), "Once", "--max_new_tokens", "4"]
    assert main([*words, "--show", "--delay", "0.2"]) == 0
    assert waits == [0.2] * 4
    capsys.readouterr()
    told = mistake(capsys, *words, "--delay", "0.2")
    assert told == "--delay is 0.2 without --show, which alone waits: add --show, or leave out --delay."
    assert mistake(capsys, *words, "--show", "--delay=-1") == "--delay is -1.0: give seconds, such as 0.2."
