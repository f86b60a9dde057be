"""The evidence: exact distances from a teacher, the frame, and that each piece runs."""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anyorder.checkpoints.adapt import adapt
from anyorder.cli import main
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER
from anyorder.model.rope import Rotary
from anyorder.objectives import Autoregressive
from anyorder.training import Training
from tests.cli.test_main import mistake

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("any-order", "diffusion", "experts", "long", "planning", "shared-heads", "text8")
MEASURED = sorted(file.stem for file in (ROOT / "benchmarks" / "evidence" / "results").glob("*.json"))


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package `evidence` of the benchmarks."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("experts", "frame", "long", "planning", "stories", "teacher", "text8")
    yield SimpleNamespace(**{name: importlib.import_module(f"evidence.{name}") for name in names})
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


def test_time_of_a_part_within_a_part_counts_once(evidence: Any, tmp_path: Path) -> None:
    study = evidence.frame.Study("any", tmp_path, tmp_path / "parts", quick=True, report=lambda line: None)
    started = time.perf_counter()
    study.part("outer", lambda: study.part("inner", lambda: time.sleep(0.2)))
    assert 0.2 <= 60 * study.minutes <= time.perf_counter() - started


def test_curve(evidence: Any, tmp_path: Path) -> None:
    """What is seen at a step is seen of the network after as many steps, and leaves the training as it is."""
    study = evidence.frame.Study("any", tmp_path, tmp_path / "parts", quick=True, report=lambda line: None)
    ids = torch.randint(5, (8, 6), generator=torch.Generator().manual_seed(0))

    def first_weight(model: Llama) -> float:
        assert not model.training
        return float(model.model.embed_tokens.weight.detach().flatten()[0])

    def trained(name: str, steps: int, looks: Sequence[int]) -> tuple[Llama, dict[int, float]]:
        training = Training(steps=steps, batch_size=2, learning_rate=0.01, schedule="constant", warmup=0, save_every=0)
        return study.curve(name, lambda: small(5), Autoregressive(), ids, training, looks, first_weight)

    model, seen = trained("whole", 4, (2, 4))
    assert seen[4] == pytest.approx(first_weight(model), abs=1e-7)
    half, _ = trained("half", 2, ())
    assert seen[2] == pytest.approx(first_weight(half), abs=1e-7)
    assert seen[2] != seen[4]
    assert trained("whole", 4, (2, 4))[1] == seen


