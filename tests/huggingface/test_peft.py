"""PEFT on every face, with the task types that fine-tuning scripts give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

import anyorder
from anyorder import AnyOrderConfig, AnyOrderForCausalLM, LLaDAForMaskedLM, LlamaTwoStreamForCausalLM
from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.huggingface import AnyOrderMixin
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, Mode, diffusion
from tests.huggingface.twins import assert_close, batch, twins
from tests.model.networks import network

FACES: dict[type[AnyOrderMixin], Mode] = {
    AnyOrderForCausalLM: LEFT_TO_RIGHT,
    LLaDAForMaskedLM: diffusion(30, shifted=True),
    LlamaTwoStreamForCausalLM: ANY_ORDER,
}
PROJECTIONS = ["q_proj", "v_proj"]
VIRTUAL = 3

IDS = torch.tensor([[5, 6, 7, 8]])


def lora(task: str | None = "CAUSAL_LM", **options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(task_type=task, target_modules=PROJECTIONS, init_lora_weights=False, **options)


def ia3(task: str | None = "CAUSAL_LM") -> peft.IA3Config:
    modules = ["k_proj", "v_proj", "down_proj"]
    return peft.IA3Config(
        task_type=task, target_modules=modules, feedforward_modules=["down_proj"], init_ia3_weights=False
    )


def prompt(task: str = "CAUSAL_LM") -> peft.PromptTuningConfig:
    return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL)


def encoder(task: str = "CAUSAL_LM") -> peft.PromptEncoderConfig:
    return peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=VIRTUAL, encoder_hidden_size=8)


def prefix(task: str = "CAUSAL_LM", **options: Any) -> peft.PrefixTuningConfig:
    return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL, **options)


@pytest.fixture(params=FACES, ids=lambda face: face.__name__)
def face(request: pytest.FixtureRequest) -> Any:
    return request.param.of(adapt(network(), (FACES[request.param],))).eval()


def trained(adapted: Any) -> list[Any]:
    return [weight for weight in adapted.parameters() if weight.requires_grad]


# ------------------------------------------------------------------------------------------------ every face


@pytest.mark.parametrize(
    "task",
    [None, "CAUSAL_LM", "FEATURE_EXTRACTION", "TOKEN_CLS", "SEQ_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM"],
)
@pytest.mark.parametrize("method", [lora, ia3])
def test_task_types_change_nothing(face: Any, method: Any, task: str | None) -> None:
    """The adapted network, its loss and its gradients are those without a task type."""
    torch.manual_seed(0)
    adapted = peft.get_peft_model(face, method(task))
    mask = torch.ones_like(IDS)
    output = adapted(input_ids=IDS, attention_mask=mask, labels=IDS)
    output.loss.backward()
    inside = adapted.get_base_model()(IDS, attention_mask=mask, labels=IDS)
    torch.testing.assert_close(output.loss, inside.loss)
    assert torch.equal(output.logits, inside.logits)
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in trained(adapted))


@pytest.mark.parametrize("method", [prompt, encoder])
def test_virtual_tokens_stand_before_the_text(face: Any, method: Any) -> None:
    adapted = peft.get_peft_model(face, method())
    output = adapted(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS)
    output.loss.backward()
    assert output.logits.shape[1] == VIRTUAL + IDS.shape[1]
    rows = torch.cat((adapted.get_prompt(1), face.model.embed_tokens(IDS)), 1)
    labels = torch.cat((torch.full((1, VIRTUAL), -100), IDS), 1)
    torch.testing.assert_close(output.loss, face(inputs_embeds=rows, labels=labels).loss)
    assert all(weight.grad.abs().sum() > 0 for weight in trained(adapted))


def test_adapters_are_saved_loaded_and_folded_in(face: Any, tmp_path: Path) -> None:
    config = face.config.backbone
    adapted: Any = peft.get_peft_model(face, lora())
    expected = adapted(input_ids=IDS).logits
    adapted.save_pretrained(tmp_path / "adapter")
    beside = type(face).of(adapt(network(), config.modes)).eval()
    again: Any = peft.PeftModel.from_pretrained(beside, tmp_path / "adapter")
    assert_close(again(input_ids=IDS).logits, expected)
    with pytest.raises(UserError, match=r"adapter of PEFT: save what its merge_and_unload\(\) returns"):
        anyorder.save(again.get_base_model(), None, tmp_path / "refused")
    with pytest.raises(UserError, match=r"adapter of PEFT: save what its merge_and_unload\(\) returns"):
        again.get_base_model().save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    merged = again.merge_and_unload()
    assert_close(merged(IDS).logits, expected)
    merged.save_pretrained(tmp_path / "theirs")
    anyorder.save(merged, None, tmp_path / "ours")
    for name in ("theirs", "ours"):
        network_there, _ = anyorder.load(tmp_path / name, device="cpu")
        assert network_there.config == config
        assert_close(type(face).of(network_there)(IDS).logits, expected)
        assert_close(type(face).from_pretrained(tmp_path / name)(IDS).logits, expected)


@pytest.mark.parametrize("method", [peft.LoraConfig, peft.IA3Config])
def test_default_modules_are_found_where_peft_is_imported_late(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables lack our type while the network is made."""
    ours, theirs = twins()
    for name, table in vars(peft.utils.constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict):
            monkeypatch.delitem(table, AnyOrderConfig.model_type, raising=False)
    found, expected = (peft.get_peft_model(model, method()) for model in (ours, theirs))
    names = [name for name, weight in found.named_parameters() if weight.requires_grad]
    assert names == [name for name, weight in expected.named_parameters() if weight.requires_grad]
    assert names


