"""`anyorder inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

import anyorder
from anyorder.checkpoints.adapt import adapt
from anyorder.cli import main
from anyorder.cli._canvas import HOLE, CanvasView
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.trace import Trace, Written
from anyorder.inspection.attention import analyze_attention_patterns
from anyorder.inspection.compare import method_named
from anyorder.inspection.drift import cache_drift
from anyorder.inspection.replay import Place, Recording
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from tests.cli.test_main import mistake


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    trace = Trace((Written(0, 0, 2, 5, -0.1), Written(1, 0, 1, 4, -2.0)), passes=2, seconds=0.5)
    recording = Recording(trace=trace, canvases=((3, BLANK, BLANK),), pieces={3: "Once", 4: " upon", 5: " a"})
    file = tmp_path / "trace.json"
    file.write_text(recording.to_json())
    return file


def test_replay_in_plain_output_prints_every_step(trace_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "replay", str(trace_file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Once··", "step 0, 2 to write", "Once· a", "step 1, 1 to write", "Once upon a", "step 2",
    ]  # fmt: skip


def test_replay_as_a_page(trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", "replay", str(trace_file), "--html", str(page)]) == 0
    assert page.read_text() == Recording.from_json(trace_file.read_text()).page("trace.json")
    assert "wrote" in capsys.readouterr().err
    assert main(["inspect", "replay", str(trace_file), "--html", str(page)]) == 2
    assert "error: " in capsys.readouterr().err


def test_mistakes_are_told_with_the_remedy(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    def refused(*words: str) -> str:
        assert main(["inspect", "replay", *words]) == 2
        return capsys.readouterr().err

    assert "row is 3: give the number of one of the 1 texts, from 0." in refused(str(trace_file), "--row", "3")
    assert "--seconds is -1.0: give 0 or a number above." in refused(str(trace_file), "--seconds", "-1")
    assert "missing.json cannot be used: No such file" in refused(str(tmp_path / "missing.json"))
    (tmp_path / "other.json").write_text("[]")
    assert "other.json' holds no trace: give a file that `anyorder generate --trace` wrote." in refused(
        str(tmp_path / "other.json")
    )
    assert main(["inspect"]) == 0
    assert "replay" in capsys.readouterr().out


def test_a_canvas_in_a_terminal_fits_80_columns() -> None:
    console = Console(force_terminal=True, width=80, record=True)
    places = {at: Place(at, step=at % 3, log_prob=-0.1 - at % 2, edits=at % 5 == 0) for at in range(60)}
    places |= {at: Place(BLANK) for at in range(60, 90)}
    view = CanvasView(console, lambda token_id: f" word{token_id}")
    lines = view.picture(places, 3).plain.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "step 3, 30 to write"
    assert "".join(lines).count(HOLE) == 30
    with view:
        view.draw(places, 3)
    assert "word59" in console.export_text()


def test_attention_prints_a_table_and_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "maps.png"
    assert main(["inspect", "attention", str(folder), "Once upon a time", "--plot", str(plot)]) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    assert lines[0] == ["layer", "entropy", "distance", "itself", "first", "ahead"]
    assert [line[0] for line in lines[1:]] == ["0", "1", "2"]
    model, tokenizer = anyorder.load(folder)
    assert tokenizer is not None
    patterns = analyze_attention_patterns(model, tokenizer("Once upon a time")["input_ids"])
    for line, layer in zip(lines[1:], patterns.of_layers(), strict=True):
        assert line[1:] == [f"{value:.2f}" for value in layer[2:-2]]
    assert plot.read_bytes().startswith(b"\x89PNG")
    words = ["inspect", "attention", str(folder), "Once"]
    assert "masks is 2, but the mode 'left-to-right' has no mask token" in mistake(capsys, *words, "--masks", "2")
    assert "--masks is -1: give 0 or a number" in mistake(capsys, *words, "--masks", "-1")
    assert "writes by 'left-to-right', not by 'diffusion'" in mistake(capsys, *words, "--mode", "diffusion")
    assert "--mode is 'foo': give one of" in mistake(capsys, *words, "--mode", "foo")


def test_compare_tells_the_drift_where_it_is_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = anyorder.load(folder)
    anyorder.save(adapt(model, [diffusion(279)]), tokenizer, tmp_path / "diffuser")
    words = ["inspect", "compare", str(tmp_path / "diffuser"), "Once upon", "--max_new_tokens=4", "--samples=32"]
    assert main([*words, "--drift", "--method", "llada", "--method", "fast-dllm,block_length=4"]) == 0
    printed = capsys.readouterr()
    head, plain, cached, *_ = (line.split() for line in printed.out.splitlines())
    assert plain[5] == cached[5] == "≤"
    assert "≤: a bound, estimated" in printed.err
    assert head[-3:] == ["nats/token", "drift", "changed"]
    drift = cache_drift(*anyorder.load(tmp_path / "diffuser"), "Once upon", method_named("fast-dllm,block_length=4"), 4)
    assert drift is not None
    assert cached[-2:] == [f"{drift.divergence:.3f}", f"{drift.changed:.1%}"]
    assert "%" not in "".join(plain)


def test_compare_prints_a_table_and_the_texts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    file = tmp_path / "compared.json"
    words = ["inspect", "compare", str(folder), "Once upon", "Once", "--max_new_tokens", "6"]
    assert main([*words, "--method", "left-to-right", "--json", str(file)]) == 0
    model, tokenizer = anyorder.load(folder)
    out = anyorder.generate(model, tokenizer, ["Once upon", "Once"], max_new_tokens=6)
    assert isinstance(out.text, list)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["method", "passes", "tokens", "tokens/pass", "tokens/s", "nats/token"]
    assert printed.splitlines()[1].split()[:3] == ["left-to-right", str(out.passes), str(out.trace.tokens)]
    assert f"Once upon{out.text[0]}\nOnce{out.text[1]}\n" in printed
    assert "≤" not in printed
    [record] = json.loads(file.read_text())
    assert record["texts"] == out.text
    assert record["bound"] is False
    assert "there is no prompt: give at least one text" in mistake(capsys, "inspect", "compare", str(folder))
    wrong = ["inspect", "compare", str(folder), "Once", "--method", "llada"]
    assert "writes by 'left-to-right', not by 'diffusion'" in mistake(capsys, *wrong)


def test_compare_fills_gaps_by_the_methods_that_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = anyorder.load(folder)
    both = adapt(model, [LEFT_TO_RIGHT, ANY_ORDER])
    anyorder.save(both, tokenizer, tmp_path / "both")
    assert main(["inspect", "compare", str(tmp_path / "both"), "Once [...] a", "--max_new_tokens", "3"]) == 0
    printed = capsys.readouterr().out
    assert "left-to-right" not in printed
    assert "[...]" not in printed
    out = anyorder.generate(*anyorder.load(tmp_path / "both"), "Once [...] a", order="confidence", max_new_tokens=3)
    assert f"\nconfidence\n{out.full_text}\n" in printed
