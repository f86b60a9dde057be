"""Commented sample configurations, made from the settings' own explanations so that they cannot go stale."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any

import yaml

from anyorder.cli._groups import TRAINING
from anyorder.cli._signature import field_explanations
from anyorder.orders.names import MIXTURE, objectives
from anyorder.training.settings import FROM_SCRATCH, NEEDS, STEPS, Run, objectives_with

ELSEWHERE = ("last_answer_only", "resume", "force")
"""What belongs on the command line, and is in no file."""

TUNED: dict[str, Any] = {"steps": 500}
"""What differs in fine-tuning."""


SHAPE, WITH_EXPERTS = "shape-experts.json", "pretrain-experts.yaml"
"""An advanced network, and a training of it: experts, chunks, layers without rotary embedding."""

EXAMPLE: dict[str, Any] = {
    "model_type": "llama4_text", "architectures": ["Llama4ForCausalLM"], "vocab_size": 4096, "hidden_size": 192,
    "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 192, "intermediate_size_mlp": 512, "num_local_experts": 8, "num_experts_per_tok": 2,
    "interleave_moe_layer_step": 2, "no_rope_layer_interval": 4, "attention_chunk_size": 64, "floor_scale": 64,
    "max_position_embeddings": 256, "rope_theta": 10_000.0, "tie_word_embeddings": True,
}  # fmt: skip
"""Seven million parameters, of which three read a token; names as in transformers' Llama 4."""


def sample_configurations(folder: Path, data: Path, init: str | None) -> dict[str, str]:
    """Return the name of each file and its text.

    Args:
        folder: where they will be.
        data: to train on.
        init: checkpoint to start from; None: a network from scratch.
    """
    files = {}
    given: dict[str, Any]
    if init is None:
        given = {
            "data": str(data), "output": "trained-pretrain-experts", "objective": "autoregressive", "init": None,
            "shape": str(folder / SHAPE), "balance_loss": 0.01, "steps": STEPS, "save_every": 100,
        }  # fmt: skip
        files = {SHAPE: json.dumps(EXAMPLE, indent=2) + "\n", WITH_EXPERTS: _text("pretrain", "autoregressive", given)}
    for command in ("pretrain", "sft"):
        for objective in (*objectives(), MIXTURE):
            given = {
                "data": str(data), "output": f"trained-{command}-{objective}", "objective": objective,
                # Unless given, what is pre-trained by the other file of the pair is tuned.
                "init": init or (f"trained-pretrain-{objective}" if command == "sft" else None), "steps": STEPS,
                "save_every": 100, **(TUNED if command == "sft" else {}),
            }  # fmt: skip
            if objective == MIXTURE:
                given["shares"] = ["autoregressive=0.5", "permutation=0.5"]
            files[f"{command}-{objective}.yaml"] = _text(command, objective, given)
    return files


def _text(command: str, objective: str, given: dict[str, Any]) -> str:
    defaults = {field.name: _default(field) for field in dataclasses.fields(Run)}
    explained = field_explanations(Run)
    learnt = {objective, *(share.partition("=")[0] for share in given.get("shares", ()))}
    lines = [f"# anyorder {command} --config THIS_FILE"]
    for title, names in TRAINING.items():
        lines += ["", f"# ---- {title} ----"]
        for name in names:
            of_others = name in NEEDS and not objectives_with(name) & learnt
            if name in ELSEWHERE or of_others or (name == "shares" and objective != MIXTURE):
                continue
            value = given.get(name, defaults[name])
            written = yaml.safe_dump({name: str(value) if isinstance(value, Path) else value}).rstrip()
            # A field that another decides is a comment.
            of_shape = bool(given.get("shape")) and name in ("width", "layers", "heads")
            beside = name == "epochs" or of_shape or (name in FROM_SCRATCH if given["init"] else name == "rope_scaling")
            lines += ["", *textwrap.wrap(explained[name], 98, initial_indent="# ", subsequent_indent="# ")]
            lines += [f"# {written}" if beside else written]
    return "\n".join(lines) + "\n"


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
