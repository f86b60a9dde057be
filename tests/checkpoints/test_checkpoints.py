"""The public functions: what they take, what they refuse, and what they leave on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anyorder.checkpoints import convert, llama2c, load, load_model, load_tokenizer, read_checkpoint, save_model
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama


@pytest.fixture
def stories(shared_data: Path) -> Path:
    return shared_data / "stories260K" / "stories260K.bin"


@pytest.fixture
def tok512(shared_data: Path) -> Path:
    return shared_data / "stories260K" / "tok512.bin"


def same_weights(a: Llama, b: Llama) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_there_and_back(stories: Path, tok512: Path, tmp_path: Path) -> None:
    convert(stories, tmp_path / "folder", tokenizer=tok512)
    convert(tmp_path / "folder", tmp_path / "again", max_shard_size=100_000)
    convert(tmp_path / "again", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == stories.read_bytes()
    assert load_tokenizer(tmp_path / "again").encode("Once upon") == load_tokenizer(tok512).encode("Once upon")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 10
    assert load_model(tmp_path / "folder").config == load_model(stories).config


def test_without_a_tokenizer(stories: Path, tmp_path: Path) -> None:
    convert(stories, tmp_path / "folder")
    assert not (tmp_path / "folder" / "tokenizer.json").exists()
    assert same_weights(load_model(tmp_path / "folder"), load_model(stories))


def test_to_another_dtype(stories: Path, tmp_path: Path) -> None:
    convert(stories, tmp_path / "folder", dtype="bfloat16")
    assert load_model(tmp_path / "folder").dtype == torch.bfloat16


def test_our_own_kind_keeps_its_tokenizer(tiny_config: ModelConfig, tok512: Path, tmp_path: Path) -> None:
    model = Llama(tiny_config.replace(layers=(LayerKind(), LayerKind(rotary=False)), vocab_size=512))
    tokenizer = load_tokenizer(tok512)
    save_model(model, tmp_path / "folder", tokenizer=tokenizer)
    assert same_weights(load_model(tmp_path / "folder"), model)
    assert load_tokenizer(tmp_path / "folder").encode("  Once upon") == tokenizer.encode("  Once upon")


def test_the_tokenizer_of_another_network(stories: Path, shared_data: Path, tmp_path: Path) -> None:
    llama2 = shared_data / "llama2_tokenizer" / "tokenizer.model"
    with pytest.raises(UserError, match=r"tokenizer.model' has 32000 tokens, but the network in .* has 512: give the"):
        convert(stories, tmp_path / "folder", tokenizer=llama2)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_fewer_tokens(tiny_config: ModelConfig, tok512: Path, tmp_path: Path) -> None:
    model = Llama(tiny_config.replace(vocab_size=576))
    save_model(model, tmp_path / "padded")
    convert(tmp_path / "padded", tmp_path / "folder", tokenizer=tok512)  # more embeddings than tokens are usual there
    llama2c.write(model, tmp_path / "padded.bin")
    with pytest.raises(UserError, match=r"tok512.bin' has 512 tokens, but the network in .* has 576"):
        convert(tmp_path / "padded.bin", tmp_path / "other", tokenizer=tok512)


def test_network_and_tokenizer_together(tiny_config: ModelConfig, stories: Path, tok512: Path, tmp_path: Path) -> None:
    convert(stories, tmp_path / "folder", tokenizer=tok512)
    for path, where in ((tmp_path / "folder", None), (stories, tok512), (str(stories), str(tok512))):
        model, tokenizer = load(path, tokenizer=where, device="cpu", dtype="float64")
        assert tokenizer is not None
        assert tokenizer.encode("Once upon") == load_tokenizer(tok512).encode("Once upon")
        assert (model.dtype, model.device.type) == (torch.float64, "cpu")
    assert load(stories)[1] is None
    save_model(Llama(tiny_config), tmp_path / "small")
    with pytest.raises(UserError, match=r"tok512.bin' has 512 tokens, but the network in '.*small' has 128: give the"):
        load(tmp_path / "small", tokenizer=tok512)


def test_weights_alone_take_no_tokenizer(tiny_config: ModelConfig, stories: Path, tok512: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"tokenizer is given for '.*a.bin', a llama2.c file of weights alone: leave it"
    ):
        convert(stories, tmp_path / "a.bin", tokenizer=tok512)
    with pytest.raises(UserError, match=r"max_shard_size is given for '.*a.bin', a llama2.c file"):
        save_model(Llama(tiny_config), tmp_path / "a.bin", max_shard_size=100)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_llama2_c_cannot_hold(tiny_config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'mlp_bias' is True: a llama2.c file can hold False only"):
        save_model(Llama(tiny_config.replace(mlp_bias=True)), tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint 'nothing' is no folder or file here: check the path"):
        load_model("./nothing")
    with pytest.raises(UserError, match=r"folder '.*' has no config.json: give the folder of a Hugging Face"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model.safetensors' is weights alone: give the folder, with config.json"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_a_target_is_checked_before_the_source_is_read(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target, message in (
        ("file/new", r"cannot be written \('.*file' is a file\)"),
        ("file", r"file' is a file: give"),
    ):
        with pytest.raises(UserError, match=message):
            convert(tmp_path / "nothing", tmp_path / target)


def test_a_place_that_is_taken(tiny_config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"output folder '.*' is not empty: give a new folder, or empty this one first"):
        save_model(Llama(tiny_config), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("target", ["folder", "a.bin"])
def test_a_source_that_is_damaged_leaves_nothing(stories: Path, tmp_path: Path, target: str) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(stories.read_bytes()[:-4])
    with pytest.raises(
        UserError, match=r"source.bin' has 1056536 bytes, but a llama2.c file with its header has 1056540"
    ):
        convert(source, tmp_path / target)
    data = bytearray(stories.read_bytes())
    data[1000:1004] = b"\xff" * 4  # NaN
    source.write_bytes(data)
    with pytest.raises(UserError, match=r"tensor 'model.embed_tokens.weight' in '.*source.bin' holds NaN"):
        convert(source, tmp_path / target)
    assert [file.name for file in tmp_path.iterdir()] == ["source.bin"]


def test_a_write_that_fails_leaves_nothing(
    tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anyorder.checkpoints.huggingface.save_file", full)
    with pytest.raises(
        UserError, match=r"output '.*folder' cannot be written \(No space left on device\): give another"
    ):
        save_model(Llama(tiny_config), tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype is 'int4': give 'auto' or one of 'float64'"),
        ({"device": "gpu"}, "device 'gpu' is not available here: give 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_options_that_are_refused(stories: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(stories, **options)  # type: ignore[arg-type]


def test_rounded_weights_are_not_saved(tiny_config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the network's weights are int8, rounded for writing alone: save it as"):
        save_model(to_int8(Llama(tiny_config)), tmp_path / "int8")
    assert not (tmp_path / "int8").exists()
