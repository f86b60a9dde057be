"""Checkpoints with something wrong in them, at random: each is read, or refused in one sentence, and soon."""

from __future__ import annotations

import json
import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anyorder.checkpoints import load_model, save_model
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, blocks, diffusion
from anyorder.model.rope import DynamicRotary, Llama3Rotary, Rotary, YarnRotary
from tests.checkpoints.metas_form import write_metas_folder
from tests.checkpoints.test_meta_forms import write_in_form

SECONDS = 20.0
"""That a tiny checkpoint may take; tens of milliseconds are usual."""

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**5, 10**7, 2**31, 2**32 + 1, 2**62, 2**63, 10**30, 10**400, -(10**30),
    0.5, -0.5, 1.0, 64.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"), "", "a", "64", "x" * 10_000,
    "\u0000", "\ud800", "../../etc/passwd", "/", "[/x]", "{}", [], [[]], [1], [10**30], ["a"], [None], [[1], [2]], {},
    {"a": 1}, {"rope_type": "yarn"}, {"rope_type": [], "rope_theta": 1}, {"rope_theta": 1e4, "rope_type": {"a": []}},
]  # fmt: skip

NAMES = (
    "model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "layer_types",
    "sliding_window", "use_sliding_window", "max_window_layers", "no_rope_layers", "no_rope_layer_interval",
    "rope_parameters", "rope_scaling", "rope_theta", "tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act",
    "bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "bd_size", "partial_rotary_factor",
    "quantization_config", "transformers_version", "torch_dtype", "initializer_range", "modes", "default_mode",
    "layers", "rotary", "attention", "qk_norm", "eos_token_ids", "is_causal", "original_max_position_embeddings",
)  # fmt: skip

META_NAMES = (
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "norm_eps", "rope_theta", "use_scaled_rope",
    "rope_scaling_factor", "rope_high_freq_factor", "max_seq_len", "use_qk_norm", "nope_layer_interval", "head_dim",
    "attention_chunk_size", "attn_temperature_tuning", "floor_scale", "attn_scale", "moe_args", "model", "multiple_of",
)  # fmt: skip


def sound(config: ModelConfig, place: Path) -> dict[str, Path]:
    """Checkpoints of every form, small and whole."""
    plain = Llama(config)
    own = (LayerKind(rotary=Rotary(theta=7.0), window=4), LayerKind(chunk=3))
    networks = {
        "plain": plain,
        "rotary": Llama(config.replace(rotary=Llama3Rotary(
            theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32,
        ))),
        "ours": Llama(config.replace(modes=(LEFT_TO_RIGHT, ANY_ORDER, diffusion(3)), layers=own)),
        "blocks": Llama(config.replace(modes=(blocks(3, 4),))),
        "yarn": Llama(config.replace(
            rotary=YarnRotary(theta=1e4, factor=2.0, original_max_position_embeddings=32), modes=(diffusion(3),)
        )),
        "dynamic": Llama(config.replace(
            rotary=DynamicRotary(theta=1e4, factor=2.0, original_max_position_embeddings=64),
            layers=(LayerKind(window=8), LayerKind()), qk_norm="learned",
        )),
    }  # fmt: skip
    for name, model in networks.items():
        save_model(model, place / name)
    save_model(plain, place / "sharded", max_shard_size=40_000)
    save_model(Llama(config.replace(modes=(diffusion(3),))), place / "llada", form="llada")
    save_model(Llama(config.replace(modes=(diffusion(3),))), place / "illada", form="illada")
    shifted = config.replace(modes=(blocks(3, 4, shifted=True),), attention_bias=True)
    save_model(Llama(shifted), place / "fast", form="fast-dllm-v2")
    write_metas_folder(plain, place / "meta", 2)
    write_in_form(plain, place / "meta fused", "fused", 1)
    return {folder.name: folder for folder in place.iterdir()}


# ------------------------------------------------------------------------------------------------ damages


def wrong_field(draw: random.Random, file: Path) -> None:
    """A field, at any depth, gets another value, another name, or goes."""
    fields = json.loads(file.read_text())
    holder: Any = fields
    while True:
        items = holder.values() if isinstance(holder, dict) else holder
        inner = [value for value in items if isinstance(value, dict | list) and value]
        if not inner or draw.random() < 0.6:
            break
        holder = draw.choice(inner)
    keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    known = META_NAMES if file.name == "params.json" else NAMES
    key = draw.choice([*keys, *(draw.sample(known, 5) if isinstance(holder, dict) else ())])
    if draw.random() < 0.15 and key in keys:
        del holder[key]
    elif draw.random() < 0.1 and isinstance(holder, dict) and key in keys:
        holder[draw.choice(["", "x" * 300, "a/b", "..", "\u0000"])] = holder.pop(key)
    else:
        holder[key] = draw.choice(VALUES)
    file.write_text(json.dumps(fields), encoding="utf-8", errors="surrogatepass")