def test_adapters_of_the_embedding_untie_the_head(tmp_path: Path) -> None:
    face, _ = twins(tie_word_embeddings=True)
    config = peft.LoraConfig(target_modules=["embed_tokens"], init_lora_weights=False)
    merged = peft.get_peft_model(face, config).merge_and_unload()
    expected = merged(IDS).logits
    anyorder.save(merged, None, tmp_path / "tied?")
    again, _ = anyorder.load(tmp_path / "tied?", device="cpu")
    assert_close(again(IDS).logits, expected)


@pytest.mark.parametrize("kind", [LLaDAForMaskedLM, LlamaTwoStreamForCausalLM])
def test_prefix_tuning_needs_a_cache(kind: type[AnyOrderMixin]) -> None:
    face = kind.of(adapt(network(), (FACES[kind],)))
    adapted = peft.get_peft_model(face, prefix())
    with pytest.raises(
        UserError, match=r"past_key_values is given, but .* LoRA, IA3 or prompt tuning instead of prefix"
    ):
        adapted(input_ids=IDS)
    with pytest.raises(UserError, match="generate writes from left to right"):
        peft.get_peft_model(kind.of(adapt(network(), (FACES[kind],))), lora()).generate(input_ids=IDS)


# ------------------------------------------------------------------------------------------------ against transformers

METHODS = {
    "LoRA": lora, "IA3": ia3, "prompt": prompt, "encoder": encoder, "prefix": prefix,
    "projected prefix": lambda: prefix(prefix_projection=True, encoder_hidden_size=8),
}  # fmt: skip


def both(method: Any) -> list[Any]:
    """The same adapter on our network and on transformers' twin."""
    found = []
    for model in twins():
        torch.manual_seed(0)
        found.append(peft.get_peft_model(model, method()))
    found[0].load_state_dict(found[1].state_dict())
    return found


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_as_on_a_llama(name: str) -> None:
    ids, mask = batch(9, 5, left=False)
    labels = ids.masked_fill(mask == 0, -100)
    gradients = []
    for adapted in both(METHODS[name]):
        adapted.zero_grad()
        loss = adapted(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        gradients.append((loss, [weight.grad for weight in trained(adapted)]))
    (ours, of_ours), (theirs, of_theirs) = gradients
    assert_close(ours, theirs)
    assert len(of_ours) == len(of_theirs) > 0
    for one, other in zip(of_ours, of_theirs, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_generation_as_by_calls_without_a_cache(name: str) -> None:
    """transformers 5.24 and PEFT 0.21 name the cache differently, and leave the prefix of a Llama out."""
    adapted, _ = both(METHODS[name])
    adapted.eval()
    ids, mask = batch(7, 4)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = adapted.generate(input_ids=ids, attention_mask=mask, **options)
    beams = adapted.generate(input_ids=ids, attention_mask=mask, num_beams=2, **options)
    assert beams.shape == found.shape
    written, seen = ids, mask
    for _ in range(6):
        best = adapted(input_ids=written, attention_mask=seen).logits[:, -1].argmax(-1, keepdim=True)
        written, seen = torch.cat((written, best), 1), _longer(seen)
    assert found.tolist() == written.tolist()
    plain = adapted.get_base_model()
    with adapted.disable_adapter():
        assert plain.generate(ids, attention_mask=mask, **options).tolist() != found.tolist()


def _longer(mask: Tensor) -> Tensor:
    return torch.cat((mask, torch.ones_like(mask[:, :1])), 1)


@pytest.mark.parametrize("face", FACES)
def test_the_modules_of_a_llama_are_adapted_unless_others_are_named(face: type[AnyOrderMixin]) -> None:
    adapted = peft.get_peft_model(face.of(adapt(network(), [FACES[face]])), peft.LoraConfig())
    wrapped = {name.split(".")[-1] for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert wrapped == {"q_proj", "v_proj"}
    ids = torch.tensor([[5, 6]])
    assert adapted(input_ids=ids).logits.shape[:2] == (1, 2)


def test_other_methods_have_their_defaults_too() -> None:
    face = AnyOrderForCausalLM.of(network())
    adapted = peft.get_peft_model(face, peft.IA3Config())
    assert {name.split(".")[-1] for name, module in adapted.named_modules() if hasattr(module, "ia3_l")} == {
        "k_proj", "v_proj", "down_proj"
    }  # fmt: skip
