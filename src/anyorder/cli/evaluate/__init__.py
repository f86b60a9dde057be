"""Say how good a network is."""

from __future__ import annotations

SUBCOMMANDS = ("likelihood", "tasks")