def wrong_text(draw: random.Random, file: Path) -> None:
    """Text that is no JSON, or none that Python likes."""
    text = file.read_text()
    at = draw.randrange(len(text))
    first = next(iter(json.loads(text)))
    damaged: list[bytes] = [
        b"", b" ", b"null", b"[]", b"3", b'"a"', b"\xff\xfe", b"\x00" * 40, text.encode("utf-16"),
        b"[" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, ("[" * 900 + "]" * 900).encode(),
        text.replace("{", '{"deep": ' + "[" * 400 + "]" * 400 + ",", 1).encode(),
        text.replace("{", f'{{"long": {"9" * 5000},', 1).encode(),
        text.replace("{", f'{{"{first}": 1, "{first}": 2,', 1).encode(),
        text[:at].encode(), (text[:at] + draw.choice(list('{}[]",:0\u00e9\u0000')) + text[at:]).encode(),
        b"\xef\xbb\xbf" + text.encode(),
    ]  # fmt: skip
    file.write_bytes(draw.choice(damaged))


def wrong_bytes(draw: random.Random, file: Path) -> None:
    """Bytes that are gone, doubled or others."""
    data = bytearray(file.read_bytes())
    for _ in range(draw.choice([1, 1, 3, 20])):
        if data:
            data[draw.randrange(min(len(data), draw.choice([16, 4096, len(data)])))] = draw.randrange(256)
    if draw.random() < 0.4:
        data = data[: draw.randrange(len(data) + 1)]
    file.write_bytes(bytes(data) + b"\0" * draw.choice([0, 0, 7]))


def wrong_header(draw: random.Random, file: Path) -> None:
    """Other numbers, names and types in the header of safetensors."""
    data = file.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    name = draw.choice([name for name in header if name != "__metadata__"])
    change = draw.randrange(6)
    if change == 0:
        header[name]["shape"] = draw.choice([[], [0], [2**40, 2**40], [1], [-1], "a", None, [64, 64, 1]])
    elif change == 1:
        header[name]["dtype"] = draw.choice(["F8_E4M3", "I64", "BOOL", "", 3, None, "F16"])
    elif change == 2:
        header[name]["data_offsets"] = draw.choice([[0, 0], [0, 2**63], [5, 1], [-4, 4], None, ["a", "b"]])
    elif change == 3:
        header[draw.choice(["x" * 5000, "", "model.layers.99999999999.norm", "a.b"])] = header.pop(name)
    elif change == 4:
        del header[name]
    else:
        header = draw.choice([{}, {"__metadata__": {}}, {name: header[name]}, []])
    text = json.dumps(header).encode()
    told = draw.choice([len(text)] * 6 + [0, 2**63, 2**31, len(text) + 3])
    file.write_bytes(struct.pack("<Q", told) + text + data[8 + length :])


def wrong_files(draw: random.Random, file: Path) -> None:
    """A file that is missing, empty, or a folder."""
    file.unlink()
    if draw.random() < 0.5:
        file.touch()
    elif draw.random() < 0.5:
        file.mkdir()


DAMAGES: dict[str, list[Callable[[random.Random, Path], None]]] = {
    ".json": [wrong_field, wrong_field, wrong_field, wrong_text, wrong_files],
    ".safetensors": [wrong_header, wrong_header, wrong_bytes, wrong_files],
    ".pth": [wrong_bytes, wrong_files],
}


def damage(draw: random.Random, folder: Path) -> str:
    """Does something to one file, and says what."""
    files = sorted(file for file in folder.iterdir() if file.suffix in DAMAGES)
    in_words = [file for file in files if file.suffix == ".json"]
    file = draw.choice(in_words if draw.random() < 0.7 else files)
    how = draw.choice(DAMAGES[file.suffix])
    how(draw, file)
    return f"{how.__name__} of {file.name} in {folder.name}"


def check(numbers: range, tiny_config: ModelConfig, tmp_path: Path) -> None:
    """Whether checkpoints damaged by draws with these seeds are read, or refused as users are told."""
    small = tiny_config.replace(vocab_size=32, hidden_size=16, intermediate_size=24)
    (tmp_path / "sound").mkdir()
    folders = sound(small.replace(head_dim=4), tmp_path / "sound")
    refused = 0
    for number in numbers:
        draw = random.Random(number)
        name = draw.choice(sorted(folders))
        folder = tmp_path / "damaged" / name
        shutil.copytree(folders[name], folder)
        what = damage(draw, folder)
        began = time.process_time()
        try:
            model = load_model(folder, device="cpu")
            with torch.no_grad():
                model(torch.tensor([[1, 2, 3]]))
        except UserError as error:
            refused += 1
            assert_one_sentence(str(error), f"{number}: {what}")
        except BaseException as error:
            raise AssertionError(f"{number}: {what}: {type(error).__name__}: {error}") from error
        assert time.process_time() - began < SECONDS, f"{number}: {what}"
        shutil.rmtree(folder)
    assert 0.3 < refused / len(numbers) < 1.0


