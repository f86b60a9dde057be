from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from anyorder.checkpoints import convert, llama2c, load_model
from anyorder.checkpoints.layouts import to_halves, to_interleaved
from anyorder.checkpoints.llama2c import LEGACY, VERSION_1, read_header, read_pieces, write_pieces
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import LinearRotary, Rotary

VERSIONS = [LEGACY, VERSION_1]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tiny_config: ModelConfig) -> Llama:
    return Llama(tiny_config.replace(tie_word_embeddings=request.param))


@pytest.mark.parametrize("version", VERSIONS)
def test_round_trip(model: Llama, version: int, tmp_path: Path) -> None:
    llama2c.write(model, tmp_path / "a.bin", version)
    again = load_model(tmp_path / "a.bin")
    kept = [name for name in again.state_dict() if torch.equal(again.state_dict()[name], model.state_dict()[name])]
    assert kept == list(model.state_dict())
    llama2c.write(again, tmp_path / "b.bin", version)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


@pytest.mark.parametrize(("name", "version"), [("stories260K.bin", LEGACY), ("stories260K.v1.bin", VERSION_1)])
def test_published_files_are_written_back_to_the_byte(
    shared_data: Path, tmp_path: Path, name: str, version: int
) -> None:
    source = shared_data / "stories260K" / name
    llama2c.write(load_model(source), tmp_path / name, version)
    assert (tmp_path / name).read_bytes() == source.read_bytes()


def test_both_versions_hold_the_same_network(shared_data: Path) -> None:
    legacy = load_model(shared_data / "stories260K" / "stories260K.bin")
    version_1 = load_model(shared_data / "stories260K" / "stories260K.v1.bin")
    assert legacy.config == version_1.config
    assert legacy.config.eos_token_ids == (2, 1)
    token_ids = torch.randint(512, (2, 50))
    assert torch.equal(legacy(token_ids).logits, version_1(token_ids).logits)


def test_rows_of_rotated_projections() -> None:
    rows = torch.arange(12.0)[:, None]  # two heads of six
    assert to_halves(rows, 6).flatten().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(to_interleaved(to_halves(rows, 6), 6), rows)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("change", [b"", b"\0\0\0\0"], ids=["truncated", "too long"])
def test_a_file_of_another_size(tiny_config: ModelConfig, tmp_path: Path, version: int, change: bytes) -> None:
    file = tmp_path / "a.bin"
    llama2c.write(Llama(tiny_config), file, version)
    whole = file.read_bytes()
    file.write_bytes(whole + change if change else whole[:-4])
    with pytest.raises(UserError, match=rf"has \d+ bytes, but a llama2.c file with its header has {len(whole)}: fetch"):
        load_model(file)


LIES = [
    (version, word, value)
    for version in VERSIONS
    for word in range(7)
    for value in (0, -5, 1, 2**31 - 1)
    # In version 1 no tensor depends on the trained length, so any may be true.
    if not (version == VERSION_1 and word == 6 and value > 0)
]


@pytest.mark.parametrize(("version", "word", "value"), LIES)
def test_a_header_that_lies(tiny_config: ModelConfig, tmp_path: Path, version: int, word: int, value: int) -> None:
    file = tmp_path / "a.bin"
    llama2c.write(Llama(tiny_config), file, version)
    data = bytearray(file.read_bytes())
    struct.pack_into("<i", data, 4 * word + (8 if version == VERSION_1 else 0), value)
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.bin.*(says that|bytes, but|configuration field)"):
        load_model(file)