def test_curves_are_drawn_beside_dots(evidence: Any, tmp_path: Path) -> None:
    finding = evidence.frame.Finding
    found = [finding.exact("loss by step", f"step {at}", name, 1 / at, at=at) for name in "ab" for at in (1, 2)]
    found.append(finding.of("loss", "in the end", "a", [[1.0, 2.0]]))
    evidence.frame.plot("Title", found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_losses_of_stories(evidence: Any, tiny_config: Any) -> None:
    model = Llama(tiny_config).eval()
    rows = torch.randint(tiny_config.vocab_size, (5, 7))
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(
            model(rows).logits[:, :-1].transpose(1, 2), rows[:, 1:], reduction="none"
        )
    torch.testing.assert_close(evidence.stories.losses(model, rows, 2).float(), expected, rtol=1e-4, atol=1e-4)


def test_losses_in_buckets(evidence: Any) -> None:
    """Of 8 positions, of which nothing predicts the first."""
    found = evidence.long.in_buckets(torch.arange(1.0, 8.0)[None], 4)
    assert found == [[2.0], [5.5]]


def test_experts_are_as_wide_as_the_dense_network(evidence: Any) -> None:
    sizes = evidence.experts.QUICK
    counts = {name: evidence.experts.weights(config) for name, config in evidence.experts.networks(sizes).items()}
    routers = 8 * sizes.hidden * sizes.layers
    assert counts[evidence.experts.TWO][1] == counts[evidence.experts.ONE][1] == counts["dense"][1] + routers
    more = 7 * 3 * 3 * sizes.hidden**2 * sizes.layers
    assert counts[evidence.experts.ONE][0] - counts[evidence.experts.ONE][1] == more


def test_memory_of_chunks(evidence: Any) -> None:
    sizes = evidence.long.QUICK
    configs = evidence.long.networks(sizes)
    full, mixed = (
        evidence.long.memory(configs[name], (8, 32)) for name in (evidence.long.FULL_ATTENTION, evidence.long.MIXED)
    )
    keys = 2 * sizes.hidden * 4  # bytes of a key and a value
    assert [line["cache"] for line in full] == [line["cache"] for line in mixed] == [4 * 9 * keys, 4 * 33 * keys]
    assert [line["seen"] for line in full] == [4 * 8 * keys, 4 * 32 * keys]
    assert [line["seen"] for line in mixed] == [(3 * 4 + 8) * keys, (3 * 4 + 32) * keys]
    assert all(line["peak"] > 0 for line in full + mixed)


def test_characters_of_text8(evidence: Any) -> None:
    assert evidence.text8.characters("It's 3 o'clock,\nSir!") == "it s o clock sir"
    learnt, held = evidence.text8.rows_of("abcdefghij" * 40, evidence.text8.QUICK)
    assert {len(row) for row in learnt + held} == {evidence.text8.QUICK.length + 1}
    assert learnt[0][:3] == [evidence.text8.BEGIN, 1, 2]


def test_text8_itself_is_taken_where_it_is(evidence: Any, tmp_path: Path) -> None:
    (tmp_path / "text8").write_text("anarchism originated")
    assert evidence.text8.text_of(tmp_path) == "anarchism originated"


def test_bits_of_a_network_that_knows_nothing(evidence: Any) -> None:
    """Every character is as probable as any other token, in every mode."""
    sizes = evidence.text8.QUICK
    for name, objective in evidence.text8.objectives().items():
        model = adapt(Llama(evidence.text8.network(sizes).replace(initializer_range=0.0)), objective.modes).eval()
        found = evidence.text8.scores(name, sizes)(model, torch.tensor([[evidence.text8.BEGIN, *range(sizes.length)]]))
        assert float(found) == pytest.approx(-sizes.length * math.log(len(evidence.text8.ALPHABET) + 2), rel=1e-4)


def test_problems_of_sudoku(evidence: Any) -> None:
    grids = evidence.planning.all_grids()
    assert len(grids) == 288
    first = evidence.planning.drawn(10, 0, [])
    again = evidence.planning.drawn(10, 0, [first[0][0]])
    assert first[0][0] not in [problem for problem, _ in again]
    assert sorted(16 - problem.count(0) for problem, _ in first) == [4, 4, 5, 5, 6, 6, 7, 7, 8, 8]
    for problem, solution in first:
        fitting = [
            grid for grid in grids.tolist() if all(one in (0, two) for one, two in zip(problem, grid, strict=True))
        ]
        assert fitting == [solution]


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
    for name, lacking in (
        ("any-order", "stories260K/stories260K.bin"), ("long", "tinystories/tinystories_lowercased_4M.txt"),
        ("planning", "planning/sudoku_4x4_4.jsonl"),
    ):  # fmt: skip
        message = mistake(capsys, "evidence", name, "--data", str(tmp_path), "--folder", str(tmp_path / "parts" / name))
        assert f"lacks {lacking}: give the folder that has it" in message


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


def test_parts_of_other_sizes_are_refused(evidence: Any, tmp_path: Path) -> None:
    study = evidence.frame.Study("any", tmp_path, tmp_path / "parts", quick=True, report=lambda line: None)
    for _ in range(2):
        study.require(sizes=(1, 2), data="here")
    with pytest.raises(
        UserError, match=r"has parts of other sizes \(\(1, 2\)\): give another --folder, or remove it\.$"
    ):
        study.require(sizes=(1, 3), data="here")
