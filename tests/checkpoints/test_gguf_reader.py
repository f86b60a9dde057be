"""GGUF files as they are read: networks equal to what transformers makes of the same file, tokenizers, damage."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import anyorder
from anyorder.checkpoints import gguf as writer
from anyorder.checkpoints import load_tokenizer, read_checkpoint
from anyorder.checkpoints.gguf_file import OF_LAYER, OF_NETWORK, half_apart, side_by_side
from anyorder.checkpoints.tokenizer.gguf import PATTERNS
from anyorder.cli import main
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import LinearRotary, Llama3Rotary, Rotary

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

IDS = torch.tensor([[3, 17, 5, 40, 8, 21, 2, 33]])

TEXTS = ("Lily had a red ball.", "two  spaces\n café 日本 1234, don't 😀", "<|end|>a <|end|>", "", " x")


def network(**changes: Any) -> Llama:
    """A random network whose sizes fit blocks of quantization."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rotary": Rotary(theta=10_000.0), "max_position_embeddings": 128,
        "initializer_range": 0.2, "eos_token_ids": (2,), "bos_token_id": 1,
    }  # fmt: skip
    model = Llama(ModelConfig(**(fields | changes))).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def write(model: Llama, path: Path, architecture: str, kind: str = "F32") -> None:
    """Write any architecture the slow way: each tensor by its name, matrices quantized."""
    config = model.config
    out = gguf.GGUFWriter(path, architecture)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_key_length(config.head_dim)
    out.add_rope_dimension_count(config.head_dim)
    out.add_vocab_size(config.vocab_size)
    out.add_rope_freq_base(config.rotary.theta)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_tokenizer_model("no_vocab")
    out.add_eos_token_id(2)
    out.add_bos_token_id(1)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name, weight in model.state_dict().items():
        if name in tied:
            continue
        theirs = OF_NETWORK.get(name)
        if theirs is None:
            number, _, module = name.removeprefix("model.layers.").partition(".")
            module, _, what = module.rpartition(".")
            if architecture in ("llama", "smollm3") and module in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = side_by_side(weight, config.head_dim)
            theirs = f"blk.{number}.{OF_LAYER[module]}.{what}"
        if weight.dim() == 1 or kind == "F32":
            out.add_tensor(theirs, weight.float().contiguous().numpy())
        else:
            its_type = gguf.GGMLQuantizationType[kind]
            out.add_tensor(
                theirs, gguf.quants.quantize(weight.float().contiguous().numpy(), its_type), raw_dtype=its_type
            )
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {"attention_bias": True}),
    # transformers takes heads of 128 for Qwen3, whatever a file says.
    "qwen3": ("qwen3", {"qk_norm": "learned", "head_dim": 128}),
}


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_as_transformers_reads_the_file(name: str, kind: str, tmp_path: Path) -> None:
    architecture, changes = NETWORKS[name]
    write(network(**changes), tmp_path / "a.gguf", architecture, kind)
    ours, tokenizer = anyorder.load(tmp_path / "a.gguf", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32).eval()
    assert tokenizer is None
    assert (ours.config.eos_token_ids, ours.config.bos_token_id) == ((2,), 1)
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert (ours(IDS).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_smollm3_has_layers_without_rotary_embedding(tmp_path: Path) -> None:
    """transformers reads no such files, so the network that was written is what is compared with."""
    layers = tuple(LayerKind(rotary=(number + 1) % 4 != 0) for number in range(4))
    model = network(layers=layers)
    write(model, tmp_path / "a.gguf", "smollm3")
    ours, _ = anyorder.load(tmp_path / "a.gguf", device="cpu")
    assert ours.config.layers == layers
    torch.testing.assert_close(ours(IDS).logits, model(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "eos_token_ids": (2, 5, 9)},
        {"rotary": LinearRotary(theta=1e4, factor=2.5)},
        {
            "head_dim": 32,
            "rotary": Llama3Rotary(
                theta=5e5, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
            ),
        },
    ],
    ids=["plain", "tied", "linear", "llama3"],
)
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype, changes: dict[str, Any]) -> None:
    model = network(**changes).to(dtype)
    writer.write(model, tmp_path / "a.gguf")
    again, _ = anyorder.load(tmp_path / "a.gguf", device="cpu")
    # Special tokens are written with a tokenizer alone.
    changed = {"eos_token_ids": (), "bos_token_id": None, "initializer_range": 0.02}
    assert again.config == model.config.replace(**changed)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_outputs_are_turned_there_and_back() -> None:
    weight = torch.randn(64, 5)
    assert torch.equal(half_apart(side_by_side(weight, 16), 16), weight)
    assert torch.equal(half_apart(side_by_side(weight[:, 0], 16), 16), weight[:, 0])


# ------------------------------------------------------------------------------------------------ tokenizers


