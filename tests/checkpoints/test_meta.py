"""Meta's folders: whole and in shards, what they leave unsaid, and what is wrong with them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anyorder.checkpoints import convert, load, load_model, read_checkpoint
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Llama3Rotary, Rotary
from tests.checkpoints.metas_form import metas_logits, metas_tensors, write_metas_folder
from tests.checkpoints.test_weights import PEAK

QUERIES = "layers.0.attention.wq.weight"


@pytest.fixture
def model(tiny_config: ModelConfig) -> Llama:
    """Four heads and two key-value heads, with norms that are not just ones."""
    model = Llama(tiny_config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def folder(model: Llama, tmp_path: Path) -> Path:
    return write_metas_folder(model, tmp_path / "llama")


def change(file: Path, **changes: Any) -> None:
    """Changes, adds, or (with None) deletes tensors of a file."""
    tensors = torch.load(file) | changes
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


def change_params(folder: Path, **changes: Any) -> None:
    params = json.loads((folder / "params.json").read_text()) | changes
    (folder / "params.json").write_text(json.dumps(params))


def assert_same_weights(a: Llama, b: Llama) -> None:
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


# ------------------------------------------------------------------------------------------------ what is read


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_are_those_of_metas_code(tiny_config: ModelConfig, tmp_path: Path, scaled: bool, kv_heads: int) -> None:
    config = tiny_config.replace(num_key_value_heads=kv_heads, rotary=Rotary(theta=500_000.0))
    folder = write_metas_folder(Llama(config), tmp_path / "llama", use_scaled_rope=scaled)
    ours = load_model(folder, device="cpu")
    token_ids = torch.randint(config.vocab_size, (40,)).tolist()
    with torch.no_grad():
        logits = ours(torch.tensor([token_ids])).logits[0]
        expected = metas_logits(folder, token_ids, ours.config.rotary.frequencies(config.head_dim))
    assert (logits - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("embedding_rows", [False, True], ids=["Llama 2's embedding", "Llama 3's embedding"])
def test_shards_are_joined(model: Llama, tmp_path: Path, shards: int, embedding_rows: bool) -> None:
    # With four shards there are more than key-value heads.
    folder = write_metas_folder(model, tmp_path / "llama", shards, embedding_rows, vocab_size=-1)
    loaded = load_model(folder, device="cpu")
    assert_same_weights(loaded, model)
    assert loaded.config.vocab_size == model.config.vocab_size
    assert loaded.config.intermediate_size == model.config.intermediate_size


def test_dtypes_are_kept(model: Llama, tmp_path: Path) -> None:
    folder = write_metas_folder(model.to(torch.bfloat16), tmp_path / "llama", 2)
    assert read_checkpoint(folder).dtype == torch.bfloat16
    assert load_model(folder, device="cpu").dtype == torch.bfloat16
    assert load_model(folder, device="cpu", dtype="float64").dtype == torch.float64


def test_a_head_without_groups(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = Llama(tiny_config.replace(num_key_value_heads=4))
    folder = write_metas_folder(model, tmp_path / "llama", n_kv_heads="absent")
    assert_same_weights(load_model(folder, device="cpu"), model)


@pytest.mark.parametrize("head", ["equal", "missing"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_tied_head(tiny_config: ModelConfig, tmp_path: Path, head: str, shards: int) -> None:
    model = Llama(tiny_config.replace(tie_word_embeddings=True))
    folder = write_metas_folder(model, tmp_path / "llama", shards, embedding_rows=True)
    for file in folder.glob("*.pth") if head == "missing" else ():
        change(file, **{"output.weight": None})
    loaded = load_model(folder, device="cpu")
    assert loaded.config.tie_word_embeddings
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert_same_weights(loaded, model)


def test_a_folder_is_converted(folder: Path, model: Llama, tmp_path: Path) -> None:
    convert(folder, tmp_path / "converted")
    assert_same_weights(load_model(tmp_path / "converted", device="cpu"), model)
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["model_type"] == "llama"


# ------------------------------------------------------------------------------------------------ what is not said


def config_of(tiny_config: ModelConfig, folder: Path, vocabulary: int = 128, **params: Any) -> ModelConfig:
    config = tiny_config.replace(vocab_size=vocabulary, hidden_size=8, intermediate_size=8)
    write_metas_folder(Llama(config), folder, **params)
    return read_checkpoint(folder).config


def test_the_base_of_llama_2_goes_without_saying(tiny_config: ModelConfig, tmp_path: Path) -> None:
    config = config_of(tiny_config, tmp_path / "a", 32_000, rope_theta="absent", vocab_size=-1)
    assert (config.rotary, config.max_position_embeddings) == (Rotary(theta=10_000.0), 4096)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    llama1 = config_of(tiny_config, tmp_path / "b", 32_000, rope_theta="absent", norm_eps=1e-6)
    assert (llama1.rms_norm_eps, llama1.max_position_embeddings) == (1e-6, 2048)
    config = config_of(tiny_config, tmp_path / "c", 32_000, rope_theta=1_000_000.0)
    assert (config.rotary, config.max_position_embeddings) == (Rotary(theta=1_000_000.0), 16_384)


def test_another_base_must_be_said(tiny_config: ModelConfig, tmp_path: Path) -> None:
    message = r"params.json': field 'rope_theta' is missing, .* this network has 128: add the base .* for Llama 3"
    with pytest.raises(UserError, match=message):
        config_of(tiny_config, tmp_path / "a", rope_theta="absent")
    with pytest.raises(UserError, match="field 'rope_theta' is missing"):
        config_of(tiny_config, tmp_path / "b", 32_000, rope_theta="absent", use_scaled_rope=True)


def test_llama_3(tiny_config: ModelConfig, tmp_path: Path) -> None:
    config = config_of(tiny_config, tmp_path / "a", 128_256, rope_theta=500_000.0)
    assert (config.rotary, config.max_position_embeddings) == (Rotary(theta=500_000.0), 8192)
    assert (config.bos_token_id, config.eos_token_ids) == (128_000, (128_001, 128_008, 128_009))


@pytest.mark.parametrize(
    ("tied", "given", "factor"), [(False, {}, 8.0), (True, {}, 32.0), (True, {"rope_scaling_factor": 16}, 16.0)]
)
def test_scaled_angles(tiny_config: ModelConfig, tmp_path: Path, tied: bool, given: dict, factor: float) -> None:
    tiny_config = tiny_config.replace(tie_word_embeddings=tied)
    config = config_of(tiny_config, tmp_path / "a", rope_theta=500_000.0, use_scaled_rope=True, **given)
    expected = Llama3Rotary(
        theta=500_000.0, factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    assert (config.rotary, config.max_position_embeddings) == (expected, 131_072)


def test_a_length_that_is_given(tiny_config: ModelConfig, tmp_path: Path) -> None:
    assert config_of(tiny_config, tmp_path / "a", max_seq_len=96).max_position_embeddings == 96


def test_the_tokenizer_of_the_folder(tiny_config: ModelConfig, shared_data: Path, tmp_path: Path) -> None:
    ranks = shared_data / "tiny_tokenizers" / "torchtune_tiktoken_small.model"
    folder = write_metas_folder(Llama(tiny_config.replace(vocab_size=2256)), tmp_path / "llama")
    (folder / "tokenizer.model").write_bytes(ranks.read_bytes())
    model, tokenizer = load(folder, device="cpu")
    assert tokenizer is not None
    assert model.config.bos_token_id == tokenizer.bos_token_id == 2000
    assert model.config.eos_token_ids[0] == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(model.config.eos_token_ids[1:]) == ["<|eom_id|>", "<|eot_id|>"]
    convert(folder, tmp_path / "converted")
    again, words = load(tmp_path / "converted", device="cpu")
    assert words is not None
    assert again.config.eos_token_ids == model.config.eos_token_ids
    assert words.encode("Once upon a time") == tokenizer.encode("Once upon a time")


def test_a_tokenizer_that_does_not_fit(tiny_config: ModelConfig, shared_data: Path, tmp_path: Path) -> None:
    ranks = shared_data / "tiny_tokenizers" / "torchtune_tiktoken_small.model"
    folder = write_metas_folder(Llama(tiny_config.replace(vocab_size=2300)), tmp_path / "llama")
    (folder / "tokenizer.model").write_bytes(ranks.read_bytes())
    for do in (lambda: load(folder), lambda: convert(folder, tmp_path / "new")):
        with pytest.raises(UserError, match=r"llama' has 2256 tokens, but the network in '.*llama' has 2300: give the"):
            do()
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------ what is wrong


class Code:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("form", ["archive", "old archive", "pickle"])
def test_code_is_refused_and_not_run(folder: Path, tmp_path: Path, form: str) -> None:
    trap, file = tmp_path / "trap", folder / "consolidated.00.pth"
    content = torch.load(file) | {"norm.weight": Code(trap)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "archive")
    refusal = r"consolidated.00.pth' names \w+.mkdir, which is no tensor and may be code; nothing of it was run: get"
    if form == "pickle":
        refusal = r"consolidated.00.pth' holds something else than tensors; nothing of it was run: get"
    for do in (lambda: load_model(folder), lambda: convert(folder, tmp_path / "new")):
        with pytest.raises(UserError, match=refusal):
            do()
    assert not trap.exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9999])
def test_a_file_that_is_not_whole(folder: Path, share: float) -> None:
    file = folder / "consolidated.00.pth"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    size = int(share * len(data))
    with pytest.raises(UserError, match=rf"consolidated.00.pth' of {size} bytes is damaged, not whole, or no archive"):
        load_model(folder)


def test_a_shard_that_is_missing(model: Llama, tmp_path: Path) -> None:
    folder = write_metas_folder(model, tmp_path / "llama", 4)
    (folder / "consolidated.03.pth").rename(tmp_path / "03")
    message = (
        r"has 3 of 4 files of weights, as the 16 rows of 'layers.0.attention.wq.weight' and dim, which is 64, tell: "
        r"fetch consolidated.00.pth to consolidated.03.pth"
    )
    with pytest.raises(UserError, match=message):
        load_model(folder)
    (tmp_path / "03").rename(folder / "consolidated.03.pth")
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(UserError, match=r"weight file '.*consolidated.01.pth' is missing: complete the folder"):
        load_model(folder)
    for file in folder.glob("*.pth"):
        file.unlink()
    with pytest.raises(UserError, match=r"has a params.json but no consolidated.00.pth: complete it"):
        load_model(folder)


def test_shards_of_several_networks(model: Llama, tmp_path: Path) -> None:
    folder = write_metas_folder(model, tmp_path / "llama", 2)
    change(folder / "consolidated.01.pth", **{QUERIES: torch.zeros(16, 64)})
    with pytest.raises(UserError, match=r"wq.weight' has shape \[32, 64\] in '.*00.pth', but \[16, 64\] in 'cons.*01"):
        load_model(folder)
    change(folder / "consolidated.01.pth", **{QUERIES: None})
    with pytest.raises(UserError, match=rf"tensor '{QUERIES}' in only one of '.*00.pth' and 'c.*01.pth': fetch both"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({QUERIES: None}, rf"llama' lacks tensor '{QUERIES}': complete it, or mend n_layers"),
        ({"norm.weight": torch.zeros(63)}, r"'model.norm.weight' in .* has shape \[63\], but the .* asks for \[64\]"),
        ({QUERIES: torch.zeros(64)}, rf"tensor '{QUERIES}' in '.*00.pth' has shape \[64\]: fetch it again"),
        ({QUERIES: torch.zeros(())}, rf"tensor '{QUERIES}' in '.*00.pth' has shape \[\]: fetch it again"),
        ({QUERIES: torch.zeros(48, 64)}, r"q_proj.weight' in .* has shape \[48, 64\], but the .* asks for \[64, 64\]"),
        ({QUERIES: torch.zeros(128, 64)}, r"q_proj.weight' in .* has shape \[128, 64\], but the .* asks for"),
        ({QUERIES: torch.zeros(0, 64)}, r"q_proj.weight' in .* has shape \[0, 64\], but the .* asks for"),
        ({"layers.0.attention.wk.weight": torch.zeros(0, 64)}, r"k_proj.weight' in .* has shape \[0, 64\]"),
        ({"norm.weight": torch.full((64,), torch.nan)}, r"'model.norm.weight' in '.*' holds NaN or infinity"),
        ({"layers.0.moe.weight": torch.zeros(2)}, r"has tensor 'layers.0.moe.weight' that the network does not have"),
        ({"norm.weight": torch.zeros(64, dtype=torch.int8)}, r"'norm.weight' in '.*' is stored as int8: store it as"),
        ({"norm.weight": 3}, r"'norm.weight' in '.*' is of type int, not a tensor: give the weights alone"),
        ({"output.weight": torch.zeros(127, 64)}, r"'lm_head.weight' in .* has shape \[127, 64\], but the"),
        ({"tok_embeddings.weight": torch.zeros(128, 63)}, r"embed_tokens.weight' in .* has shape \[128, 63\], but the"),
    ],
)  # fmt: skip
def test_tensors_that_are_wrong(folder: Path, changes: dict[str, Any], message: str) -> None:
    change(folder / "consolidated.00.pth", **changes)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_a_file_of_something_else(folder: Path) -> None:
    torch.save([1, 2], folder / "consolidated.00.pth")
    with pytest.raises(UserError, match=r"consolidated.00.pth' holds list, not tensors by name: give the published"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": None}, "params.json': field 'dim' is missing: add it"),
        ({"dim": 64.0}, "params.json': field 'dim' is 64.0: give a (whole )?number"),
        ({"n_heads": 0}, "params.json': field 'n_heads' is 0: give a (whole )?number"),
        ({"n_layers": True}, "params.json': field 'n_layers' is True: give a (whole )?number"),
        ({"n_layers": 3}, "lacks tensors 'layers.2.attention_norm.weight', .* and 6 more: complete it, or mend"),
        ({"n_layers": 1}, "has tensors 'model.layers.1..*' and 6 more that the network does not have"),
        ({"n_kv_heads": 3}, "params.json': configuration field 'num_key_value_heads' is 3: give a divisor"),
        ({"n_heads": 3, "n_kv_heads": 3}, "params.json': configuration field 'hidden_size' is 64: give a multiple of"),
        ({"vocab_size": -2}, "field 'vocab_size' is -2: give the number of tokens, or -1"),
        ({"vocab_size": 96}, r"embed_tokens.weight' in .* has shape \[128, 64\], but the .* asks for \[96, 64\]"),
        ({"norm_eps": "1e-5"}, "field 'norm_eps' is '1e-5': give a number"),
        ({"rope_theta": float("inf")}, "field 'rope_theta' is inf: give a number"),
        ({"use_scaled_rope": 1}, "field 'use_scaled_rope' is 1: give true or false"),
        (
            {"moe_args": {"num_experts": 16}},
            "lacks tensors 'layers.0.feed_forward.router_DE', .*: complete it, or mend n_layers, moe_args in params.j",
        ),
    ],
)
def test_params_that_are_wrong(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_params(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_model(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_params_that_are_not_json(folder: Path, text: str) -> None:
    (folder / "params.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"params.json' (is not JSON|holds list, not a JSON object).*: fetch it again"):
        load_model(folder)


def test_the_file_alone(folder: Path) -> None:
    with pytest.raises(UserError, match=r"00.pth' is weights alone: give the folder, with params.json beside them"):
        load_model(folder / "consolidated.00.pth")


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's record of the most memory in use")
def test_loading_needs_little_more_than_the_weights(tiny_config: ModelConfig, tmp_path: Path) -> None:
    big = tiny_config.replace(
        vocab_size=6000, hidden_size=1024, intermediate_size=2688, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=8, head_dim=128, layers=(),
    )  # fmt: skip
    with torch.device("meta"):
        model = Llama(big)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model.lm_head.weight.data[0] = 0.02  # not tied
    size = sum(parameter.nbytes for parameter in model.parameters())
    write_metas_folder(Llama(tiny_config), tmp_path / "tiny")
    write_metas_folder(model, tmp_path / "whole")
    write_metas_folder(model, tmp_path / "sharded", 2)

    paths = [str(tmp_path / name) for name in ("tiny", "whole", "sharded")]
    done = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
    libraries, *peaks = map(int, done.stdout.split())
    assert [peak - libraries < 1.2 * size for peak in peaks] == [True, True], (libraries, peaks, size)


def test_every_kind_of_tensor_is_written_by_the_tests(model: Llama) -> None:
    from anyorder.checkpoints.meta_names import OF_DENSE, OF_LAYER, OF_NETWORK

    layer = {f"layers.0.{name}" for name in (*OF_LAYER, *OF_DENSE)}
    assert {name for name in metas_tensors(model) if "layers.1" not in name} == {*OF_NETWORK, *layer, "rope.freqs"}
