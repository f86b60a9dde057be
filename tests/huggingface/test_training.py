"""transformers' `Trainer`, gradient checkpointing and PEFT on the face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

import anyorder
from anyorder.errors import UserError
from anyorder.huggingface import AnyOrderForCausalLM
from anyorder.model.llama import Llama
from anyorder.model.modes import diffusion
from tests.huggingface.twins import VOCABULARY, Twins, assert_close, batch, face_of, llama, twins

# transformers 5.16 knows no other names for it, PEFT asks for one of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")


class Rows(Dataset):
    """Texts that count from 10 to 17 again and again, with more and more of the first tokens not predicted."""

    def __init__(self, rows: int = 16, length: int = 12) -> None:
        self.ids_NL = (torch.arange(rows)[:, None] + torch.arange(length)) % 8 + 10

    def __len__(self) -> int:
        return len(self.ids_NL)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids_L = self.ids_NL[index]
        return {"input_ids": ids_L, "labels": ids_L.masked_fill(torch.arange(len(ids_L)) < index % 8, -100)}


def whole_batch() -> dict[str, Tensor]:
    rows = [Rows()[index] for index in range(len(Rows()))]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.losses += [value for name, value in others["logs"].items() if name == "loss"]


def train(model: PreTrainedModel | PeftModel, folder: Path, resume: bool = False, **options: Any) -> list[float]:
    """The loss of each step."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 6, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "logging_steps": 1,
            "save_strategy": "no", "report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False, "seed": 0,
            **options,
        },
    )  # fmt: skip
    losses = Losses()
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[losses])
    trainer.train(resume_from_checkpoint=resume or None)
    return losses.losses


def small() -> Twins:
    """Weights from which training can begin."""
    return twins(initializer_range=0.05)


# ------------------------------------------------------------------------------------------------ Trainer


def test_trainer_as_on_transformers_class(tmp_path: Path) -> None:
    ours, theirs = (train(model, tmp_path) for model in small())
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0] - 0.1


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    whole, _ = small()
    halved = face_of(llama(initializer_range=0.05))
    halved.load_state_dict(whole.state_dict())
    expected = train(whole, tmp_path / "whole", lr_scheduler_type="constant")
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    first = train(halved, tmp_path / "halved", max_steps=3, **options)
    again = AnyOrderForCausalLM.from_pretrained(tmp_path / "halved" / "checkpoint-3")
    second = train(again, tmp_path / "halved", resume=True, **options)
    assert first + second == pytest.approx(expected, rel=1e-6)
    for name, parameter in again.named_parameters():
        assert_close(parameter, whole.get_parameter(name))
    # What Trainer keeps is a checkpoint like any other.
    assert anyorder.load(tmp_path / "halved" / "checkpoint-6")[0].config == whole.config.backbone


def test_accumulated_gradients_equal_a_large_batch(tmp_path: Path) -> None:
    """Though texts have different numbers of predicted tokens."""
    large, _ = small()
    accumulated = face_of(llama(initializer_range=0.05))
    accumulated.load_state_dict(large.state_dict())
    options: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3}
    losses = train(large, tmp_path, per_device_train_batch_size=8, **options)
    found = train(accumulated, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    assert found == pytest.approx(losses, rel=1e-5)
    for name, parameter in accumulated.named_parameters():
        assert_close(parameter, large.get_parameter(name))


def test_evaluation(tmp_path: Path) -> None:
    ours, _ = small()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), report_to=[], disable_tqdm=True, dataloader_pin_memory=False
    )
    found: Any = Trainer(model=ours, args=arguments, eval_dataset=Rows()).predict(Rows())
    assert found.predictions.shape == (16, 12, VOCABULARY)
    assert found.metrics["test_loss"] == pytest.approx(float(ours(**whole_batch()).loss.detach()), rel=1e-4)


def test_trainer_on_a_network_without_logits_for_the_next_token(tmp_path: Path) -> None:
    ours, _ = small()
    ours.config.modes = (diffusion(3),)
    with pytest.raises(UserError, match=r"writes by 'diffusion' and has no logits .* transformers' .*Trainer"):
        train(ours, tmp_path)


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_gradient_checkpointing_changes_nothing(reentrant: bool, left: bool) -> None:
    ours, _ = twins()
    ids, mask = batch(9, 4, left=left)
    labels = ids.masked_fill(mask == 0, -100)
    ours.train()

    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        ours.zero_grad()
        loss = ours(ids, attention_mask=mask, labels=labels, output_hidden_states=True).loss
        loss.backward()
        return loss, {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}

    expected_loss, expected = gradients()
    calls = count_calls(ours)
    ours.gradient_checkpointing_enable({"use_reentrant": reentrant})
    loss, found = gradients()
    assert calls == [2, 2, 2]
    assert torch.equal(loss, expected_loss)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])
    ours.gradient_checkpointing_disable()
    gradients()
    ours.gradient_checkpointing_enable()
    ours.eval()
    gradients()
    assert calls == [4, 4, 4]


