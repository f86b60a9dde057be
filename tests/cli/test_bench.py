"""`anyorder bench`, on a network of milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anyorder.cli import USER_MISTAKE, main
from anyorder.inspection import speed
from anyorder.model.config import ModelConfig


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "sing"], "--tasks has 'sing': give one of decode, prefill, train."),
        (["--sizes", "7B"], "--sizes has '7B': give one of 260K, 125M."),
        (["--repeats", "0"], "repeats is 0: give a whole number above 0."),
        (["--dtypes", "int3"], "--dtypes has 'int3': give one of float32, bfloat16."),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == USER_MISTAKE
    assert message in capsys.readouterr().err


def test_table_and_file(
    tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(speed.SIZES, "260K", tiny_config)
    monkeypatch.setattr(speed, "PROMPT_TOKENS", 4)
    monkeypatch.setattr(speed, "compiler_at_hand", lambda device: False)
    monkeypatch.setattr(speed, "bandwidth", lambda device: 1e10)
    monkeypatch.setattr(speed, "has_llama_cpp", lambda: False)
    output = tmp_path / "speed.json"
    words = ["--sizes", "260K", "--dtypes", "float32", "--tasks", "decode", "--new_tokens", "3", "--repeats", "1"]
    assert main(["bench", *words, "--output", str(output)]) == 0
    told = capsys.readouterr()
    assert "llama.cpp is left out: it needs the packages of anyorder[bench]" in told.err
    lines = [line for line in told.out.splitlines() if "decode" in line]
    assert ["1.00" in line for line in lines] == [True, "1.00" in lines[1]]
    record = json.loads(output.read_text())
    assert {"device", "threads", "torch"} <= set(record["machine"])
    assert [timing["candidate"] for timing in record["timings"]] == ["transformers, eager", "anyorder, eager"]
