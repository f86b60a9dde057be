"""What heads look at: the weights against transformers', the statistics against loops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from anyorder import LLaDAForMaskedLM
from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.inspection.attention import HeadStatistics, analyze_attention_patterns
from anyorder.inspection.speed import twin
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, blocks, diffusion
from tests.model.networks import VOCABULARY, network, random_ids

MASK = VOCABULARY - 1
TEXT = [4, 7, 7, 20, MASK, MASK, 3, MASK]


@pytest.fixture
def model() -> Llama:
    return adapt(network(), (LEFT_TO_RIGHT, diffusion(MASK), blocks(MASK, 3), ANY_ORDER))


def of_transformers(model: Llama, ids: list[int], seen: torch.Tensor) -> torch.Tensor:
    """Attention weights of transformers' network, `[layers, heads, rows, keys]`."""
    theirs = twin(model)
    theirs.set_attn_implementation("eager")
    hidden = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        output = theirs(torch.tensor([ids]), attention_mask=hidden[None, None], output_attentions=True)
    return torch.cat(output.attentions)


@pytest.mark.parametrize("mode", ["left-to-right", "diffusion", "blocks", "any-order"])
def test_weights_are_those_of_transformers(model: Llama, mode: str) -> None:
    row, key = torch.arange(8)[:, None], torch.arange(8)
    seen = {
        "left-to-right": key <= row,
        "any-order": key <= row,
        "diffusion": torch.ones(8, 8, dtype=torch.bool),
        "blocks": key // 3 <= row // 3,
    }[mode]
    patterns = analyze_attention_patterns(model, TEXT, mode=mode)
    torch.testing.assert_close(patterns.weights_NHLL, of_transformers(network(), TEXT, seen), rtol=1e-4, atol=1e-6)
    assert patterns.ids == tuple(TEXT)


@pytest.mark.parametrize("layers", ["NoPE", "window", "chunk"])
def test_layers_of_all_kinds_keep_their_order_and_their_narrowing(layers: str) -> None:
    other = network(layers)
    [ids] = random_ids(11)
    weights = analyze_attention_patterns(other, ids).weights_NHLL
    assert weights.shape == (len(other.config.layers), 4, 11, 11)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    for of_layer, kind in zip(weights, other.config.layers, strict=True):
        for row in range(11):
            seen = [key for key in range(row + 1) if kind.window is None or row - key < kind.window]
            seen = [key for key in seen if kind.chunk is None or row // kind.chunk == key // kind.chunk]
            hidden = [key for key in range(11) if key not in seen]
            assert (of_layer[:, row, seen] > 0).all()
            assert (of_layer[:, row, hidden] == 0).all()


def test_statistics_are_means_over_the_rows(model: Llama) -> None:
    rows = [4, 5, 7]
    patterns = analyze_attention_patterns(model, TEXT, mode="diffusion", prompt_length=4, rows=rows)
    assert len(patterns.statistics) == 8
    for statistics in patterns.statistics:
        weights = patterns.weights_NHLL[statistics.layer, statistics.head].double()
        expected = dict.fromkeys(HeadStatistics._fields[2:], 0.0)
        for row in rows:
            for key in range(8):
                w = weights[row, key].item() / len(rows)
                expected["entropy"] -= w * math.log(weights[row, key].item())
                expected["distance"] += w * abs(row - key)
                expected["itself"] += w * (row == key)
                expected["first"] += w * (key == 0)
                expected["ahead"] += w * (key > row)
                expected["masks"] += w * (TEXT[key] == MASK)
                expected["prompt"] += w * (key < 4)
        assert statistics[2:] == pytest.approx(tuple(expected.values()), rel=1e-6)
    for layer, mean in enumerate(patterns.of_layers()):
        heads = [head for head in patterns.statistics if head.layer == layer]
        assert mean.layer == layer
        assert mean.masks == pytest.approx(sum(head.masks for head in heads) / 4)


def test_the_network_and_its_faces_are_not_changed(model: Llama) -> None:
    ids = torch.tensor([TEXT])
    for seen in (model, LLaDAForMaskedLM.of(model)):
        with torch.no_grad():
            before = seen(ids).logits
            one = analyze_attention_patterns(seen, ids, mode=diffusion(MASK)).weights_NHLL
            assert torch.equal(seen(ids).logits, before)
        assert torch.equal(one, analyze_attention_patterns(model, TEXT, mode="diffusion").weights_NHLL)


def test_plots_are_written(model: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns = analyze_attention_patterns(model, TEXT, mode="diffusion")
    patterns.save_plot(tmp_path / "maps.svg", ["\n", *"abcdefg"])
    monkeypatch.setattr("anyorder.inspection.attention.MAPS", 7)  # of 8 heads: a map for each layer
    patterns.save_plot(tmp_path / "means.svg")
    drawn = [(tmp_path / name).read_text().count("<image") for name in ("maps.svg", "means.svg")]
    assert drawn[0] - drawn[1] == 8 - 2
    with pytest.raises(UserError, match=r"plot '.*maps\.doc' is of an unknown kind: end its name in \.png or \.svg\."):
        patterns.save_plot(tmp_path / "maps.doc")
    with pytest.raises(UserError, match=r"maps\.svg"):
        patterns.save_plot(tmp_path / "maps.svg")


def test_mistakes_are_told_with_the_remedy(model: Llama) -> None:
    with pytest.raises(UserError, match=r"the text is \[\]: give at least one token id from 0 to 30\."):
        analyze_attention_patterns(model, [])
    with pytest.raises(UserError, match=r"the text is \[99\]: give at least one token id from 0 to 30\."):
        analyze_attention_patterns(model, [99])
    with pytest.raises(UserError, match=r"rows is \[8\]: give positions from 0 to 7, at least one\."):
        analyze_attention_patterns(model, TEXT, rows=[8])
    with pytest.raises(UserError, match=r"this network writes by 'left-to-right', not by 'diffusion': train it"):
        analyze_attention_patterns(network(), TEXT, mode="diffusion")