def assert_one_sentence(message: str, what: str) -> None:
    assert message.endswith("."), (what, message)
    assert "\n" not in message, (what, message)
    assert len(message) < 1500, (what, message)
    assert ": " in message, (what, message)


def test_what_is_damaged_is_read_or_refused(tiny_config: ModelConfig, tmp_path: Path) -> None:
    check(range(400), tiny_config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_that_are_damaged(part: int, tiny_config: ModelConfig, tmp_path: Path) -> None:
    check(range(400 + 1000 * part, 1400 + 1000 * part), tiny_config, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 10**5}, "'num_hidden_layers' is 100000: give at most 4,096"),
        ({"num_hidden_layers": 10**7}, "'num_hidden_layers' is 10000000: give at most 4,096"),
        ({"num_hidden_layers": 4000}, "has 21 tensors, but its configuration 4000 layers: mend the configuration"),
        ({"vocab_size": 2**31 - 1, "hidden_size": 2**30}, r"'vocab_size' is 2147483647: give smaller sizes, as beside"),
        ({"intermediate_size": 10**30}, "'intermediate_size' is 10{30}: give a smaller number"),
        ({"hidden_size": 2**62}, "'hidden_size' is 4611686018427387904: give at most"),
        ({"rms_norm_eps": -1.0}, "'rms_norm_eps' is -1.0: give a number from 0 on"),
        ({"rms_norm_eps": 1e200}, r"'rms_norm_eps' is 1e\+200: give at most"),
        ({"rope_theta": 1e200, "rope_parameters": None}, r"rotary field 'theta' is 1e\+200: give at most"),
        ({"max_position_embeddings": 10**30}, "'max_position_embeddings' is 10{30}: give a smaller number"),
        (
            {"sliding_window": 10**30, "model_type": "mistral", "architectures": None},
            "'window' is 10{30}: give a smaller number",
        ),
        ({"pad_token_id": 10**30}, "'pad_token_id' is 10{30}: give a smaller number"),
        ({"head_dim": 2**31 - 2}, r"has shape \[64, 64\], but the configuration asks for \[8589934584, 64\]"),
    ],
)
def test_numbers_that_are_too_large(
    tiny_config: ModelConfig, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    save_model(Llama(tiny_config), tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    began = time.process_time()
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "saved", device="cpu")
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' * 5000 + "1" + "}" * 5000, "(nests thousands of|is not JSON)"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nests more than 50 lists or objects: fetch it again"),
        (f'{{"vocab_size": {"1" * 5000}}}', "is not JSON .*: fetch it again"),
        ('{"vocab_size": 128, "vocab_size": 64}', "gives the field 'vocab_size' twice: keep the one that is right"),
        ("", "is not JSON"),
        ("\ud800", "is not JSON"),
    ],
)
def test_json_that_is_none(tiny_config: ModelConfig, tmp_path: Path, text: str, message: str) -> None:
    save_model(Llama(tiny_config), tmp_path / "saved")
    for name in ("config.json", "generation_config.json"):
        (tmp_path / "saved" / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match=rf"{name}' {message}"):
            load_model(tmp_path / "saved")
        save_model(Llama(tiny_config), tmp_path / name)
        (tmp_path / "saved" / "config.json").write_bytes((tmp_path / name / "config.json").read_bytes())


def test_a_byte_order_mark_is_passed_over(tiny_config: ModelConfig, tmp_path: Path) -> None:
    save_model(Llama(tiny_config), tmp_path / "saved", max_shard_size=50_000)
    for file in (tmp_path / "saved").glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_model(tmp_path / "saved", device="cpu").config == tiny_config


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a\0b", "../model.safetensors", "/etc/passwd", "", ".", "a/b", 3, None, []]
)
def test_names_of_shards(tiny_config: ModelConfig, tmp_path: Path, name: Any) -> None:
    save_model(Llama(tiny_config), tmp_path / "saved", max_shard_size=50_000)
    index = tmp_path / "saved" / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    fields["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"(has no weight_map of tensors to files beside it|is missing: complete)"):
        load_model(tmp_path / "saved")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "~nobody-of-this-name/x", 3, None, [], b"a"])
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(UserError, match=r"^checkpoint .*: (give|check) .*"):
        load_model(path)
