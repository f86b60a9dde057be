"""The output folder of a training is a checkpoint, whole or none, as those of earlier versions were one below it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import anyorder
from anyorder.cli import main
from anyorder.errors import UserError
from anyorder.training import runs
from tests.training.test_interrupted import settings


@pytest.fixture
def out(tmp_path: Path) -> Path:
    runs.run(settings(tmp_path))
    return tmp_path / "out"


def as_in_earlier_versions(out: Path) -> None:
    (out / "network").mkdir()
    beside = {"settings.json", "log.json", "loss.png", "checkpoints", "network"}
    for file in [path for path in out.iterdir() if path.name not in beside]:
        file.rename(out / "network" / file.name)
    options = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(
        json.dumps({name: options[name] for name in options if name not in ("epochs", "rope_scaling")})
    )


def test_transformers_reads_the_output_folder(out: Path) -> None:
    model, tokenizer = anyorder.load(out, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([[5, 9, 11, 260]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    text = "The old cat sat"
    assert tokenizer is not None
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_folders_of_earlier_versions(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now, _ = anyorder.load(out, device="cpu")
    as_in_earlier_versions(out)
    for place in (out, str(out), out / "network"):
        model, tokenizer = anyorder.load(place, device="cpu")
        assert tokenizer is not None
        assert torch.equal(model.lm_head.weight, now.lm_head.weight)
    assert main(["generate", str(out), "The", "--max_new_tokens", "2"]) == 0
    assert main(["convert", str(out), str(tmp_path / "converted")]) == 0
    capsys.readouterr()
    runs.run(settings(tmp_path, resume=True))  # after its end
    assert not (out / "network").exists()
    again, _ = anyorder.load(out, device="cpu")
    assert torch.equal(again.lm_head.weight, now.lm_head.weight)


def test_a_process_killed_while_the_network_is_written(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (out / "model.safetensors").read_bytes()
    move = Path.replace

    def killed(file: Path, target: Path) -> Path:
        if file.name == "config.json":
            raise RuntimeError("killed")
        return move(file, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(RuntimeError, match="killed"):
            runs.run(settings(tmp_path, resume=True))
    latest = out / "checkpoints" / "checkpoint-4"
    with pytest.raises(UserError) as error:
        anyorder.load(out)
    assert str(error.value) == (
        f"folder {str(out)!r} holds a training that has not ended: go on with resume, or give {str(latest)!r}."
    )
    anyorder.load(latest, device="cpu")
    runs.run(settings(tmp_path, resume=True))
    anyorder.load(out, device="cpu")
    assert (out / "model.safetensors").read_bytes() == before


def test_an_adapter_that_has_not_been_merged_is_no_network(out: Path, tmp_path: Path) -> None:
    runs.run(settings(tmp_path, init=str(out), lora_rank=2, output=tmp_path / "tuned"))
    (tmp_path / "tuned" / "config.json").unlink()
    with pytest.raises(UserError, match=r"tuned' holds a training that has not ended: go on with resume\.$"):
        anyorder.load(tmp_path / "tuned")
    shutil.rmtree(tmp_path / "tuned" / "checkpoints")
    with pytest.raises(UserError, match=r"tuned' has no config\.json: give the folder of a Hugging Face checkpoint\.$"):
        anyorder.load(tmp_path / "tuned")