def test_checkpointing_of_a_network_that_was_loaded_before() -> None:
    """`of` shares its layers, and transformers finds them."""
    ours, _ = twins()
    plain = Llama(ours.config.backbone)
    before = {name for name, _ in plain.named_parameters()}
    face = AnyOrderForCausalLM.of(plain).train()
    assert all(isinstance(layer, GradientCheckpointingLayer) for layer in plain.model.layers)
    calls = count_calls(face)
    face.gradient_checkpointing_enable()
    ids, _ = batch(9)
    face(ids, labels=ids).loss.backward()
    assert calls == [2, 2, 2]
    assert {name for name, _ in plain.named_parameters()} == before


def count_calls(model: AnyOrderForCausalLM) -> list[int]:
    """How often each layer has run."""
    calls = [0] * len(model.model.layers)

    def count(index: int) -> None:
        calls[index] += 1

    for index, layer in enumerate(model.model.layers):
        # Within the layer: transformers 5.24 keeps the hooks of the layer itself out of what is computed again.
        layer.get_submodule("mlp").register_forward_pre_hook(lambda *_, index=index: count(index))
    return calls


def test_gradient_checkpointing_in_trainer(tmp_path: Path) -> None:
    plain, _ = small()
    saving = face_of(llama(initializer_range=0.05))
    saving.load_state_dict(plain.state_dict())
    expected = train(plain, tmp_path)
    assert train(saving, tmp_path, gradient_checkpointing=True) == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------------------------ PEFT


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]], ids=["all", "some"])
def test_lora(targets: str | list[str], tmp_path: Path) -> None:
    ours, _ = twins()
    before = {name: parameter.clone() for name, parameter in ours.named_parameters()}
    adapted = get_peft_model(ours, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    losses = train(adapted, tmp_path, max_steps=20, learning_rate=3e-2)
    assert losses[-1] < losses[0] / 2
    adapted.eval()
    ids, mask = batch(9, 4)
    expected = adapted(ids, attention_mask=mask).logits
    written = adapted.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8)
    row = ids[1, mask[1].bool()].tolist()
    assert written[1, 9:].tolist()[:4] == anyorder.generate(adapted, None, row, max_new_tokens=4).token_ids
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"has an adapter of PEFT: save what its merge_and_unload\(\) returns"):
        anyorder.save(adapted, None, tmp_path / "merged")

    merged = adapted.merge_and_unload()
    assert isinstance(merged, AnyOrderForCausalLM)
    assert_close(merged(ids, attention_mask=mask).logits, expected)
    assert merged.generate(ids, attention_mask=mask, max_new_tokens=8).tolist() == written.tolist()
    changed = {name for name, parameter in merged.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name for name in changed if "q_proj" in name}
    assert not {name for name in changed if "norm" in name or "embed" in name}

    # The adapter alone, on the network as it was; and all in one, as any checkpoint.
    original, _ = twins()
    original.load_state_dict(before)
    reloaded = PeftModel.from_pretrained(original, tmp_path / "adapter").eval()
    assert_close(reloaded(ids, attention_mask=mask).logits, expected)
    anyorder.save(merged, None, tmp_path / "merged")
    network, _ = anyorder.load(tmp_path / "merged")
    assert_close(network(ids, attention_mask=mask).logits[mask.bool()], expected[mask.bool()])


def test_lora_with_gradient_checkpointing(tmp_path: Path) -> None:
    ours, _ = twins()
    adapted = get_peft_model(ours, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    losses = train(adapted, tmp_path, max_steps=20, learning_rate=3e-2, gradient_checkpointing=True)
    assert losses[-1] < losses[0] / 2


def test_adapters_without_a_wrapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own methods for adapters."""
    # transformers 5.24 wants a version of PEFT that is not released; the methods work with those that are.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.17")
    ours, _ = twins()
    ids, _ = batch(9)
    expected = ours(ids).logits
    ours.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    changed = ours(ids).logits
    assert not torch.allclose(changed, expected, atol=1e-3)
    ours.save_pretrained(tmp_path)
    ours.disable_adapters()
    assert_close(ours(ids).logits, expected)
    other, _ = twins()
    other.load_adapter(str(tmp_path))
    assert any("lora" in name for name, _ in other.named_parameters())


def test_an_interrupted_training_of_adapters_goes_on(tmp_path: Path) -> None:
    """Though another process draws other first weights of the adapters: those of the checkpoint count."""
    original, _ = small()
    weights = {name: weight.clone() for name, weight in original.state_dict().items()}

    def adapted(seed: int) -> PeftModel:
        face = face_of(llama(initializer_range=0.05))
        face.load_state_dict(weights)
        torch.manual_seed(seed)
        model = get_peft_model(face, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        assert isinstance(model, PeftModel)
        return model

    options: dict[str, Any] = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 3}
    whole, halved, again = adapted(1), adapted(1), adapted(2)
    expected = train(whole, tmp_path / "whole", **options)
    first = train(halved, tmp_path / "halved", max_steps=3, **options)
    second = train(again, tmp_path / "halved", resume=True, **options)
    assert first + second == expected
    found = dict(again.named_parameters())
    assert all(torch.equal(weight, found[name]) for name, weight in whole.named_parameters())
