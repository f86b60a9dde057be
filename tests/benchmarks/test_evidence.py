"""The evidence: exact distances from a teacher, the frame, and that each piece runs."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anyorder.cli import main
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER
from anyorder.model.rope import Rotary
from tests.cli.test_main import mistake

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("any-order", "diffusion", "shared-heads")
MEASURED = sorted(file.stem for file in (ROOT / "benchmarks" / "evidence" / "results").glob("*.json"))


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package `evidence` of the benchmarks."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield SimpleNamespace(
        frame=importlib.import_module("evidence.frame"), teacher=importlib.import_module("evidence.teacher")
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "evidence"]:
        del sys.modules[name]


def small(vocabulary: int) -> Llama:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, rotary=Rotary(theta=100.0), initializer_range=0.5,
    )  # fmt: skip
    return Llama(config.replace(modes=(*config.modes, ANY_ORDER))).eval()


def test_the_distance_is_the_divergence(evidence: Any) -> None:
    """With few tokens all texts can be listed, so that the divergence is a sum."""
    p, q = small(3), small(3)
    q.load_state_dict({name: weight + 0.2 * torch.randn_like(weight) for name, weight in p.state_dict().items()})
    every = torch.tensor([[1, a, b, c] for a in range(3) for b in range(3) for c in range(3)])
    log_p, log_q = (evidence.teacher.true_log_prob(model, every) for model in (p, q))
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-5)
    exact = float((log_p.exp() * (log_p - log_q)).sum()) / 3
    drawn = evidence.teacher.draw(p, 4096, 4, seed=1)
    finding = evidence.frame.Finding.of(
        "g", "l", "s", [evidence.teacher.distances(p, drawn, evidence.teacher.true_log_prob(q, drawn))]
    )
    assert exact > 0.005
    assert abs(finding.value - exact) < 2 * (finding.high - finding.value)


def test_the_bounds_hold_the_truth(evidence: Any) -> None:
    """The probability of what stands around a gap is a sum over its tokens."""
    model = small(5)
    texts = evidence.teacher.draw(model, 64, 5, seed=3)
    gap = evidence.teacher.Gap(2, 1)
    filled = texts[:, None].repeat(1, 5, 1)
    filled[:, :, 2] = torch.arange(5)
    exact = evidence.teacher.true_log_prob(model, filled.flatten(0, 1)).view(64, 5).logsumexp(1)
    low, high = evidence.teacher.evidence_bounds(model, model, gap, texts, 64, seed=0)
    assert float((low - exact).abs().mean()) < 0.1
    assert float((low - exact).mean()) < 0.02  # too low on average, or equal
    assert float((high - exact).mean()) > -0.02


def test_interval_of_several_seeds(evidence: Any) -> None:
    finding = evidence.frame.Finding.of("g", "l", "s", [[1.0, 3.0], [4.0, 4.0], [6.0, 6.0]])
    assert finding.value == 4
    assert finding.high - finding.value == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-5)
    assert finding.value - finding.low == pytest.approx(finding.high - finding.value)


def test_parts_are_computed_once(evidence: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    study = evidence.frame.Study("any", tmp_path, tmp_path / "parts", quick=True, report=lines.append)
    assert study.part("one", lambda: [1.5]) == [1.5]
    assert study.part("one", lambda: pytest.fail("computed again")) == [1.5]
    assert len(lines) == 1


def test_table(evidence: Any) -> None:
    one = evidence.frame.Finding(group="KL, nats", label="random", series="mixture", value=1, low=0.5, high=1.5)
    assert evidence.frame.table([one]).splitlines() == [
        "| KL, nats | network | value | 95 % interval |", "|---|---|---:|---|",
        "| random | mixture | 1.000 | 0.500 to 1.500 |",
    ]  # fmt: skip


def test_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "evidence 'magic' is unknown: give one of any-order, diffusion, " in mistake(capsys, "evidence", "magic")
    assert "is no file or folder here: check the path" in mistake(
        capsys, "evidence", "any-order", "--data", str(tmp_path / "none")
    )
    message = mistake(capsys, "evidence", "any-order", "--data", str(tmp_path), "--folder", str(tmp_path / "parts"))
    assert "lacks stories260K/stories260K.bin: give the folder that has it" in message


@pytest.mark.parametrize("name", MEASURED)
def test_pages_show_the_results(name: str, evidence: Any) -> None:
    record = json.loads((ROOT / "benchmarks" / "evidence" / "results" / f"{name}.json").read_text())
    page = (ROOT / "docs" / f"evidence-{name}.md").read_text()
    findings = [evidence.frame.Finding(**finding) for finding in record["findings"]]
    assert evidence.frame.table(findings) in page
    assert (ROOT / "docs" / "images" / f"evidence-{name}.png").is_file()
    assert f"evidence-{name}.md" in (ROOT / "docs" / "evidence.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_quick(name: str, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evidence", name, "--quick", "--data", str(shared_data), "--folder", str(tmp_path)]
    assert main(words) == 0
    first = capsys.readouterr()
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["command"] == f"anyorder evidence {name} --quick"
    assert all(finding["low"] <= finding["value"] <= finding["high"] for finding in record["findings"])
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert main(words) == 0  # nothing is computed again
    second = capsys.readouterr()
    assert second.out == first.out
    assert len(second.err.splitlines()) == 1
