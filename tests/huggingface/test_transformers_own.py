"""transformers' own tests of its models with each face; what is refused on purpose is in a table."""

from __future__ import annotations

import unittest
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from anyorder.checkpoints.config_json import config_from_json
from anyorder.huggingface import AnyOrderConfig, AnyOrderForCausalLM, LLaDAForMaskedLM, LlamaTwoStreamForCausalLM
from anyorder.model.modes import ANY_ORDER, diffusion
from tests.huggingface.mixins import MARKERS, Result, mixins
from tests.huggingface.twins import SHAPE, VOCABULARY

FACES = {
    "causal": (AnyOrderForCausalLM, ()),
    "masked": (LLaDAForMaskedLM, (diffusion(mask_token_id=5),)),
    "two-stream": (LlamaTwoStreamForCausalLM, (ANY_ORDER,)),
}


PLAIN_MODEL = "'Decoder' object has no attribute 'save_pretrained'"
"""`face.model` is a plain module, which the face saves."""

FOR_OTHERS = "False != True"
"""A `generation_config.json` is written though transformers' `generate` is refused: it says what ends a text."""

REFUSED = {
    "causal": {"test_correct_missing_keys": PLAIN_MODEL},
    "masked": {
        "test_save_load": FOR_OTHERS,
        "test_correct_missing_keys": PLAIN_MODEL,
        # A vocabulary that is cut below the mask token.
        "test_resize_tokens_embeddings": "mask_token_id is 5: give an id from 0 to 3",
    },
    "two-stream": {
        "test_save_load": FOR_OTHERS,
        "test_correct_missing_keys": PLAIN_MODEL,
        # Its hidden states are copies, in the order of the text: no gradient arrives at them.
        "test_retain_grad_hidden_states_attentions": "unexpectedly None",
    },
}
"""Of each face, the tests that fail on purpose, and the end of what they fail with."""


class Inputs:
    """Makes the inputs of transformers' tests."""

    is_training = True
    batch_size, seq_length = 5, 7
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, modes: Any) -> None:
        self.modes = modes

    def get_config(self) -> AnyOrderConfig:
        shape = SHAPE | {"num_hidden_layers": self.num_hidden_layers, "initializer_range": 0.02}
        backbone = config_from_json(LlamaConfig(**shape).to_dict() | {"architectures": None})
        return AnyOrderConfig(backbone=backbone.replace(modes=self.modes) if self.modes else backbone)

    def prepare_config_and_inputs_for_common(self) -> tuple[AnyOrderConfig, dict[str, Any]]:
        ids = torch.randint(4, VOCABULARY, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.slow
@pytest.mark.parametrize("name", FACES)
def test_model_tester_mixin(name: str, pytestconfig: pytest.Config) -> None:
    """Every test of `ModelTesterMixin` passes, is skipped by transformers, or is refused as the table says."""
    for marker in MARKERS:
        pytestconfig.addinivalue_line("markers", f"{marker}: of transformers' own tests")
    tests = case(name)
    result = Result()
    names = unittest.defaultTestLoader.getTestCaseNames(tests)
    unittest.TestSuite(map(tests, names)).run(result)
    assert {test: message for test, message in result.failed.items() if test not in REFUSED[name]} == {}
    for test, message in REFUSED[name].items():
        assert message in result.failed[test].strip().splitlines()[-1]
    assert len(result.passed) > 80


def case(name: str) -> type[unittest.TestCase]:
    """transformers' tests of one face."""
    face, modes = FACES[name]

    class Case(*mixins(generates=face.can_generate()), unittest.TestCase):  # type: ignore[misc]
        all_model_classes = (face,)

        def setUp(self) -> None:
            self.model_tester = Inputs(modes)

        def _prepare_for_class(self, inputs: Any, model_class: Any, return_labels: bool = False) -> Any:
            # transformers' own adds labels for the classes of its tables.
            inputs = super()._prepare_for_class(inputs, model_class)
            return inputs | {"labels": inputs["input_ids"]} if return_labels else inputs

    return Case
