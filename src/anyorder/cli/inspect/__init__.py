"""Look closely: replays, attention, samplers side by side."""

from __future__ import annotations

SUBCOMMANDS = ("replay", "attention", "compare")
