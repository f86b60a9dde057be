"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from anyorder.model.config import ModelConfig
from anyorder.model.rope import ROTARY_EMBEDDINGS, Rotary
from anyorder.model.self_attention import ATTENTIONS

PROJECT_ROOT = Path(__file__).resolve().parent.parent

# Small tensors: more threads cost more than they bring, and several workers may run at once.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder of the working tree."""
    return PROJECT_ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder `../shared/data` with checkpoints and corpora; tests that need it skip without it."""
    folder = PROJECT_ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared/data beside the project, which is not there")
    return folder


@pytest.fixture
def tiny_config() -> ModelConfig:
    """A network with grouped heads that takes milliseconds."""
    return ModelConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rotary=Rotary(theta=10_000.0),
        initializer_range=0.2,
    )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test draws from the same seed, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """What a test registers is gone after it."""
    registries: list[dict[str, Any]] = [ROTARY_EMBEDDINGS, ATTENTIONS]
    before = [dict(registry) for registry in registries]
    yield
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.fixture
def float64() -> Iterator[None]:
    """New floating tensors, and so new networks, are float64 within the test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
