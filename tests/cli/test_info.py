"""`anyorder info`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from torch import Tensor

from anyorder import checkpoints
from anyorder.cli import main
from anyorder.cli._describe import heads, in_bytes, layers, modes, rotary
from anyorder.inspection import head_sharing
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, blocks, diffusion
from anyorder.model.rope import Llama3Rotary
from tests.checkpoints.metas_form import write_metas_folder
from tests.cli.test_main import mistake
from tests.model.networks import network


def table(text: str) -> dict[str, str]:
    rows: dict[str, str] = {}
    name = ""
    for line in filter(str.strip, text.splitlines()):
        name = line[1:18].strip() or name
        rows[name] = f"{rows.get(name, '')} {line[18:].strip()}".strip()
    return rows


def test_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    def no_weights(name: str) -> Tensor:
        raise AssertionError(f"info reads {name}")

    checkpoint = dataclasses.replace(checkpoints.read_checkpoint(folder), read=no_weights)
    monkeypatch.setattr(checkpoints, "read_checkpoint", lambda path, revision: checkpoint)
    assert main(["info", str(folder), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = table(out)
    vocabulary, attention, feed_forward = 280 * 32, 2 * (32 * 32 + 32 * 16), 3 * 32 * 48
    assert rows["parameters"] == f"{2 * vocabulary + 3 * (attention + feed_forward + 2 * 32) + 32:,}"
    assert rows["layers"] == "3"
    assert rows["heads"] == "GQA: 4 query and 2 key-value heads of width 8"
    assert rows["vocabulary"] == "280 tokens, untied head"
    assert rows["writes"] == "left-to-right"
    assert rows["trained length"] == "64 tokens"
    assert rows["rotary"] == "default, theta 10000"
    # Two of keys and values, three layers, two heads of width 8, four bytes each.
    assert rows["key-value cache"] == "384 bytes per token, 24 KiB at the trained length"
    assert rows["attention"].startswith("sdpa on cpu: ")


def test_what_each_of_many_devices_holds(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["info", str(folder), "--parallel", "tp=2,fsdp=4", "--device", "cpu"]) == 0
    rows = table(capsys.readouterr().out)
    # Of two keys and values in three layers, one head of width 8, four bytes each.
    assert rows["of each: cache"] == "192 bytes per token"
    assert rows["devices"].startswith("8: 2 share each matrix")
    assert mistake(capsys, "info", str(folder), "--parallel", "tp=3") == (
        "tensor_parallel is 3, which does not divide what is split (2 key-value heads, 48 inner features): give one of "
        "1, 2."
    )
    assert mistake(capsys, "info", str(folder), "--parallel", "pp=3") == (
        "--parallel is 'pp=3': give numbers of devices, such as tp=8,fsdp=64."
    )


def test_ways_are_told_the_default_first(tiny_config: ModelConfig) -> None:
    several = (LEFT_TO_RIGHT, diffusion(5, shifted=True), blocks(6, 4), ANY_ORDER)
    config = tiny_config.replace(modes=several, default_mode="blocks")
    told = "blocks of 4, mask token 6; left-to-right; diffusion, mask token 5, shifted; any-order"
    assert modes(config) == told


def test_choices_of_the_command_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["info", str(folder), "--dtype", "bfloat16", "--attention", "eager", "--device", "cpu"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["weights"].endswith("in bfloat16")
    assert rows["key-value cache"].startswith("192 bytes per token")
    assert rows["attention"] == "eager on cpu: asked for by name"


def head_rows(text: str) -> dict[str, list[str]]:
    """Cells of the comparison by the number of key-value heads, the arrow left out."""
    lines = [line.replace("→", " ").split() for line in text[text.index("parameters  ") :].splitlines()]
    return {words[1]: words for words in lines if words and words[0] in ("MHA", "GQA", "MQA")}


def test_head_sharing(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["info", str(folder), "--heads", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = head_rows(out)
    assert list(rows) == ["4", "2", "1"]
    assert [words[0] for words in rows.values()] == ["MHA", "GQA", "MQA"]
    assert rows["2"][2] == table(out)["parameters"]
    # Two of keys and values, three layers, heads of width 8, four bytes each.
    assert [words[3:5] for words in rows.values()] == [["768", "bytes"], ["384", "bytes"], ["192", "bytes"]]
    assert all(float(words[5]) > 0 and words[6] == "ms" for words in rows.values())
    assert [line.split()[1:3] for line in out.splitlines() if "→" in line] == [["GQA", "2"]]
    assert "time: one token after 63 others, batch 1, random weights, cpu, not compiled" in out


def test_head_sharing_without_the_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    assert main(["info", str(folder), "--heads", "--no-measure", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert [words[5] for words in head_rows(out).values()] == ["-"] * 3
    assert "time: " not in out
    monkeypatch.setattr(head_sharing, "free_bytes", lambda device: 2048)
    assert main(["info", str(folder), "--heads", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert [words[5] for words in head_rows(out).values()] == ["-"] * 3
    assert "time: not taken, since it needs " in out
    assert " of memory and 2 KiB are free" in out


def test_metas_folder(capsys: pytest.CaptureFixture[str], tiny_config: ModelConfig, tmp_path: Path) -> None:
    write_metas_folder(Llama(tiny_config), tmp_path / "llama", 2)
    assert main(["info", str(tmp_path / "llama"), "--device", "cpu"]) == 0
    assert table(capsys.readouterr().out)["heads"] == "GQA: 4 query and 2 key-value heads of width 16"


def test_a_mixture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = network("experts")
    checkpoints.save_model(model, tmp_path / "mixture")
    assert main(["info", str(tmp_path / "mixture"), "--device", "cpu"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["layers"] == "3 (1 chunks of 4; 1 no rotary, growing queries, experts; 1 window of 3, experts)"
    assert rows["experts"] == "6 of width 10, of which 2 read a token; one of width 5 reads all"
    assert rows["parameters"] == f"{sum(weight.numel() for weight in model.parameters()):,}"


def test_llama2c(capsys: pytest.CaptureFixture[str], shared_data: Path) -> None:
    assert main(["info", str(shared_data / "stories260K" / "stories260K.bin"), "--device", "cpu"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["parameters"] == "260,032"
    assert rows["heads"] == "GQA: 8 query and 4 key-value heads of width 8"


def test_mistakes(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    assert "no folder or file here" in mistake(capsys, "info", str(tmp_path / "nothing"))
    assert "has no config.json" in mistake(capsys, "info", str(tmp_path))
    assert "not in the hub's cache" in mistake(capsys, "info", "no-such-organisation/model")
    assert "revision is 'v2', but" in mistake(capsys, "info", str(folder), "--revision", "v2")
    assert "dtype is 'int3'" in mistake(capsys, "info", str(folder), "--dtype", "int3")
    assert "'flash' runs on cuda, not on cpu" in mistake(
        capsys, "info", str(folder), "--attention", "flash", "--device", "cpu"
    )


def test_words_for_layers_heads_and_rotary(tiny_config: ModelConfig) -> None:
    kinds = (LayerKind(chunk=8), LayerKind(chunk=8), LayerKind(rotary=False))
    assert layers(kinds) == "3 (2 chunks of 8; 1 no rotary)"
    assert layers((LayerKind(window=4), LayerKind())) == "2 (1 window of 4; 1 full)"
    assert heads(tiny_config.replace(num_key_value_heads=4)).startswith("MHA: 4 query and 4 ")
    assert heads(tiny_config.replace(num_key_value_heads=1)).startswith("MQA: 4 query and 1 ")
    llama3 = Llama3Rotary(
        theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    assert rotary(llama3) == (
        "llama3, theta 500000, factor 8, low freq factor 1, high freq factor 4, original max position embeddings 8192"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (128 * 1024, "128 KiB"), (2**40 * 3, "3 TiB")],
)
def test_in_bytes(count: int, text: str) -> None:
    assert in_bytes(count) == text
