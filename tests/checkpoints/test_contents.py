"""Networks whose modules were changed after they were built: saved as they are, or refused before writing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import anyorder
from anyorder import AnyOrderForCausalLM, LLaDAForMaskedLM, LlamaTwoStreamForCausalLM
from anyorder.checkpoints.adapt import adapt
from anyorder.checkpoints.contents import contents_of
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from tests.model.networks import network

FACES: dict[str, Any] = {
    "plain": None, "causal": AnyOrderForCausalLM, "masked": LLaDAForMaskedLM, "two streams": LlamaTwoStreamForCausalLM,
}  # fmt: skip
MODES = {"plain": LEFT_TO_RIGHT, "causal": LEFT_TO_RIGHT, "masked": diffusion(20), "two streams": ANY_ORDER}

IDS = torch.tensor([[5, 6, 9, 8]])


def made(name: str, **changes: Any) -> Any:
    model = adapt(network("NoPE" if changes.pop("nope", False) else "plain", **changes), (MODES[name],)).eval()
    return model if FACES[name] is None else FACES[name].of(model)


def savers(model: Any) -> dict[str, Callable[[Path], None]]:
    ours = {"anyorder.save": lambda path: anyorder.save(model, None, path)}
    return ours | ({"save_pretrained": model.save_pretrained} if hasattr(model, "save_pretrained") else {})


def cut(module: Any, rows: slice = slice(None), columns: slice = slice(None)) -> None:
    module.weight = nn.Parameter(module.weight[rows, columns].detach().clone())


# ------------------------------------------------------------------------------------------------ saved as they are


def narrower(model: Any) -> None:
    for layer in model.model.layers:
        cut(layer.mlp.gate_proj, slice(20))
        cut(layer.mlp.up_proj, slice(20))
        cut(layer.mlp.down_proj, columns=slice(20))


def fewer_heads(model: Any) -> None:
    for layer in model.model.layers:  # of 4 query heads of 4 numbers each the first two, and the first of 2 others
        cut(layer.self_attn.q_proj, slice(8))
        cut(layer.self_attn.k_proj, slice(4))
        cut(layer.self_attn.v_proj, slice(4))
        cut(layer.self_attn.o_proj, columns=slice(8))


def with_biases(model: Any) -> None:
    for layer in model.model.layers:
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj, layer.self_attn.o_proj):
            projection.bias = nn.Parameter(torch.randn(len(projection.weight)))


def tied_by_hand(model: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def untied_by_hand(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))


def layers_that_share(model: Any) -> None:
    model.model.layers[1].mlp = model.model.layers[0].mlp


def views_of_one_tensor(model: Any) -> None:
    both = torch.randn(48, 16)
    mlp = model.model.layers[0].mlp
    mlp.gate_proj.weight, mlp.up_proj.weight = nn.Parameter(both[:24]), nn.Parameter(both[24:])


def resized(model: Any) -> None:
    torch.manual_seed(0)
    (model if hasattr(model, "save_pretrained") else AnyOrderForCausalLM.of(model)).resize_token_embeddings(40)


CHANGES: dict[str, tuple[Callable[[Any], None], dict[str, Any], dict[str, Any]]] = {
    "narrower": (narrower, {}, {"intermediate_size": 20}),
    "fewer heads": (fewer_heads, {}, {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "fewer heads, named": (fewer_heads, {"attention": "GQA"}, {"num_attention_heads": 2, "attention": None}),
    "biases": (with_biases, {}, {"mlp_bias": True, "attention_output_bias": True, "attention_bias": False}),
    "tied": (tied_by_hand, {}, {"tie_word_embeddings": True}),
    "untied": (untied_by_hand, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}),
    "sharing": (layers_that_share, {}, {}),
    "views": (views_of_one_tensor, {}, {}),
    "resized": (resized, {}, {"vocab_size": 40}),
    "resized, tied": (resized, {"tie_word_embeddings": True}, {"vocab_size": 40, "tie_word_embeddings": True}),
    "half": (lambda model: model.half(), {}, {}),
}


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_what_is_changed_is_saved_as_it_is(change: str, face: str, tmp_path: Path) -> None:
    make, options, fields = CHANGES[change]
    model = made(face, **options)
    make(model)
    expected = model(IDS).logits
    for name, save in savers(model).items():
        save(tmp_path / name)
        again, _ = anyorder.load(tmp_path / name, device="cpu")
        assert {field: getattr(again.config, field) for field in fields} == fields
        called = again if FACES[face] is None else FACES[face].of(again)
        torch.testing.assert_close(called(IDS).logits, expected)
        if FACES[face] is not None:
            torch.testing.assert_close(FACES[face].from_pretrained(tmp_path / name)(IDS).logits, expected)


def test_layers_that_were_removed(tmp_path: Path) -> None:
    model = made("causal")
    kept = {name: weight for name, weight in model.state_dict().items() if "layers.1." not in name}
    del model.model.layers[1]
    anyorder.save(model, None, tmp_path / "one")
    again, _ = anyorder.load(tmp_path / "one", device="cpu")
    assert again.config.num_hidden_layers == len(again.config.layers) == 1
    assert all(torch.equal(weight, kept[name]) for name, weight in again.state_dict().items())
    mixed = made("causal", nope=True)  # which of the two kinds has gone?
    del mixed.model.layers[1]
    with pytest.raises(UserError, match=r"the network lacks tensors 'model\.layers\.1\..* and 6 more that its config"):
        anyorder.save(mixed, None, tmp_path / "other")


@torch.no_grad()
def test_a_network_beside_a_face_is_resized_with_it(tmp_path: Path) -> None:
    for tied in (False, True):
        model = network(tie_word_embeddings=tied)
        face = AnyOrderForCausalLM.of(model)
        face.resize_token_embeddings(40)
        assert model.lm_head.weight is face.lm_head.weight
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        torch.testing.assert_close(model(IDS).logits, face(IDS).logits)
        for name, saved in (("network", model), ("face", face)):
            anyorder.save(saved, None, tmp_path / f"{name} {tied}")
            again, _ = anyorder.load(tmp_path / f"{name} {tied}", device="cpu")
            assert again.config == face.config.backbone
            torch.testing.assert_close(again(IDS).logits, face(IDS).logits)


@torch.no_grad()
def test_a_folder_that_ties_a_head_of_its_own(tmp_path: Path) -> None:
    """transformers reads it untied; so it is from then on."""
    from safetensors.torch import load_file, save_file

    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=True)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(31, 16)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    theirs: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    face = AnyOrderForCausalLM.from_pretrained(tmp_path)
    assert not face.config.tie_word_embeddings
    for name, save in savers(face).items():
        save(tmp_path / name)
        again, _ = anyorder.load(tmp_path / name, device="cpu")
        torch.testing.assert_close(again(IDS).logits, theirs(IDS).logits)


@torch.no_grad()
def test_a_compiled_network_is_the_network_in_it(tmp_path: Path) -> None:
    model = made("plain")
    compiled: Any = torch.compile(model)
    anyorder.save(compiled, None, tmp_path / "compiled")
    assert torch.equal(anyorder.load(tmp_path / "compiled", device="cpu")[0](IDS).logits, model(IDS).logits)


def test_a_state_that_is_handed_over_is_what_counts(tmp_path: Path) -> None:
    """As `Trainer` does with weights that it gathers from several processes."""
    model = made("causal")
    state = {name: torch.randn_like(weight) for name, weight in model.state_dict().items()}
    model.to("meta").save_pretrained(tmp_path, state_dict=state)
    again, _ = anyorder.load(tmp_path, device="cpu")
    assert all(torch.equal(weight, state[name]) for name, weight in again.state_dict().items())


def test_nothing_is_copied_without_need() -> None:
    model = made("plain", tie_word_embeddings=True)
    contents = contents_of(model)
    assert contents.config is model.config
    assert set(contents.tensors) == {name for name, _ in model.named_parameters()}
    for name, weight in model.named_parameters():
        assert contents.tensors[name].data_ptr() == weight.data_ptr()


# ------------------------------------------------------------------------------------------------ refused


def of_other_widths(model: Any) -> None:
    cut(model.model.layers[0].mlp.gate_proj, slice(20))
    cut(model.model.layers[0].mlp.up_proj, slice(20))
    cut(model.model.layers[0].mlp.down_proj, columns=slice(20))


def put(place: str, make: Callable[[], Any]) -> Callable[[Llama], None]:
    def change(model: Llama) -> None:
        module, _, name = place.rpartition(".")
        setattr(model.get_submodule(module), name, make())

    return change


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "unlike layers": (of_other_widths, r"mlp\.gate_proj\.weight' has shape \[20, 16\], but .* have \[24, 16\]: change"),
    "embeddings alone": (
        put("model.embed_tokens", lambda: nn.Embedding(40, 16)),
        r"^tensor 'lm_head\.weight' has shape \[31, 16\], but with the network's other tensors it would have \[40,",
    ),
    "another norm": (put("model.norm", lambda: nn.LayerNorm(16)), "has tensor 'model.norm.bias' that its config"),
    "no norm": (put("model.norm", nn.Identity), "the network lacks tensor 'model.norm.weight' that its configuration"),
    "a further module": (put("extra", lambda: nn.Linear(2, 2)), "has tensors 'extra.weight', 'extra.bias' that its"),
    "a mask of pruning": (
        lambda model: prune.l1_unstructured(model.model.layers[0].mlp.up_proj, "weight", 0.5),
        r"up_proj\.weight_orig', .*: undo what was put around or into its modules \(merge adapters, make pruning",
    ),
    "a parametrization": (
        lambda model: parametrizations.weight_norm(model.model.layers[0].mlp.up_proj), "parametrizations.weight.orig",
    ),
    "whole numbers": (
        put("model.norm.weight", lambda: nn.Parameter(torch.ones(16, dtype=torch.int8), requires_grad=False)),
        r"^tensor 'model\.norm\.weight' is torch\.int8: convert the network to one of 'float64', 'float32',",
    ),
    "no numbers": (lambda model: model.to("meta"), "is on the meta device and holds no numbers: load the weights"),
    "NaN": (
        put("model.norm.weight", lambda: nn.Parameter(torch.full((16,), float("nan")))),
        r"^tensor 'model\.norm\.weight' holds NaN or infinity: go back to a checkpoint before training diverged\.$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("face", ["plain", "causal", "masked"])
@pytest.mark.parametrize("change", REFUSED)
def test_what_no_configuration_has_is_refused(change: str, face: str, tmp_path: Path) -> None:
    make, message = REFUSED[change]
    model = made(face)
    make(model)
    for name, save in savers(model).items():
        with pytest.raises(UserError, match=message) as error:
            save(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):
        anyorder.save(model, None, tmp_path / "file.bin")
    assert not list(tmp_path.iterdir())


def test_a_mask_token_is_not_cut_away(tmp_path: Path) -> None:
    face = made("masked")
    with pytest.raises(UserError, match="mask_token_id is 20: give an id from 0 to 9"):
        face.resize_token_embeddings(10)
    assert face(IDS).logits.shape[2] == 31  # nothing has changed
    for module in (face.model.embed_tokens, face.lm_head):
        cut(module, slice(10))
    with pytest.raises(
        UserError, match=r"^the network was changed so that no configuration .*: mask_token_id is 20: give"
    ):
        anyorder.save(face, None, tmp_path / "cut")


def test_a_tokenizer_has_no_more_tokens_than_the_network(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({str(number): number for number in range(32)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(
        UserError, match="the tokenizer has 32 tokens, but the network 31 embeddings: give the tokenizer"
    ):
        anyorder.save(made("plain"), tokenizer, tmp_path / "folder")
    assert not list(tmp_path.iterdir())
    anyorder.save(made("plain", vocab_size=32), tokenizer, tmp_path / "folder")
    assert anyorder.load(tmp_path / "folder", device="cpu")[1] is not None


def test_every_field_of_a_changed_configuration_is_checked(tmp_path: Path) -> None:
    """Whatever is written is read as the same record."""
    model = made("plain")
    narrower(model)
    with_biases(model)
    tied_by_hand(model)
    anyorder.save(model, None, tmp_path / "folder")
    again, _ = anyorder.load(tmp_path / "folder", device="cpu")
    assert dataclasses.asdict(again.config) == dataclasses.asdict(contents_of(model).config)