def test_heads_that_do_not_fit(tiny_config: ModelConfig, tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    llama2c.write(Llama(tiny_config.replace(num_key_value_heads=4)), file, VERSION_1)
    data = bytearray(file.read_bytes())
    struct.pack_into("<2i", data, 8 + 12, 64, 64)  # as many bytes, with heads of one number
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.bin': configuration field 'head_dim' is 1: rotary embeddings turn pairs"):
        load_model(file)


@pytest.mark.parametrize("content", [b"", b"\x40", b"PK\x03\x04" + b"\0" * 500, b"Once upon a time" * 20])
def test_no_checkpoint_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.bin' (says that \w+ is \d+: give a llama2.c|has \d+ bytes, but)"):
        load_model(tmp_path / "a.bin")


def test_a_version_that_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(struct.pack("<Ii", llama2c.MAGIC, 2).ljust(300, b"\0"))
    with pytest.raises(UserError, match=r"is a llama2.c file of version 2: export it as version 0 or 1"):
        load_model(tmp_path / "a.bin")


def test_weights_that_are_not_finite(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = Llama(tiny_config)
    model.model.norm.weight.data[3] = float("nan")
    llama2c.write(model, tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"tensor 'model.norm.weight' in '.*a.bin' holds NaN or infinity: fetch"):
        load_model(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, r"'attention_bias' is True: a llama2.c file can hold False only, so write a folder"),
        ({"mlp_bias": True}, r"'mlp_bias' is True"),
        ({"head_dim": 8}, r"'head_dim' is 8: a llama2.c file holds 16 only"),
        ({"rms_norm_eps": 1e-6}, r"'rms_norm_eps' is 1e-06: a llama2.c file can hold 1e-05 only"),
        ({"rotary": Rotary(theta=5e5)}, r"'rotary' is Rotary\(theta=500000.0"),
        ({"rotary": LinearRotary(theta=1e4, factor=2.0)}, r"'rotary' is LinearRotary"),
        ({"layers": (LayerKind(), LayerKind(rotary=False))}, r"'layers' is \(LayerKind"),
    ],
)
def test_networks_that_it_cannot_hold(
    tiny_config: ModelConfig, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        llama2c.write(Llama(tiny_config.replace(**changes)), tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()


def test_float64_is_not_narrowed_in_silence(tiny_config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dtype is torch.float64: llama2.c files hold float32, so load"):
        llama2c.write(Llama(tiny_config).double(), tmp_path / "a.bin")


def test_unknown_version_to_write(tiny_config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"version is 2: give 0 \(legacy, which run.c reads\) or 1"):
        llama2c.write(Llama(tiny_config), tmp_path / "a.bin", 2)


def test_convert_writes_the_form_that_run_c_reads(tiny_config: ModelConfig, tmp_path: Path) -> None:
    llama2c.write(Llama(tiny_config).bfloat16(), tmp_path / "a.bin", VERSION_1)
    convert(tmp_path / "a.bin", tmp_path / "b.bin")
    assert read_header(tmp_path / "b.bin").version == LEGACY


@pytest.mark.parametrize("name", ["stories260K/tok512.bin", "llama2_tokenizer/tokenizer.bin"])
def test_tokenizer_files_are_written_back_to_the_byte(shared_data: Path, tmp_path: Path, name: str) -> None:
    write_pieces(*read_pieces(shared_data / name), tmp_path / "t.bin")
    assert (tmp_path / "t.bin").read_bytes() == (shared_data / name).read_bytes()


PIECE = struct.pack("<ifi", 5, 0.0, 5) + b"<unk>"


@pytest.mark.parametrize(
    "content",
    [
        b"\1\0",
        PIECE[:-1],
        PIECE + b"\0\0\0",
        struct.pack("<ifi", 5, 0.0, -5) + b"<unk>",
        struct.pack("<ifi", 5, 0.0, 0),
        struct.pack("<ifi", 4, 0.0, 5) + b"<unk>",
        struct.pack("<ifi", 5, float("nan"), 5) + b"<unk>",
        struct.pack("<ifi", 5, 0.0, 5) + b"\xff" * 5,
        b"Once upon a time there was",
    ],
    ids=["tiny", "truncated", "ragged", "negative", "empty piece", "too long", "NaN", "no UTF-8", "text"],
)
def test_tokenizer_files_that_are_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"'.*t\.bin' is no whole llama2.c tokenizer file: give one"):
        read_pieces(tmp_path / "t.bin")


def test_text_is_no_llama2c_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "What is a list?"}\n' * 4)
    with pytest.raises(UserError, match=r"says that dim is \d+: give a llama2.c checkpoint, this is none"):
        load_model(file)
