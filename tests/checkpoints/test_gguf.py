"""GGUF files, read back by the package gguf and by transformers; test_speed.py lets llama.cpp read one."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import anyorder
from anyorder.checkpoints import gguf as ours
from anyorder.checkpoints import load_tokenizer
from anyorder.checkpoints.contents import contents_of
from anyorder.checkpoints.tokenizer.gguf import vocabulary_of
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.model.rope import DynamicRotary, LinearRotary, Llama3Rotary, rotate

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


def read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Fields and tensors of a file."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_written_is_read(tiny_config: ModelConfig, tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    model = Llama(tiny_config.replace(tie_word_embeddings=tied)).to(dtype)
    ours.write(model, tmp_path / "a.gguf")
    fields, tensors = read(tmp_path / "a.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    short = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == short
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    c = model.config
    assert {name: fields[f"llama.{name}"] for name in (
        "vocab_size", "context_length", "embedding_length", "feed_forward_length", "block_count",
        "attention.head_count", "attention.head_count_kv", "attention.key_length", "rope.dimension_count",
    )} == {
        "vocab_size": c.vocab_size, "context_length": c.max_position_embeddings, "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size, "block_count": 2, "attention.head_count": 4,
        "attention.head_count_kv": 2, "attention.key_length": 16, "rope.dimension_count": 16,
    }  # fmt: skip
    assert fields["llama.rope.freq_base"] == c.rotary.theta
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(c.rms_norm_eps)
    assert len(tensors) == len(model.state_dict()) - tied
    weights: dict[str, Any] = {"token_embd": model.model.embed_tokens, "output_norm": model.model.norm}
    if not tied:
        weights["output"] = model.lm_head
    layers: Any = model.model.layers
    for number, layer in enumerate(layers):
        for theirs, module in {
            "attn_norm": layer.input_layernorm, "attn_v": layer.self_attn.v_proj, "attn_output": layer.self_attn.o_proj,
            "ffn_norm": layer.post_attention_layernorm, "ffn_gate": layer.mlp.gate_proj, "ffn_up": layer.mlp.up_proj,
            "ffn_down": layer.mlp.down_proj,
        }.items():  # fmt: skip
            weights[f"blk.{number}.{theirs}"] = module
    assert set(tensors) - {f"{name}.weight" for name in weights} == {
        f"blk.{number}.attn_{which}.weight" for number in (0, 1) for which in "qk"
    }
    for name, written in weights.items():
        torch.testing.assert_close(tensors[f"{name}.weight"], written.weight.detach().float(), rtol=0, atol=0)


def test_queries_and_keys_are_turned_in_pairs_side_by_side(tiny_config: ModelConfig) -> None:
    """What llama.cpp computes from its order, spelled out pair by pair, are our scores."""
    model = Llama(tiny_config).double()
    written = ours.tensors(contents_of(model))
    cos, sin = tiny_config.rotary.cos_sin(torch.tensor([[5]]), 16, torch.float64)
    row = torch.randn(64, dtype=torch.float64)
    layers: Any = model.model.layers
    attention = layers[0].self_attn
    for name, projection, heads in (("q", attention.q_proj, 4), ("k", attention.k_proj, 2)):
        theirs = (written[f"blk.0.attn_{name}.weight"] @ row).view(heads, 16)
        turned = torch.empty_like(theirs)
        for head in range(heads):
            for f in range(8):
                a, b = theirs[head, 2 * f], theirs[head, 2 * f + 1]
                c, s = cos[0, 0, 0, f], sin[0, 0, 0, f]
                turned[head, f], turned[head, f + 8] = a * c - b * s, b * c + a * s
        expected = rotate(projection(row).view(1, 1, heads, 16), cos, sin)[0, 0]
        torch.testing.assert_close(turned, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rotary": DynamicRotary(theta=1e4, factor=2.0, original_max_position_embeddings=32)},
            "rotary is DynamicRotary",
        ),
        ({"eos_token_ids": (1, 2, 3, 4)}, "texts end at 4 different tokens, and a file has room for 3"),
        (
            {"layers": (LayerKind(), LayerKind(window=4))},
            "layers have windows, chunks, experts, growing queries or no rotary embedding",
        ),
        ({"qk_norm": "learned"}, "qk_norm is 'learned'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"modes": (LEFT_TO_RIGHT, ANY_ORDER)}, "the network writes left-to-right, any-order"),
    ],
)
def test_more_than_a_plain_llama(tiny_config: ModelConfig, tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        ours.write(Llama(tiny_config.replace(**changes)), tmp_path / "a.gguf")
    assert str(caught.value) == (
        f"{message}: GGUF files are written of plain Llamas that write from left to right, in float32, bfloat16 or "
        "float16, so write a Hugging Face folder instead (llama.cpp's convert_hf_to_gguf.py reads many)."
    )
    assert not list(tmp_path.iterdir())


def test_the_place_is_taken(tiny_config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(UserError, match=r"is there already: give a new name, or delete it first"):
        ours.write(Llama(tiny_config), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_text() == "mine"


def test_without_the_package(tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"^GGUF files need the package gguf: install it"):
        ours.write(Llama(tiny_config), tmp_path / "a.gguf")


def test_scaled_rotary_embeddings(tiny_config: ModelConfig, tmp_path: Path) -> None:
    """Linear: a factor of the file. Llama 3: a divisor of each frequency, here by the formula of llama.cpp."""
    ours.write(Llama(tiny_config.replace(rotary=LinearRotary(theta=1e4, factor=2.5))), tmp_path / "linear.gguf")
    fields, _ = read(tmp_path / "linear.gguf")
    assert (fields["llama.rope.scaling.type"], fields["llama.rope.scaling.factor"]) == ("linear", 2.5)
    scaled = Llama3Rotary(
        theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512
    )
    ours.write(Llama(tiny_config.replace(rotary=scaled)), tmp_path / "bands.gguf")
    _, tensors = read(tmp_path / "bands.gguf")
    expected = []
    for pair in range(8):
        wave = 2 * math.pi * 1e4 ** (2 * pair / 16)
        if wave < 512 / 4:
            expected.append(1.0)
        elif wave > 512 / 1:
            expected.append(8.0)
        else:
            smooth = (512 / wave - 1) / (4 - 1)
            expected.append(1 / ((1 - smooth) / 8 + smooth))
    assert len(set(expected)) > 2
    torch.testing.assert_close(tensors["rope_freqs.weight"], torch.tensor(expected), rtol=1e-6, atol=0)


TEXTS = ("Lily had a red ball.", "two  spaces\n café 日本 1234, don't 😀", "<|end|>a <|end|>")
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|end|>{% endfor %}"


def byte_level(digits: bool = False) -> Any:
    """A tokenizer of GPT-2's kind, or of SmolLM's, which cuts numbers into digits."""
    backend = Tokenizer(models.BPE())
    pattern = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = [pre_tokenizers.Digits(individual_digits=True), pattern]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if digits else pattern
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=TEMPLATE)


def test_transformers_reads_it(tiny_config: ModelConfig, tmp_path: Path) -> None:
    """Logits, token ids, end token and chat template; of a vocabulary that is larger than the tokenizer."""
    words = byte_level()
    model = Llama(tiny_config.replace(vocab_size=320, eos_token_ids=(0,), bos_token_id=None))
    anyorder.save(model, words, tmp_path / "folder")
    anyorder.convert(tmp_path / "folder", tmp_path / "a.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    read_words = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    for text in TEXTS:
        ids = words(text)["input_ids"]
        assert read_words(text)["input_ids"] == ids
        torch.testing.assert_close(
            theirs(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits, rtol=0, atol=1e-5
        )
    assert (theirs.config.vocab_size, theirs.config.eos_token_id, read_words.eos_token) == (320, 0, "<|end|>")
    assert read_words.chat_template == TEMPLATE


def test_transformers_reads_stories(shared_data: Path, tmp_path: Path) -> None:
    source, words = shared_data / "stories260K/stories260K.bin", shared_data / "stories260K/tok512.bin"
    anyorder.convert(source, tmp_path / "a.gguf", tokenizer=words, dtype="float16")
    model, tokenizer = anyorder.load(source, tokenizer=words, dtype="float16", device="cpu")
    assert tokenizer is not None
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    read_words = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    for text in TEXTS:  # none begins with a space, where transformers reads files of this kind otherwise
        assert read_words(text)["input_ids"] == tokenizer(text)["input_ids"]
    prompt = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    written = theirs.generate(prompt, max_new_tokens=20, do_sample=False)[0].tolist()
    assert written == anyorder.generate(model.float(), None, prompt, max_new_tokens=20).sequences[0]
    fields, _ = read(tmp_path / "a.gguf")
    found = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "unknown")}
    assert found == {"bos": 1, "eos": 2, "eot": 1, "unknown": 0}
    assert fields["tokenizer.ggml.add_bos_token"] is True
    types = fields["tokenizer.ggml.token_type"]
    assert types[:3] == [2, 3, 3]
    assert (set(types[3:259]), set(types[259:])) == ({6}, {1})


@pytest.mark.parametrize(
    ("change", "pre"),
    [
        ({}, "gpt-2"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, None),
        ({"normalizer": {"type": "NFC"}}, None),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
            None,
        ),
    ],
)
def test_how_texts_are_cut_is_named_or_refused(change: dict[str, Any], pre: str | None) -> None:
    words = byte_level()
    changed = Tokenizer.from_str(json.dumps(json.loads(words.backend_tokenizer.to_str()) | change))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=changed)
    if pre is not None:
        assert vocabulary_of(tokenizer, 320).pre == pre
        return
    with pytest.raises(
        UserError, match=r"^the tokenizer \(BPE\) cuts texts in none of the ways that are written into GG"
    ):
        vocabulary_of(tokenizer, 320)


def test_digits_one_by_one() -> None:
    assert vocabulary_of(byte_level(digits=True), 300).pre == "smollm"


def test_llama_3s_pattern(shared_data: Path) -> None:
    words = load_tokenizer(shared_data / "llama3_tokenizer/tokenizer.model")
    found = vocabulary_of(words, 128_256)
    assert (found.pre, found.model, found.add_bos, found.add_eos) == ("llama-bpe", "gpt2", True, False)
    assert found.tokens[128_000] == "<|begin_of_text|>"
    assert found.types[127_999:128_001] == [1, 3]


def test_without_a_tokenizer_it_says_so(shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    anyorder.convert(shared_data / "stories260K/stories260K.bin", tmp_path / "a.gguf")
    assert "no tokenizer is beside the checkpoint or named, so" in caplog.text
    assert read(tmp_path / "a.gguf")[0]["tokenizer.ggml.model"] == "no_vocab"


def test_transformers_faces_take_folders(tiny_config: ModelConfig, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    ours.write(Llama(tiny_config), file)
    with pytest.raises(UserError) as caught:
        anyorder.AnyOrderForCausalLM.from_pretrained(str(file))
    remedy = "load it with anyorder.load, or convert it into a folder first (anyorder convert)"
    assert str(caught.value) == f"checkpoint {str(file)!r} is a GGUF file: {remedy}."
    with pytest.raises(UserError, match=r"^checkpoint 'org/a\.gguf' is no folder or file here: check the path"):
        anyorder.load("org/a.gguf")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_folder_is_not_named_as_a_file(tiny_config: ModelConfig, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"^target is '.*{name}': give a folder, or a file whose name ends in .bin or "):
        anyorder.save(Llama(tiny_config), None, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "a.gguf",
            {"dtype": "float64"},
            "dtype is 'float64', but a GGUF file holds 'float32', 'bfloat16', 'float16': ",
        ),
        (
            "a.bin",
            {"dtype": "bfloat16"},
            "dtype is 'bfloat16', but a llama2.c file holds 'float32': give that, or write",
        ),
        ("a.bin", {"dtype": torch.float16}, "dtype is 'float16', but a llama2.c file holds 'float32': give that, or "),
        ("a.safetensors", {}, "target is '.*a.safetensors': give a folder, or a file whose name ends in .bin or .gguf"),
        ("a.gguf", {"form": "llada"}, "form is given for '.*a.gguf', a GGUF file: leave it out"),
        ("a.gguf", {"max_shard_size": 10}, "max_shard_size is given for '.*a.gguf', a GGUF file: leave it out"),
    ],
)
def test_what_a_target_cannot_hold_is_refused(
    shared_data: Path, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        anyorder.convert(shared_data / "stories260K/stories260K.bin", tmp_path / name, **options)
    assert not list(tmp_path.iterdir())
