"""Masked diffusion models as they are published: LLaDA, LLaDA2, Dream, dLLM's, Fast-dLLM v2, SDAR, Nemotron.

Each is a network of the Llama family without the causal mask, in a Hugging Face folder that says so in its own words.
A `Form` translates these words into those of the architecture that it is, and back, so nothing else about folders is
special.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from anyorder.checkpoints.diffusion_mixtures import read_llada2, read_llada_moe, write_llada2, write_llada_moe
from anyorder.checkpoints.json_types import Json
from anyorder.checkpoints.layouts import Rule
from anyorder.checkpoints.nemotron import NEMOTRON_TENSORS, read_nemotron, write_nemotron
from anyorder.errors import UserError
from anyorder.model.modes import LEFT_TO_RIGHT, Mode, blocks, diffusion
from anyorder.utils.annotations import shown
from anyorder.utils.numbers import is_whole

# ------------------------------------------------------------------------------------------- LLaDA

LLADA_NAMES = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.blocks.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "model.transformer.blocks.{}.q_proj.weight": "model.layers.{}.self_attn.q_proj.weight",
    "model.transformer.blocks.{}.k_proj.weight": "model.layers.{}.self_attn.k_proj.weight",
    "model.transformer.blocks.{}.v_proj.weight": "model.layers.{}.self_attn.v_proj.weight",
    "model.transformer.blocks.{}.attn_out.weight": "model.layers.{}.self_attn.o_proj.weight",
    "model.transformer.blocks.{}.ff_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "model.transformer.blocks.{}.ff_proj.weight": "model.layers.{}.mlp.gate_proj.weight",
    "model.transformer.blocks.{}.up_proj.weight": "model.layers.{}.mlp.up_proj.weight",
    "model.transformer.blocks.{}.ff_out.weight": "model.layers.{}.mlp.down_proj.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
"""Names of tensors there and here, {} for the layer."""

LLADA_TENSORS = tuple(Rule(ours=(here,), theirs=(there,)) for there, here in LLADA_NAMES.items())

LLADA_FIELDS = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "mlp_hidden_size": "intermediate_size",
    "embedding_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "weight_tying": "tie_word_embeddings",
    "init_std": "initializer_range",
    "bos_token_id": "bos_token_id",
    "pad_token_id": "pad_token_id",
}
"""Fields of config.json there and here."""

LLADA_FIXED: Json = {
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "layer_norm_with_affine": True,
    "rope": True, "alibi": False, "include_bias": False, "include_qkv_bias": False, "bias_for_layer_norm": False,
    "attention_layer_norm": False, "input_emb_norm": False, "scale_logits": False, "block_group_size": 1,
}  # fmt: skip
"""What is the same in all networks of this kind that are read; the code beside the published ones can make others."""

LLADA_WRITTEN: Json = {
    "alibi_bias_max": 8.0, "attention_dropout": 0.0, "embedding_dropout": 0.0, "residual_dropout": 0.0,
    "flash_attention": False, "attention_layer_norm_with_affine": True, "init_device": "meta", "init_fn": "mitchell",
    "mlp_ratio": 4, "multi_query_attention": None, "precision": "amp_bf16", "rope_full_precision": True,
    "use_cache": False,
}  # fmt: skip
"""Fields that change nothing here, but of which that code would take something else were they missing."""

END_OF_TURN = {126_464: 126_348}
"""The token that ends a turn of a conversation, which config.json does not name, by the size of the vocabulary."""


def _read_llada(fields: Json) -> Json:
    for name, value in LLADA_FIXED.items():
        if fields.get(name) not in (value, None):
            raise UserError(
                f"{name} is {shown(fields[name])}: this version reads networks of LLaDA with {value!r} only."
            )
    for name in ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "rope_theta"):
        if fields.get(name) is None:
            raise UserError(f"field {name!r} is missing: add it.")
    ours = {here: fields.get(there) for there, here in LLADA_FIELDS.items()}
    if ours["num_key_value_heads"] is None and fields.get("multi_query_attention"):
        ours["num_key_value_heads"] = 1
    if ours["vocab_size"] is None:  # the embedding has a row for each token then
        ours["vocab_size"] = fields.get("vocab_size")
    if ours["rms_norm_eps"] is None:
        ours["rms_norm_eps"] = 1e-5
    size = ours["vocab_size"]
    end, turn = fields.get("eos_token_id"), END_OF_TURN.get(size) if isinstance(size, int) else None
    ours["eos_token_id"] = end if turn is None or end is None else [end, turn]
    return {"model_type": "llama", **ours}


def _write_llada(native: Json, mode: Mode) -> Json:
    end = native["eos_token_id"]
    fields = {there: native[here] for there, here in LLADA_FIELDS.items()}
    return {
        **LLADA_FIXED,
        **LLADA_WRITTEN,
        **fields,
        "vocab_size": native["vocab_size"],
        "eos_token_id": end[0] if isinstance(end, list) else end,
        "mask_token_id": mode.mask_token_id,
    }


# ------------------------------------------------------------------------------------------- others


def _read_plain(fields: Json) -> Json:
    return fields


def _read_dream(fields: Json) -> Json:
    ends = {name: fields.get(name, 151_643) for name in ("bos_token_id", "eos_token_id")}
    return {**fields, **ends, "is_causal": None}


def _write_plain(native: Json, mode: Mode) -> Json:
    return {**native, "mask_token_id": mode.mask_token_id, "use_cache": False}


def _write_in_blocks(native: Json, mode: Mode) -> Json:
    length = {} if mode.block_length is None else {BLOCK_FIELDS[0]: mode.block_length}
    return _write_plain(native, mode) | length


# ------------------------------------------------------------------------------------------- forms

MASK_FIELDS = ("mask_token_id", "mask_id")
"""Fields of config.json with the mask token."""

BLOCK_FIELDS = ("bd_size", "block_size")
"""Fields of config.json with the tokens of a block, where a text is written block by block."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a family of models is published.

    Attributes:
        name: of the form, for those who ask for it.
        model_type: in config.json.
        class_names: in `architectures`; the first is written.
        native: the architecture that the network is, but for who may see whom.
        shifted: the logits of a row are those of the token after it.
        read: fields of that architecture's config.json, from those of this one.
        write: the contrary, but for `model_type` and `architectures`.
        tensors: those that have other names, or are cut otherwise, than here and in that architecture.
        mask_token_id: where neither config.json nor the tokenizer names it.
        in_blocks: may write block by block; config.json says so by one of `BLOCK_FIELDS`.
        block_length: tokens of a block where config.json does not say; None: not by blocks then.
        own_head: a head in the file counts even if config.json ties it to the embedding.
        causal: writes from left to right as well, which is its default then, and its blocks have a causal context.
    """

    name: str
    model_type: str
    class_names: tuple[str, ...]
    native: str
    shifted: bool = False
    read: Callable[[Json], Json] = _read_plain
    write: Callable[[Json, Mode], Json] = _write_plain
    tensors: tuple[Rule, ...] = ()
    mask_token_id: int | None = None
    in_blocks: bool = False
    block_length: int | None = None
    own_head: bool = False
    causal: bool = False

    def modes(self, fields: Json) -> tuple[Mode, ...]:
        """Return how the network writes, by its default mode first.

        Raises:
            UserError: the mask token is missing.
        """
        return (*((LEFT_TO_RIGHT,) if self.causal else ()), self.mode(fields))

    def mode(self, fields: Json) -> Mode:
        """Return how the network diffuses.

        Raises:
            UserError: the mask token is missing.
        """
        named = (fields.get(name) for name in MASK_FIELDS)
        mask = next((value for value in named if value is not None), self.mask_token_id)
        if not is_whole(mask):
            raise UserError(f"mask_token_id is {shown(mask)}: add the id of the mask token, a whole number.")
        length = self.block_length
        for name in BLOCK_FIELDS if self.in_blocks else ():
            length = length if fields.get(name) is None else fields[name]
        if length is None:
            return diffusion(mask, shifted=self.shifted)
        return blocks(mask, length, shifted=self.shifted, causal_context=self.causal)

    def names_mask(self, fields: Json) -> bool:
        """Return whether config.json names the mask token."""
        return any(fields.get(name) is not None for name in MASK_FIELDS)


def _converted(native: str, class_name: str) -> Form:
    """Return dLLM's (github.com/ZHZisZZ/dllm) conversion of a causal architecture, A2D there.

    Its code gives the network a head of its own, whatever config.json says. The mask token is the tokenizer's. Its
    MDLM and BD3LM networks have the same config.json, so which of the two a network is has to be added: `block_size`.
    """
    return Form(
        name=f"a2d-{native}", model_type=f"a2d-{native}", class_names=(class_name,), native=native,
        write=_write_in_blocks, in_blocks=True, own_head=True,
    )  # fmt: skip


FORMS = (
    Form(
        name="llada", model_type="llada", class_names=("LLaDAModelLM",), native="llama",
        read=_read_llada, write=_write_llada, tensors=LLADA_TENSORS,
    ),
    Form(
        name="illada", model_type="illada", class_names=("ILLaDAForCausalLM", "LLaDAModelLM"), native="llama",
        mask_token_id=5,
    ),
    Form(
        name="dream", model_type="Dream", class_names=("DreamModel", "DreamForCausalLM"), native="qwen2", shifted=True,
        read=_read_dream,
    ),
    _converted("llama", "A2DLlamaLMHeadModel"),
    _converted("qwen2", "A2DQwen2LMHeadModel"),
    _converted("qwen3", "A2DQwen3LMHeadModel"),
    Form(
        name="fast-dllm-v2", model_type="Fast_dLLM_Qwen", class_names=("Fast_dLLM_QwenForCausalLM",), native="qwen2",
        shifted=True, write=_write_in_blocks, mask_token_id=151_665, in_blocks=True, block_length=32,
    ),
    Form(
        name="sdar", model_type="sdar", class_names=("SDARForCausalLM",), native="qwen3", write=_write_in_blocks,
        mask_token_id=151_669, in_blocks=True, block_length=4,
    ),
    Form(
        name="sdar-moe", model_type="sdar_moe", class_names=("SDARMoeForCausalLM",), native="qwen3_moe",
        write=_write_in_blocks, mask_token_id=151_669, in_blocks=True, block_length=4,
    ),
    Form(
        name="llada-moe", model_type="llada", class_names=("LLaDAMoEModelLM",), native="llada-moe",
        read=read_llada_moe, write=write_llada_moe, mask_token_id=156_895,
    ),
    Form(
        name="llada2", model_type="llada2_moe", class_names=("LLaDA2MoeModelLM",), native="llada2_moe",
        read=read_llada2, write=write_llada2, mask_token_id=156_895, in_blocks=True, block_length=32,
    ),
    Form(
        name="nemotron", model_type="nemotron_labs_diffusion", class_names=("NemotronLabsDiffusionModel",),
        native="ministral3", read=read_nemotron, write=write_nemotron, tensors=NEMOTRON_TENSORS, in_blocks=True,
        block_length=32, causal=True,
    ),
)  # fmt: skip


def form_of(fields: Json) -> Form | None:
    """Return the form that a config.json has, None where it is of no such model."""
    model_type = str(fields.get("model_type")).lower()
    if model_type == "llada" and "num_experts" in fields:
        return named_form("llada-moe")  # LLaDA's model_type, too
    if model_type == "llada" and "hidden_size" in fields and "d_model" not in fields:
        model_type = "illada"  # Llama's names beside LLaDA's model_type
    return next((form for form in FORMS if form.model_type.lower() == model_type), None)


def named_form(name: str) -> Form:
    """Return the form of this name.

    Raises:
        UserError: there is none.
    """
    for form in FORMS:
        if form.name == name:
            return form
    raise UserError(f"form is {name!r}: give one of {', '.join(repr(form.name) for form in FORMS)}, or leave it out.")
