"""What PEFT adapts unless `target_modules` are named: in our networks the modules that it takes in a Llama."""

from __future__ import annotations

import sys

TABLES = "peft.utils.constants"
"""Where PEFT keeps, for each method, a table from model types to modules."""


def enter_defaults(model_type: str) -> None:
    """Enter a model type into PEFT's tables, if PEFT has been imported."""
    tables = vars(sys.modules[TABLES]).items() if TABLES in sys.modules else ()
    for name, table in tables:
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict) and "llama" in table:
            table.setdefault(model_type, table["llama"])
