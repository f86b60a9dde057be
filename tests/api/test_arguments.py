"""What newcomers hand over instead of the network and its tokenizer, and what they look for on the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import anyorder
from anyorder import AnyOrderForCausalLM, LLaDAForMaskedLM, LlamaTwoStreamForCausalLM
from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.huggingface import AnyOrderMixin
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from tests.data.tokenizers import characters

PLAN = anyorder.GroupPlan.from_order([0, 1])


def call(name: str, model: Any, words: Any, folder: Path) -> Any:
    return {
        "generate": lambda: anyorder.generate(model, words, "a", max_new_tokens=1),
        "stream": lambda: anyorder.stream(model, words, "a", max_new_tokens=1),
        "fuse": lambda: anyorder.fuse(model, words, ["a", "b"], max_new_tokens=1),
        "save": lambda: anyorder.save(model, words, folder / "new"),
        "log_prob": lambda: anyorder.log_prob(model, [1, 2], PLAN),
    }[name]()


CALLS = ("generate", "stream", "fuse", "save", "log_prob")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("given", ["a path", "a Path", "a pair", "a tokenizer", "nothing", "a module"])
def test_what_is_no_network(tiny_config: ModelConfig, tmp_path: Path, name: str, given: str) -> None:
    network, words = Llama(tiny_config), characters()
    value, remedy = {
        "a path": ("a/model", "the network, not its place: model, tokenizer = anyorder.load('a/model')"),
        "a Path": (Path("a"), "the network, not its place: model, tokenizer = anyorder.load('a')"),
        "a pair": ((network, words), "its first item: model, tokenizer = anyorder.load(path)"),
        "a tokenizer": (
            words,
            "the network first and then the tokenizer, as model, tokenizer = anyorder.load(path) does",
        ),
        "nothing": (None, "the network that anyorder.load or AnyOrderForCausalLM.from_pretrained gives"),
        "a module": (
            torch.nn.Linear(2, 2),
            "the network that anyorder.load or AnyOrderForCausalLM.from_pretrained gives",
        ),
    }[given]
    with pytest.raises(UserError) as caught:
        call(name, value, network if given == "a tokenizer" else words, tmp_path)
    message = str(caught.value)
    assert message.startswith("model is ")
    assert message.endswith(f": give {remedy}.")
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in CALLS if name != "log_prob"])
def test_what_is_no_tokenizer(tiny_config: ModelConfig, tmp_path: Path, name: str) -> None:
    network = Llama(tiny_config)
    with pytest.raises(
        UserError, match=r"^tokenizer is 'a/path': give a tokenizer: model, tokenizer = anyorder.load\(pa"
    ):
        call(name, network, "a/path", tmp_path)
    with pytest.raises(
        UserError, match=r"^tokenizer is Llama.* Llama: give the network first and then the tokenizer, as"
    ):
        call(name, network, network, tmp_path)


def test_methods_of_transformers_are_named_where_they_are(tiny_config: ModelConfig) -> None:
    network = Llama(tiny_config)
    for name, instead in {
        "generate": r"anyorder.generate\(model, tokenizer, prompt\)",
        "save_pretrained": r"anyorder.save\(model, tokenizer, path\)",
        "from_pretrained": r"anyorder.load\(path\)",
    }.items():
        assert not hasattr(network, name)
        with pytest.raises(
            AttributeError, match=rf"^this network has no '{name}', .*: use {instead}, or anyorder.AnyOrderForCausalLM"
        ):
            getattr(network, name)
    with pytest.raises(AttributeError, match=r"^'Llama' object has no attribute 'generat'"):
        network.generat  # noqa: B018
    assert AnyOrderForCausalLM.of(network).generate(torch.tensor([[1, 2]]), max_new_tokens=2).shape == (1, 4)


MODES: dict[str, tuple[Any, type[AnyOrderMixin], str]] = {
    "left to right": (LEFT_TO_RIGHT, AnyOrderForCausalLM, "left-to-right"),
    "any order": (ANY_ORDER, LlamaTwoStreamForCausalLM, "any-order"),
    "diffusion": (diffusion(3), LLaDAForMaskedLM, "diffusion"),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_network_with_adapters_writes_as_when_they_are_merged(tiny_config: ModelConfig, mode: str) -> None:
    of, face, order = MODES[mode]
    plain = Llama(tiny_config) if mode == "left to right" else adapt(Llama(tiny_config), [of])
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_alpha=64)
    adapted = peft.get_peft_model(face.of(plain), config).eval()

    def written(model: Any) -> Any:
        return anyorder.generate(model, None, [[5, 6], [7]], order=order, max_new_tokens=8).token_ids

    with adapted.disable_adapter():
        bare = written(adapted)
    found = written(adapted)
    assert found == written(adapted.merge_and_unload()) != bare


def test_adapters_that_add_rows_are_refused(tiny_config: ModelConfig) -> None:
    face = AnyOrderForCausalLM.of(Llama(tiny_config))
    adapted = peft.get_peft_model(face, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(
        UserError, match=r"^model is .*: give adapters within the network, such as LoRA: those of PROMPT_TUN"
    ):
        anyorder.generate(adapted, None, [5, 6], max_new_tokens=2)


def test_what_tokenizers_return_and_messages_are_phrasings(tiny_config: ModelConfig) -> None:
    network, words = Llama(tiny_config.replace(vocab_size=300)), characters()
    words.chat_template = "{% for message in messages %}{{ message['content'] }}!{% endfor %}"
    words.pad_token = words.pad_token or words.eos_token
    texts = ["ab!", "abcd!"]
    encoded = words(texts, padding=True, add_special_tokens=False)
    ids = [words(text, add_special_tokens=False)["input_ids"] for text in texts]
    expected = anyorder.fuse(network, words, ids, max_new_tokens=4).sequences
    dialogues = [[{"role": "user", "content": text.removesuffix("!")}] for text in texts]
    for given in (encoded, [words(text, add_special_tokens=False) for text in texts], dialogues):
        assert anyorder.fuse(network, words, given, max_new_tokens=4).sequences == expected


def test_what_tokenizers_return_has_a_likelihood(tiny_config: ModelConfig) -> None:
    network = adapt(Llama(tiny_config), [ANY_ORDER])
    ids = torch.tensor([[5, 6]])
    expected = anyorder.log_prob(network, ids, PLAN).total
    assert torch.equal(anyorder.log_prob(network, {"input_ids": ids, "attention_mask": ids > 0}, PLAN).total, expected)
    with pytest.raises(UserError, match=r"^ids has \['ids'\] and no input_ids: give token ids, or what a tokenizer"):
        anyorder.log_prob(network, {"ids": ids}, PLAN)


def test_small_helpers_check_their_arguments() -> None:
    with pytest.raises(UserError, match=r"^group_ids is \[0, 1\], a list: give an object of the class Tensor"):
        anyorder.generate_grouping_masks([0, 1])
    with pytest.raises(UserError, match=r"^seq_len is '2': give a whole number"):
        anyorder.generate_grouping_masks(torch.tensor([0, 1]), seq_len="2")
