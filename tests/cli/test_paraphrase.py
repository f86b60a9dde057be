"""`anyorder data paraphrase`: a data set goes in, one that `anyorder fuse run` can read comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import anyorder
from anyorder.cli import main
from anyorder.data import train_tokenizer
from anyorder.evaluation.paraphrasing import prompt
from anyorder.evaluation.questions import read_jsonl
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from tests.cli.test_main import mistake


@pytest.fixture
def web_questions(tmp_path: Path) -> Path:
    records = [{"qId": f"w{n}", "qText": f"who is number {n}?", "answers": [f"{n}"]} for n in range(3)]
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "test.json").write_text(json.dumps(records))
    return tmp_path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is long enough for the examples."""
    tokenizer = train_tokenizer([prompt("who?", "question", column) for column in range(5)] * 2, 600)
    config = ModelConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, rotary=Rotary(theta=10_000.0), initializer_range=0.2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("checkpoint") / "long"
    anyorder.save(Llama(config), tokenizer, path)
    return path


def test_questions_come_out_in_more_phrasings(capsys, network: Path, web_questions: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    words = ["data", "paraphrase", str(network), str(web_questions), "--output", str(output), "--count", "2"]
    assert main([*words, "--max-new-tokens", "4"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == f"{output}: 6 new phrasings of 3 questions, 0 missing\n"
    found = read_jsonl(output)
    assert [question.uuid for question in found.questions] == ["w0", "w1", "w2"]
    assert [question.phrasings[0] for question in found.questions] == [f"who is number {n}?" for n in range(3)]
    assert all(len(question.phrasings) == 3 for question in found.questions)
    results = tmp_path / "r.feather"
    fuse = ["fuse", "run", "--model", str(network), "--dataset", str(output), "--output", str(results)]
    assert main([*fuse, "--num-paraphrases", "3", "--shots", "1"]) == 0
    assert "2 answers" in capsys.readouterr().out
    assert mistake(capsys, *words).endswith(
        "is there already: give a new name, delete it first, or overwrite it with --force."
    )


def test_mistakes(capsys, network: Path, web_questions: Path, tmp_path: Path) -> None:
    words = ["data", "paraphrase", str(network), str(web_questions), "--output", str(tmp_path / "out.jsonl")]
    assert mistake(capsys, *words, "--count", "9") == (
        "--count is 9: give 1 to 5, since each phrasing has examples of its own."
    )
    assert "--output" not in mistake(capsys, *words, "--max-samples", "0")
    assert "split is 'dev'" in mistake(capsys, *words, "--split", "dev")
    assert mistake(capsys, *words[:4]).startswith("argument --output is missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main"]
