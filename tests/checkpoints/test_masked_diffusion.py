"""LLaDA's and Dream's folders: read as they are, equal to transformers without its causal mask, and written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import anyorder
from anyorder.checkpoints import convert, load_model, load_tokenizer, read_checkpoint, save_model
from anyorder.checkpoints.config_json import config_from_json, form_to_json
from anyorder.checkpoints.masked_diffusion import END_OF_TURN, form_of, named_form
from anyorder.checkpoints.weights import blank
from anyorder.cli import main
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.modes import LEFT_TO_RIGHT, diffusion
from anyorder.visibility import bidirectional
from tests.published import DREAM, LLADA, bidirectional_logits, write_dream, write_llada

ILLADA: dict[str, Any] = {
    "n_kv_heads": 1,
    "weight_tying": True,
    "mask_token_id": 5,
    "eos_token_id": 2,
    "pad_token_id": 1,
}

LLADA_8B = LLADA | {
    "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12_288, "vocab_size": 126_464,
    "embedding_size": 126_464, "mask_token_id": 126_336, "eos_token_id": 126_081, "pad_token_id": 126_081,
    "max_sequence_length": 4096,
}  # fmt: skip
ILLADA_8B = LLADA_8B | ILLADA | {
    "n_kv_heads": 8, "mlp_hidden_size": 14_336, "vocab_size": 155_136, "embedding_size": 155_136,
    "max_sequence_length": 8192,
}  # fmt: skip
DREAM_7B = DREAM | {
    "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "intermediate_size": 18_944, "vocab_size": 152_064, "mask_token_id": 151_666, "bos_token_id": 151_643,
    "eos_token_id": 151_643, "pad_token_id": 151_643, "max_position_embeddings": 131_072,
}  # fmt: skip


def parameters(config: dict[str, Any]) -> int:
    return sum(parameter.numel() for parameter in blank(config_from_json(config)).parameters())


@pytest.mark.parametrize(
    ("config", "published"),
    [(LLADA_8B, 8.02e9), (ILLADA_8B, 7.62e9), (DREAM_7B, 7.62e9)],
    ids=["LLaDA-8B", "iLLaDA-8B", "Dream-7B"],
)
def test_the_published_sizes_are_those_of_the_configurations(config: dict[str, Any], published: float) -> None:
    assert parameters(config) == pytest.approx(published, rel=1e-3)


def test_the_ways_of_the_published_configurations() -> None:
    llada, illada, dream = map(config_from_json, (LLADA_8B, ILLADA_8B, DREAM_7B))
    assert (llada.modes, llada.default_mode) == ((diffusion(126_336),), "diffusion")
    assert llada.eos_token_ids == (126_081, END_OF_TURN[126_464]) == (126_081, 126_348)
    assert (illada.modes, illada.eos_token_ids, illada.head_layout) == ((diffusion(5),), (2,), "GQA")
    assert (dream.modes, dream.eos_token_ids) == ((diffusion(151_666, shifted=True),), (151_643,))
    assert (dream.attention_bias, dream.rotary.theta, llada.rotary.theta) == (True, 1e6, 5e5)


@torch.no_grad()
def logits(model: Llama, ids: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    position = torch.arange(ids.shape[1]).expand_as(ids) if valid is None else (valid.long().cumsum(1) - 1).clamp(min=0)
    return model.logits(model.hidden(ids, model.prepare(bidirectional(), {"position": position}, valid=valid)))


@pytest.mark.parametrize("changes", [{}, ILLADA], ids=["LLaDA", "iLLaDA"])
def test_logits_are_those_of_llama_without_the_causal_mask(changes: dict[str, Any], tmp_path: Path) -> None:
    twin = write_llada(tmp_path, **changes)
    model = load_model(tmp_path, device="cpu")
    ids = torch.randint(0, 96, (2, 17))
    expected = bidirectional_logits(twin, ids)
    assert (logits(model, ids) - expected).abs().max() < 1e-5 * expected.abs().max()
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[0, :6] = False
    padded = logits(model, ids, valid)
    assert (padded - bidirectional_logits(twin, ids, valid))[valid].abs().max() < 1e-5 * expected.abs().max()


def test_logits_are_those_of_qwen2_without_the_causal_mask(tmp_path: Path) -> None:
    twin = write_dream(tmp_path)
    model = load_model(tmp_path, device="cpu")
    ids = torch.randint(0, 96, (2, 17))
    expected = bidirectional_logits(twin, ids)
    assert (logits(model, ids) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("form", "write"), [("llada", write_llada), ("dream", write_dream)], ids=["llada", "dream"]
)  # fmt: skip
@pytest.mark.parametrize("shard", [None, 20_000])
def test_what_was_read_can_be_written_back(form: str, write: Any, shard: int | None, tmp_path: Path) -> None:
    write(tmp_path / "published")
    convert(tmp_path / "published", tmp_path / "ours", max_shard_size=shard)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "anyorder"
    convert(tmp_path / "ours", tmp_path / "back", form=form, max_shard_size=shard)
    before, after = (
        {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
        for folder in (tmp_path / "published", tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    was, now = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("published", "back"))
    kept = {name for name in was if name not in ("auto_map", "transformers_version", "use_cache", "torch_dtype")}
    kept -= {"full_attn_mask", "use_mrope", "init_cutoff_factor", "attention_dropout", "max_window_layers"}
    assert {name: now.get(name) for name in kept} == {name: was[name] for name in kept}
    assert read_checkpoint(tmp_path / "back").config == read_checkpoint(tmp_path / "published").config
    assert read_checkpoint(tmp_path / "ours").config == read_checkpoint(tmp_path / "published").config


def test_tied_heads_are_written_once(tmp_path: Path) -> None:
    write_llada(tmp_path / "published", **ILLADA)
    model, tokenizer = anyorder.load(tmp_path / "published", device="cpu")
    anyorder.save(model, tokenizer, tmp_path / "back", form="llada")
    assert "model.transformer.ff_out.weight" not in load_file(tmp_path / "back" / "model.safetensors")
    assert load_model(tmp_path / "back", device="cpu").config == model.config


def test_forms_are_found_by_their_model_type() -> None:
    assert len({rule.ours for rule in named_form("llada").tensors}) == 12
    assert form_of({"model_type": "dream"}) is form_of({"model_type": "Dream"}) is named_form("dream")
    assert form_of({"model_type": "llama"}) is None


# ------------------------------------------------------------------------------------------- tokenizers


@pytest.fixture
def words() -> Tokenizer:
    """Byte pairs of one sentence."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator(["Once upon a time there was a little girl named Lily."] * 3, trainer)
    return words


