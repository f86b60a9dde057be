"""lm-evaluation-harness on the face, through its own `HFLM`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'anyorder[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

from anyorder.data import train_tokenizer
from anyorder.errors import UserError
from anyorder.huggingface import AnyOrderForCausalLM
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import diffusion

TEXT = "Once upon a time there was a little girl named Lily, who loved to play outside in the sun."
PAIRS = [("Once upon", " a time"), ("Lily, who", " loved to play outside"), ("the little", " sun.")]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([TEXT] * 3, 320)


@pytest.fixture
def face(tiny_config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> AnyOrderForCausalLM:
    return AnyOrderForCausalLM.of(Llama(tiny_config.replace(vocab_size=len(tokenizer))).eval())


def harness(face: AnyOrderForCausalLM, tokenizer: PreTrainedTokenizerFast, **options: Any) -> HFLM:
    return HFLM(pretrained=face, tokenizer=tokenizer, **options)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


@torch.no_grad()
def log_prob(network: Llama, before: list[int], ids: list[int]) -> float:
    """The sum over tokens, each given all before it, without the harness, transformers or a batch."""
    logits = network(torch.tensor([[*before, *ids]])).logits[0, len(before) - 1 : -1].log_softmax(-1)
    return float(logits.gather(-1, torch.tensor(ids)[:, None]).sum())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_loglikelihood(face: AnyOrderForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
    found = harness(face, tokenizer, batch_size=batch_size).loglikelihood(
        requests("loglikelihood", *PAIRS), disable_tqdm=True
    )
    for (before, after), (found_log_prob, greedy) in zip(PAIRS, found, strict=True):
        ids = tokenizer(before + after)["input_ids"]
        given = len(tokenizer(before)["input_ids"])
        assert found_log_prob == pytest.approx(log_prob(face, ids[:given], ids[given:]), rel=1e-5)
        written = face.generate(torch.tensor([ids[:given]]), max_new_tokens=len(ids) - given, eos_token_id=None)
        assert greedy == (written[0].tolist() == ids)


def test_rolling_loglikelihood(face: AnyOrderForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    [found] = harness(face, tokenizer).loglikelihood_rolling(requests("loglikelihood_rolling", (TEXT,)), True)
    ids = tokenizer(TEXT)["input_ids"]
    assert len(ids) < face.config.max_position_embeddings
    assert found == pytest.approx(log_prob(face, [tokenizer.eos_token_id], ids), rel=1e-5)


def test_the_trained_length_is_known(face: AnyOrderForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    assert harness(face, tokenizer).max_length == face.config.max_position_embeddings


def test_generation(face: AnyOrderForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    options = {"until": ["."], "max_gen_toks": 6, "do_sample": False}
    prompts = [("Once upon", options), ("Lily", options)]
    found = harness(face, tokenizer, batch_size=2).generate_until(requests("generate_until", *prompts), True)
    for (prompt, _), text in zip(prompts, found, strict=True):
        given = tokenizer([prompt], return_tensors="pt", return_token_type_ids=False)
        written = face.generate(**given, max_new_tokens=6, pad_token_id=tokenizer.eos_token_id)[0]
        alone = tokenizer.decode(written[given["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text == str(alone).split(".")[0]


def test_networks_without_logits_for_the_next_token(
    face: AnyOrderForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    face.config.modes = (diffusion(3),)
    with pytest.raises(UserError, match=r"writes by 'diffusion' and has no logits .* evaluation harnesses need"):
        harness(face, tokenizer).loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
