"""Commented sample configurations, made from the settings' own explanations so that they cannot go stale."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

import yaml

from anyorder.cli._groups import TRAINING
from anyorder.cli._signature import field_explanations
from anyorder.orders.names import MIXTURE, OBJECTIVES
from anyorder.training.settings import FROM_SCRATCH, NEEDS, STEPS, Run

ELSEWHERE = ("last_answer_only", "resume", "force")
"""What belongs on the command line, and is in no file."""

TUNED: dict[str, Any] = {"steps": 500}
"""What differs in fine-tuning."""


def sample_configurations(data: Path, init: str | None) -> dict[str, str]:
    """The name of each file and its text."""
    files = {}
    for command in ("pretrain", "sft"):
        for objective in (*OBJECTIVES, MIXTURE):
            given: dict[str, Any] = {
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
            of_others = name in NEEDS and not NEEDS[name] & learnt
            if name in ELSEWHERE or of_others or (name == "shares" and objective != MIXTURE):
                continue
            value = given.get(name, defaults[name])
            written = yaml.safe_dump({name: str(value) if isinstance(value, Path) else value}).rstrip()
            # A field that another decides may stand beside it as a comment alone.
            beside = name == "epochs" or (name in FROM_SCRATCH if given["init"] else name == "rope_scaling")
            lines += ["", *textwrap.wrap(explained[name], 98, initial_indent="# ", subsequent_indent="# ")]
            lines += [f"# {written}" if beside else written]
    return "\n".join(lines) + "\n"


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
