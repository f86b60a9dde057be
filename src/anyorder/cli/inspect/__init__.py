"""Look at how a network reads and writes: replays, attention, samplers side by side."""

from __future__ import annotations

SUBCOMMANDS = ("replay",)