TEXT = "Once upon a time, there's 12 <|mask|><|mask|>\n\n Lily"


def test_the_tokenizer_of_dream_needs_no_code(words: Tokenizer, tmp_path: Path) -> None:
    write_dream(tmp_path)
    words.model.save(str(tmp_path))
    end = words.get_vocab_size()
    special = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    named = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>", "bos_token": None,
        "added_tokens_decoder": {
            str(end): special | {"content": "<|endoftext|>"}, str(end + 1): special | {"content": "<|mask|>"},
        },
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer(TEXT)["input_ids"]
    assert (ids.count(end + 1), tokenizer.mask_token_id, tokenizer.eos_token_id) == (2, end + 1, end)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer("Once upon")["input_ids"] == words.encode("Once upon").ids


def test_the_tokenizer_of_llada_asks_no_question(words: Tokenizer, tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "configuration_llada.LLaDAConfig"}
    write_llada(tmp_path, auto_map=auto_map)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("Once upon")["input_ids"] == words.encode("Once upon").ids


def test_a_published_folder_writes_at_once(
    words: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    end = words.get_vocab_size()
    sizes = {"vocab_size": end + 2, "embedding_size": end + 2, "mask_token_id": end + 1}
    write_llada(
        tmp_path / "llada", **sizes, eos_token_id=end, pad_token_id=end, auto_map={"AutoConfig": "x.LLaDAConfig"}
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>", mask_token="<|mdm_mask|>")
    tokenizer.save_pretrained(tmp_path / "llada")
    model, loaded = anyorder.load(tmp_path / "llada", device="cpu")
    out = anyorder.generate(model, loaded, "Once upon", max_new_tokens=8)
    assert len(out.token_ids) == 8
    assert {event.step for event in out.trace.events} == set(range(8))
    assert [event.position for event in out.trace.events] != sorted(event.position for event in out.trace.events)
    assert main(["generate", str(tmp_path / "llada"), "Once upon", "--max_new_tokens", "8"]) == 0
    assert capsys.readouterr().out == f"Once upon{out.text}\n"


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLADA | {"block_type": "sequential"}, "block_type is 'sequential': this version reads .* LLaDA with 'llama'"),
        (LLADA | {"include_bias": True}, "include_bias is True: .* LLaDA with False only"),
        (LLADA | {"d_model": None}, "field 'd_model' is missing: add it"),
        (LLADA | {"rope_theta": None}, "field 'rope_theta' is missing: add it"),
        (LLADA | {"mask_token_id": None}, "mask_token_id is None: add the id of the mask token, a whole number"),
        (LLADA | {"mask_token_id": 81}, "mask_token_id is 81, which is pad_token_id too: give a token that stands for"),
        (LLADA | {"mask_token_id": 96}, "mask_token_id is 96: give an id from 0 to 95"),
        (LLADA | {"architectures": ["LLaDAMoEModelLM"]}, r"architectures is \['LLaDAMoE.*reads 'LLaDAModelLM'"),
        (DREAM | {"hidden_act": "gelu"}, "hidden_act is 'gelu': this version reads networks with 'silu' only"),
        (DREAM | {"architectures": ["DreamVLModel"]}, "of model_type 'Dream', this version reads 'DreamModel', 'Dream"),
    ],
)
def test_configurations_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_json(config)


def test_what_a_form_cannot_express_is_refused(tmp_path: Path) -> None:
    llada, dream = named_form("llada"), named_form("dream")
    config = config_from_json(LLADA)
    both = config.replace(modes=(LEFT_TO_RIGHT, *config.modes), default_mode="left-to-right")
    with pytest.raises(UserError, match="form 'llada' is for networks that write by masked diffusion alone, not shift"):
        form_to_json(both, llada)
    with pytest.raises(UserError, match="form 'dream' is for networks that write by masked diffusion alone, shifted"):
        form_to_json(config, dream)
    for changes in ({"head_dim": 10}, {"eos_token_ids": (1, 2)}, {"attention_bias": True}):
        with pytest.raises(UserError, match=r"form 'llada' cannot express this network .*: leave out the form"):
            form_to_json(config.replace(**changes), llada)
    with pytest.raises(UserError, match=r"form is 'mdlm': give one of 'llada', 'illada', 'dream', .*, or leave it out"):
        convert(tmp_path, tmp_path / "target", form="mdlm")
    with pytest.raises(UserError, match=r"form is given for '.*\.bin', a llama2\.c file"):
        save_model(Llama(config), tmp_path / "x.bin", form="llada")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_llada(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLADA | {"n_layers": 3}))
    with pytest.raises(UserError, match=r"lacks tensors 'model\.transformer\.blocks\.2\.attn_norm\.weight'"):
        load_model(tmp_path)
