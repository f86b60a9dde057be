"""Every face on every kind of folder that is written, called and generating, against `anyorder.load` and `generate`."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, GenerationConfig

import anyorder
from anyorder import AnyOrderForCausalLM, LLaDAForMaskedLM, LlamaTwoStreamForCausalLM
from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.model.config import LayerKind
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, Mode, blocks, diffusion
from tests.model.networks import network

MASK = 30
ENDS = tuple(range(10, 20))
SEVERAL = (ANY_ORDER, LEFT_TO_RIGHT, diffusion(MASK))

FOLDERS: dict[str, tuple[tuple[Mode, ...], dict[str, Any]]] = {
    "a Llama": ((LEFT_TO_RIGHT,), {}),
    "a Mistral": ((LEFT_TO_RIGHT,), {"layers": (LayerKind(window=5),) * 2}),
    "ours": ((LEFT_TO_RIGHT,), {"layers": (LayerKind(rotary=False), LayerKind(chunk=5))}),
    "several modes": (SEVERAL, {}),
    "several modes, tied": (SEVERAL[::-1], {"tie_word_embeddings": True}),
    "left to right first": ((LEFT_TO_RIGHT, diffusion(MASK)), {}),
    "any order": ((ANY_ORDER,), {}),
    "diffusion": ((diffusion(MASK, shifted=True),), {}),
    "blocks": ((blocks(MASK, 4),), {}),
}

CAUSAL = [AnyOrderForCausalLM, AutoModelForCausalLM]
PROMPT = [3, 4, 5]


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Llama]:
    modes, changes = FOLDERS[request.param]
    torch.manual_seed(0)
    model = adapt(Llama(network(eos_token_ids=ENDS, bos_token_id=1).config.replace(**changes)), modes).eval()
    path = tmp_path_factory.mktemp("folders") / "folder"
    anyorder.save(model, None, path)
    return path, model


def causal(model: Llama) -> bool:
    return LEFT_TO_RIGHT in model.config.modes


def test_what_ends_a_text_is_in_every_folder(folder: tuple[Path, Llama]) -> None:
    path, _ = folder
    assert json.loads((path / "config.json").read_text())["eos_token_id"] == list(ENDS)
    generation = GenerationConfig.from_pretrained(path)
    assert (generation.eos_token_id, generation.bos_token_id) == (list(ENDS), 1)


@pytest.mark.parametrize("through", CAUSAL)
@pytest.mark.parametrize("described", [True, False], ids=["as written", "without generation_config.json"])
@torch.no_grad()
def test_generate_stops_where_anyorder_does(
    folder: tuple[Path, Llama], through: Any, described: bool, tmp_path: Path
) -> None:
    path, model = folder
    if not described:
        for file in path.iterdir():
            if file.name != "generation_config.json":
                (tmp_path / file.name).symlink_to(file)
        path = tmp_path
    face = through.from_pretrained(path)
    if not causal(model):
        with pytest.raises(UserError, match="has no logits for the next token"):
            face(torch.tensor([PROMPT]))
        with pytest.raises(UserError, match="has no logits for the next token"):
            face.generate(torch.tensor([PROMPT]))
        return
    assert face.generation_config.eos_token_id == list(ENDS)
    ended = 0
    for first in range(1, 7):
        prompt = [first, *PROMPT]
        given = torch.tensor([prompt])
        written = face.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=24, pad_token_id=0)[0]
        expected = anyorder.generate(model, None, prompt, order="left-to-right", max_new_tokens=24)
        assert written.tolist() == expected.sequences[0]
        ended += int(written[-1]) in ENDS
    assert ended > 1  # or nothing would be said about ends


@pytest.mark.parametrize("mode", ["left-to-right", "any-order", "diffusion"])
@torch.no_grad()
def test_each_face_reads_its_way(folder: tuple[Path, Llama], mode: str) -> None:
    path, model = folder
    faces: dict[str, list[Any]] = {
        "left-to-right": CAUSAL, "any-order": [LlamaTwoStreamForCausalLM],
        "diffusion": [LLaDAForMaskedLM, AutoModelForMaskedLM],
    }  # fmt: skip
    names = [known.name for known in model.config.modes]
    native = json.loads((path / "config.json").read_text())["model_type"] != "anyorder"
    ids, mask = torch.randint(0, 30, (2, 7)), torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    for through in faces[mode]:
        if native and through is AutoModelForMaskedLM:
            continue  # transformers has no such class for a Llama
        face = through.from_pretrained(path)
        if mode not in names:
            if mode != "any-order":  # of which any network is a start
                with pytest.raises(UserError, match="this network writes by"):
                    face(ids)
            continue
        by_default = adapt(model, model.config.modes, mode)(ids, attention_mask=mask).logits
        torch.testing.assert_close(face(ids, attention_mask=mask).logits[mask.bool()], by_default[mask.bool()])
        generate = anyorder.generate
        if isinstance(face, Llama):
            assert face.config.eos_token_ids == ENDS
            ours, theirs = (generate(one, None, PROMPT, order=mode, max_new_tokens=8) for one in (model, face))
            assert ours.token_ids == theirs.token_ids


@pytest.mark.parametrize("face", [AnyOrderForCausalLM, LLaDAForMaskedLM, LlamaTwoStreamForCausalLM])
def test_what_a_face_saves_is_what_anyorder_saves(folder: tuple[Path, Llama], face: Any, tmp_path: Path) -> None:
    path, model = folder
    if face is LlamaTwoStreamForCausalLM and ANY_ORDER not in model.config.modes:
        return
    face.from_pretrained(path).save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in path.iterdir()}
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == list(ENDS)
    again, _ = anyorder.load(tmp_path, device="cpu")
    assert again.config == model.config


@pytest.mark.parametrize("through", CAUSAL)
def test_nothing_becomes_causal_without_a_word(
    folder: tuple[Path, Llama], through: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path, model = folder
    default = model.config.default_mode
    with caplog.at_level(logging.WARNING, "anyorder"):
        through.from_pretrained(path)
    told = [record.message for record in caplog.records if "by default, but AnyOrderForCausalLM" in record.message]
    assert len(told) == (default != "left-to-right")
    does = "reads and writes it from left to right" if causal(model) else "refuses to be called"
    assert all(repr(default) in line and does in line for line in told)


@pytest.mark.parametrize(
    "face", [AnyOrderForCausalLM, LLaDAForMaskedLM, LlamaTwoStreamForCausalLM, AutoModelForCausalLM, AutoModel]
)
def test_far_more_layers_than_tensors_are_refused_before_a_network_is_built(face: Any, tmp_path: Path) -> None:
    anyorder.save(adapt(network(), (LEFT_TO_RIGHT, ANY_ORDER)), None, tmp_path / "a")  # no Llama of transformers
    file = tmp_path / "a" / "config.json"
    fields = json.loads(file.read_text())
    del fields["layers"]  # one for each layer
    file.write_text(json.dumps(fields | {"num_hidden_layers": 4000}))
    began = time.process_time()
    with pytest.raises(
        UserError, match="has 23 tensors, but its configuration 4000 layers: mend the configuration, or"
    ):
        face.from_pretrained(tmp_path / "a")
    assert time.process_time() - began < 2
