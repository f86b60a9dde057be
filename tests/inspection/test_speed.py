"""The benchmark measures what it says; what it finds decides no test."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from anyorder.checkpoints import load_model
from anyorder.errors import UserError
from anyorder.inspection import speed
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from tests.writers import write_left_to_right


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch, tiny_config: ModelConfig) -> None:
    """A network of milliseconds, texts of a few tokens, and no compiler."""
    monkeypatch.setitem(speed.SIZES, "tiny", tiny_config)
    monkeypatch.setattr(speed, "PROMPT_TOKENS", 4)
    monkeypatch.setattr(speed, "PREFILL_TOKENS", 8)
    monkeypatch.setattr(speed, "TRAIN_SHAPE", (2, 8))
    monkeypatch.setattr(speed, "compiler_at_hand", lambda device: False)
    monkeypatch.setattr(speed, "has_llama_cpp", lambda: False)


@pytest.mark.usefixtures("_small")
def test_every_candidate_is_timed_at_every_task() -> None:
    timings = speed.compare("tiny", torch.float32, ["decode", "prefill", "train"], new_tokens=3, repeats=2)
    assert [(t.task, t.candidate) for t in timings] == [
        (task, f"{who}, eager") for task in ("decode", "prefill", "train") for who in ("transformers", "anyorder")
    ]
    assert [t.tokens for t in timings] == [3, 3, 8, 8, 16, 16]
    for t in timings:
        assert len(t.seconds) == 2
        assert t.tokens_per_second > 0
        assert (t.size, t.dtype) == ("tiny", "float32")


def test_candidates_take_turns() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    seconds = speed._alternate(runs, 3)
    assert order == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_both_have_the_same_weights(tiny_config: ModelConfig) -> None:
    model = Llama(tiny_config).eval()
    ids = torch.randint(0, tiny_config.vocab_size, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(speed.twin(model)(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


def test_both_decode_the_same_tokens(tiny_config: ModelConfig) -> None:
    """Or the work would not be the same."""
    model = Llama(tiny_config).eval()
    ids = torch.randint(0, tiny_config.vocab_size, (1, 4))
    runs = speed._decoders(model, speed.twin(model), ids, 6, can_compile=False)
    theirs: Any = runs["transformers, eager"]()
    steps: Any = runs["anyorder, eager"]()
    written = [event.token_id for step in steps for event in step.written]
    assert theirs.tolist() == [[*ids[0].tolist(), *written]]


def test_llama_cpp_writes_the_same_tokens(shared_data: Path) -> None:
    """From the file that is made for it; and again, as a second run starts anew."""
    if not speed.has_llama_cpp():
        pytest.skip("needs llama-cpp-python and gguf: pip install anyorder[bench]")
    model = load_model(shared_data / "stories260K" / "stories260K.bin", device="cpu")
    for weights in (model, model.bfloat16()):
        run = speed.llama_cpp_decoder(weights, [1, 403, 407], 48)
        expected = write_left_to_right(weights, [[1, 403, 407]], max_new_tokens=48).written[0]
        assert run() == expected
        assert run() == expected


def test_a_token_reads_all_weights_but_the_embedding(tiny_config: ModelConfig) -> None:
    for tied in (False, True):
        model = Llama(tiny_config.replace(tie_word_embeddings=tied))
        apart = sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)
        head = model.lm_head.weight.numel() if tied else 0
        assert speed._weight_bytes(model) == 4 * (apart + head)


def test_the_sizes_are_those_they_are_named_for() -> None:
    for name, expected in (("260K", 260_032), ("125M", 124_668_672)):
        with torch.device("meta"):
            model = Llama(speed.SIZES[name])
        assert sum(weight.numel() for weight in model.parameters()) == expected


@pytest.mark.usefixtures("_small")
def test_the_clock_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setitem(speed.CLOCKS, "cpu", lambda: float(next(ticks)))
    timings = speed.compare("tiny", torch.float32, ["prefill"], repeats=2, clock="cpu")
    assert [t.seconds for t in timings] == [(1.0, 1.0)] * 2
    with pytest.raises(UserError, match=r"^clock is 'sun': choose one of wall, cpu"):
        speed.compare("tiny", torch.float32, ["prefill"], clock="sun")


def test_an_unknown_size() -> None:
    with pytest.raises(UserError, match=r"^size is '7B': choose one of 260K, 125M"):
        speed.compare("7B", torch.float32, ["decode"])
