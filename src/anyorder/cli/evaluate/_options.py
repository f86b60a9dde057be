"""Options of `anyorder evaluate`: a dataclass for each group."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.cli._options import OptionGroup
from anyorder.errors import UserError
from anyorder.utils.annotations import Listed

if TYPE_CHECKING:
    from anyorder.evaluation.tasks import TaskSettings


@dataclass(frozen=True, kw_only=True)
class TaskOptions(OptionGroup):
    """Which tasks are run, and how questions are written.

    Attributes:
        tasks: A task or a group of tasks of the harness, such as hellaswag, a pattern such as mmlu_*, or a YAML file;
            may be repeated. At least one must be given.
        include_path: Folder with YAML files of further tasks.
        shots: Questions shown with their answer in front; as each task says unless given.
        max_samples: Questions of each task at most, the first ones.
        chat: Write questions by the tokenizer's chat template.
        system: System message of the chat template.
        max_new_tokens: Tokens of written answers at most; as each task says unless given.
        seed: Decides which questions are shown, random orders, masks and draws.
    """

    tasks: list[Listed] = field(default_factory=list)
    include_path: Path | None = None
    shots: int | None = None
    max_samples: int | None = None
    chat: bool = False
    system: str | None = None
    max_new_tokens: int | None = None
    seed: int = 1234

    def to_settings(self) -> TaskSettings:
        """Return the settings of these options.

        Raises:
            UserError: one of them cannot be, or does not go with another one.
        """
        if self.system is not None and not self.chat:
            without = f"system is {self.system!r} without --chat, whose template writes it"
            raise UserError(f"{without}: add --chat, or leave it out.")
        from anyorder.evaluation.tasks import TaskSettings

        return TaskSettings(
            shots=self.shots, max_samples=self.max_samples, chat=self.chat, system=self.system,
            max_new_tokens=self.max_new_tokens, seed=self.seed,
        )  # fmt: skip