def byte_level(pattern: str) -> PreTrainedTokenizerFast:
    """A tokenizer of `tokenizer.json`'s parts, trained on a few texts."""
    kind = PATTERNS[pattern]
    steps = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": [
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
        ],
    }.get(pattern)  # fmt: skip
    backend = Tokenizer(models.BPE(ignore_merges=kind.whole_first))
    if steps is None:
        from tokenizers import Regex

        steps = [
            pre_tokenizers.Split(Regex(kind.steps[0]["pattern"]["Regex"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    if kind.normalizer:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([*TEXTS, "The 1234 cats aren't e\u0301 here\n\n  at all."], trainer)
    backend.add_tokens(["<think>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template="{{ messages }}")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_byte_level_tokenizers(tmp_path: Path, pattern: str) -> None:
    """Ids, special tokens, template; also behind the tokens, where the network has more embeddings."""
    tokenizer = byte_level(pattern)
    model = network(vocab_size=len(tokenizer) + 7, eos_token_ids=(0,), bos_token_id=None)
    anyorder.save(model, tokenizer, tmp_path / "a.gguf")
    _, again = anyorder.load(tmp_path / "a.gguf", device="cpu")
    assert again is not None
    for text in (*TEXTS, "A <think> 2024 aren't e\u0301\u00a0x\r\n\r\n y"):
        ids = tokenizer(text)["input_ids"]
        assert again(text)["input_ids"] == ids
        assert again.decode(ids) == tokenizer.decode(ids)
    assert (again.eos_token, again.chat_template, len(again)) == ("<|end|>", "{{ messages }}", len(tokenizer))
    assert again.all_special_ids == tokenizer.all_special_ids


def test_sentencepiece_tokenizers(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "stories260K"
    anyorder.convert(source / "stories260K.bin", tmp_path / "a.gguf", tokenizer=source / "tok512.bin")
    expected = load_tokenizer(source / "tok512.bin")
    model, tokenizer = anyorder.load(tmp_path / "a.gguf", device="cpu")
    assert tokenizer is not None
    for text in TEXTS[:2]:
        assert tokenizer(text)["input_ids"] == expected(text)["input_ids"]
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    assert tokenizer(TEXTS[0])["input_ids"] == theirs(TEXTS[0])["input_ids"]
    plain, _ = anyorder.load(source / "stories260K.bin", device="cpu")
    told = anyorder.generate(model, tokenizer, "Once upon a time", max_new_tokens=20)
    assert told.text == anyorder.generate(plain, expected, "Once upon a time", max_new_tokens=20).text


def test_convert_to_a_folder(tmp_path: Path) -> None:
    tokenizer = byte_level("smollm")
    anyorder.save(network(vocab_size=len(tokenizer), eos_token_ids=(0,)), tokenizer, tmp_path / "a.gguf")
    assert main(["convert", str(tmp_path / "a.gguf"), str(tmp_path / "folder")]) == 0
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "folder")(TEXTS[0])["input_ids"] == ids
    model, _ = anyorder.load(tmp_path / "a.gguf", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    torch.testing.assert_close(theirs(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits)


# ------------------------------------------------------------------------------------------------ what is refused


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        anyorder.load(path, device="cpu")
    return str(caught.value)


def changed(path: Path, **fields: Any) -> Path:
    """A small file of a plain network with further fields, written by the package itself."""
    model = network()
    architecture = fields.pop("architecture", "llama")
    out = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        name = name.replace("__", ".")
        add = {str: out.add_string, float: out.add_float32, int: out.add_uint32, list: out.add_array}[type(value)]
        add(name, value)
    for name, value in {
        "context_length": 128, "embedding_length": 64, "feed_forward_length": 96, "block_count": 4,
        "attention.head_count": 4, "attention.head_count_kv": 2,
    }.items():  # fmt: skip
        out.add_uint32(f"{architecture}.{name}", value)
    out.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    for name, weight in writer.tensors(writer.contents_of(model)).items():
        out.add_tensor(name, weight.detach().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "gemma3"}, "is of the architecture 'gemma3': of GGUF files this version reads 'llama'"),
        ({"llama__expert_count": 8}, r"has llama\.expert_count 8, which is not read from GGUF files: give the"),
        ({"llama__rope__scaling__type": "longrope", "llama__rope__scaling__factor": 2.0}, "longrope"),
        (
            {"tokenizer__ggml__model": "bert", "tokenizer__ggml__tokens": ["a"] * 64},
            "has a tokenizer of the kind 'bert': of GGUF files this version reads 'llama'",
        ),
        (
            {
                "tokenizer__ggml__model": "gpt2", "tokenizer__ggml__tokens": list(map(str, range(64))),
                "tokenizer__ggml__merges": ["1 2"], "tokenizer__ggml__pre": "tekken",
            },
            "cuts texts by the pattern 'tekken': of GGUF files this version knows 'gpt-2', 'smollm'",
        ),
        (
            {
                "tokenizer__ggml__model": "gpt2", "tokenizer__ggml__tokens": ["a", "b"],
                "tokenizer__ggml__merges": ["a b"], "tokenizer__ggml__eos_token_id": 7,
            },
            "do not fit each other",
        ),
    ],
)  # fmt: skip
def test_files_that_are_not_read(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        anyorder.load(changed(tmp_path / "a.gguf", **fields), device="cpu")


def test_damaged_files(tmp_path: Path) -> None:
    """Whatever is cut off or overwritten ends in a sentence, never in an error of the reader's own."""
    whole = changed(tmp_path / "a.gguf").read_bytes()
    generator = np.random.default_rng(0)
    for number in range(60):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: int(generator.integers(len(whole)))]
        else:
            for at in generator.integers(min(2000, len(whole)), size=3):
                data[at] = int(generator.integers(256))
        file = tmp_path / f"{number}.gguf"
        file.write_bytes(data)
        with suppress(UserError):  # some bytes change names or weights alone
            anyorder.load(file, device="cpu")
    (tmp_path / "text.gguf").write_text("GGUF no more than a text")
    assert "text.gguf' is no whole GGUF file" in refused(tmp_path / "text.gguf")
    assert "is no folder or file here" in refused(tmp_path / "none.gguf")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = changed(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refused(path) == "GGUF files need the package gguf: install it (pip install 'anyorder[gguf]')."


def test_nothing_is_read_before_weights_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(network(), tmp_path / "a.gguf", "llama", "Q8_0")
    monkeypatch.setattr(gguf.quants, "dequantize", lambda *_: pytest.fail("weights were read"))
    checkpoint = read_checkpoint(tmp_path / "a.gguf")
    assert checkpoint.dtype == torch.float32
    assert checkpoint.shapes["model.layers.0.self_attn.k_proj.weight"] == (32, 64)
