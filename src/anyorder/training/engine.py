"""transformers' `Trainer` on training inputs: its loop, schedules, precision and processes; our loss and files.

What is overridden is what `Trainer` cannot know: how training inputs become a loss, how they are counted over
accumulated batches and processes, that losses and time go on where a training is resumed, and that a checkpoint must be
whole or not there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from anyorder.errors import UserError
from anyorder.model.experts import routings_of
from anyorder.model.llama import Llama
from anyorder.objectives import TrainingInputs, summed_loss
from anyorder.parallel import Processes, is_split, reshard
from anyorder.training.balance import Balance
from anyorder.training.gradients import by_mesh, clip_grad_norm
from anyorder.training.interruption import Interruption
from anyorder.training.progress import Progress
from anyorder.training.samples import Collator, Samples, StreamedSamples
from anyorder.training.settings import Training
from anyorder.training.state import OPTIMIZER, read_optimizer, read_weights, write_optimizer, write_weights
from anyorder.utils.files import SEAL, DiskError, added, damage, disk_error, seal

CHECKPOINT = "checkpoint-"
PROGRESS = "progress.json"
PARTIAL = ".partial"
"""Folder of a checkpoint that is being written."""


class ModelWithLoss(nn.Module):
    """The module that `Trainer` trains: it maps training inputs to a loss; wrappers for several processes go around."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model = model
        self.balance: Balance | None = None
        self.summed_loss = summed_loss
        if is_split(model):
            from anyorder.parallel import vocabulary  # which takes a second to import

            self.summed_loss = vocabulary.summed_loss
        self._no_split_modules = sorted({type(layer).__name__ for layer in model.model.layers})

    def forward(self, inputs: TrainingInputs) -> Tensor:
        """The summed loss, see `summed_loss`; in training, with the term that keeps experts equally busy."""
        if self.balance is None or not self.training:
            return self.summed_loss(self.model, inputs)
        with routings_of(self.model) as routings:
            summed = self.summed_loss(self.model, inputs)
        return summed + self.balance.term(routings, inputs.count)


class ObjectiveTrainer(Trainer):
    """Trains a network on the samples of one objective.

    Args:
        model: the network, trained in place.
        samples: of the whole training.
        collator: makes training inputs of them.
        validation: for each name, samples and what makes training inputs of them.
        describe: callback, called with the folder of a checkpoint; writes there what else loading it needs.
        keep: checkpoints that stay, the latest ones.
        training: how experts are kept equally busy; None: they are not counted.
        interruption: ends the training early, with a checkpoint.
        processes: that train together, over which the network may be split; None: this one alone.
        callbacks: called at each step and each entry of the log.
        options: further ones of `Trainer`.
    """

    def __init__(
        self,
        model: Llama,
        samples: Samples | StreamedSamples,
        collator: Collator,
        *,
        validation: Mapping[str, tuple[Samples, Collator]] | None = None,
        describe: Callable[[Path], None] = lambda folder: None,
        keep: int = 2,
        training: Training | None = None,
        interruption: Interruption | None = None,
        processes: Processes | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        **options: Any,
    ) -> None:
        self.samples = samples
        self.processes = processes
        self.wrapped = ModelWithLoss(model)
        self.is_split = is_split(model)
        validation_samples = {name: others for name, (others, _) in (validation or {}).items()}
        self.progress, self.interruption = Progress(), interruption
        super().__init__(
            model=self.wrapped, train_dataset=samples, eval_dataset=validation_samples or None, data_collator=collator,
            callbacks=[self.progress, *([] if interruption is None else [interruption]), *callbacks], **options,
        )  # fmt: skip
        # The sum over a step is divided by the step's own count, so no mean over batches is taken afterwards.
        self.model_accepts_loss_kwargs = True
        self.validation = validation or {}
        assert self.args.output_dir is not None
        self.folder = Path(self.args.output_dir)
        self.describe = describe
        self.keep = keep
        if training is not None and model.config.experts is not None:
            self.wrapped.balance = Balance(
                model, training, lambda counts: self.accelerator.reduce(counts.double(), "sum")
            )
            self.add_callback(self.wrapped.balance)

    # ---- processes --------------------------------------------------------------------------------

    @property
    def groups(self) -> int:
        """How many groups of processes share out the samples."""
        return 1 if self.processes is None else self.processes.groups

    def get_train_dataloader(self) -> Any:
        """The batches of this process; of those that share a network, each has the same."""
        if self.processes is None or self.groups == self.accelerator.num_processes:
            return super().get_train_dataloader()
        from accelerate.data_loader import prepare_data_loader

        loader = DataLoader(
            self.samples, batch_size=self.args.train_batch_size, collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )  # fmt: skip
        return prepare_data_loader(
            loader, num_processes=self.groups, process_index=self.processes.group, dispatch_batches=False
        )

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if not self.is_split:
            wrapped: nn.Module = super()._wrap_model(model, *args, **kwargs)
            return wrapped
        # Its gradients are summed already, so that accelerate adds mixed precision alone.
        self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        model._is_accelerate_prepared = True  # type: ignore[assignment]
        return model

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As `Trainer` does; weights that are split over other processes are updated apart."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.is_split:
            optimizer.param_groups = [
                {**group, "params": weights}
                for group in optimizer.param_groups
                for weights in by_mesh(group["params"]).values()
            ]
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if not self.is_split:
            return super()._clip_grad_norm(model)
        assert self.args.max_grad_norm is not None
        return clip_grad_norm(model.parameters(), self.args.max_grad_norm)

    # ---- losses -----------------------------------------------------------------------------------

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return torch.utils.data.SequentialSampler(range(self.samples.total))  # as they have been shuffled

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The batches of an optimizer step, and the count of their training inputs over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = sum(batch["inputs"].count for batch in batches)
        signalled = self.interruption is not None and self.interruption.signal is not None
        counts = torch.tensor([count, signalled], dtype=torch.float64, device=device)
        counts = self.accelerator.reduce(counts, "sum")
        if self.interruption is not None and self.accelerator.num_processes > 1:
            self.interruption.agreed = bool(counts[1])  # all processes must stop after the same step
        return batches, counts[0]

    def _prepare_input(self, data: Any) -> Any:
        return data.to(self.args.device) if isinstance(data, TrainingInputs) else super()._prepare_input(data)

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, num_items_in_batch: Any = None, **kw: Any) -> Any:
        """This batch's part of the step's loss; gradients are averaged over processes, so it is multiplied by them."""
        summed: Tensor = model(inputs["inputs"])
        return summed * (self.accelerator.num_processes / num_items_in_batch.clamp(min=1e-9)).to(summed.dtype)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Gradients of one batch, and its part of the step's loss."""
        loss: Tensor = super().training_step(*args, **kwargs)
        self.progress.unlogged = self.progress.unlogged + loss
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer` does, with losses and times of the whole training, not of the piece since it was resumed."""
        if "loss" in logs:
            logs["loss"] = self.progress.log(self._mean(self.progress.unlogged), self.state.global_step)
            logs |= {} if self.wrapped.balance is None else self.wrapped.balance.logged()
        if "train_loss" in logs:
            total = self.progress.logged + self._mean(self.progress.unlogged)
            logs["train_loss"] = total / max(self.state.global_step, 1)
        if "train_runtime" in logs:
            logs["train_runtime"] += self.progress.seconds_before
            speed = self.state.global_step / max(logs["train_runtime"], 1e-9)
            logs["train_steps_per_second"] = speed
            of_group = self.args.train_batch_size * self.args.gradient_accumulation_steps
            logs["train_samples_per_second"] = speed * of_group * self.groups
        super().log(logs, start_time)

    def _mean(self, value: Tensor) -> float:
        """Over all processes."""
        return float(self.accelerator.reduce(value.clone(), "mean"))

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Compute the loss of each objective on its validation samples, always with the same draws."""
        self.model_wrapped.eval()
        found = {}
        for name, (samples, collator) in self.validation.items():
            totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
            for numbers in self._own_batches(len(samples)):
                # A process whose samples have come to their end reads one more, for the others wait for it.
                inputs = self._prepare_input(collator([samples[number] for number in numbers or [0]])["inputs"])
                with self.compute_loss_context_manager():
                    summed = self.model_wrapped(inputs).double()
                if numbers:
                    totals += torch.stack((summed, torch.full_like(summed, inputs.count)))
            summed, count = self.accelerator.reduce(totals, "sum").tolist()
            found[f"eval_{name}"] = summed / max(count, 1e-9)
        self.model_wrapped.train()
        if self.is_split:
            reshard(self.wrapped)
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _own_batches(self, samples: int) -> Iterator[range]:
        """The numbers of the validation samples in each batch of this process; each has equally many batches."""
        size, group = self.args.eval_batch_size, 0 if self.processes is None else self.processes.group
        for first in range(0, samples, size * self.groups):
            yield range(min(first + group * size, samples), min(first + (group + 1) * size, samples))

    # ---- checkpoints ------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its place, then rename it: a killed process leaves no half of one."""
        name = f"{CHECKPOINT}{self.state.global_step}"
        folder = self.folder
        partial = folder / PARTIAL
        progress = self.progress.record(self._mean(self.progress.unlogged))
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (partial / name / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
                seal(partial / name)
                sync(partial / name)
                shutil.rmtree(folder / name, ignore_errors=True)
                (partial / name).rename(folder / name)
                partial.rmdir()
        except Exception as error:
            reason = disk_error(error)
            if reason is None:
                raise
            shutil.rmtree(partial, ignore_errors=True)
            what = f"checkpoint {str(folder / name)!r} cannot be written"
            raise DiskError(what, reason, "make room, then go on with resume") from error
        if self.args.should_save:
            for old in whole_checkpoints(folder)[: -self.keep]:
                shutil.rmtree(old)

    def save_last_step(self) -> None:
        """Write a checkpoint of the last whole step, after an exception in the middle of the next one."""
        alone = self.accelerator.num_processes == 1  # several would wait for each other
        if alone and self.progress.whole and self.state.global_step > self.progress.saved_step:
            self.progress.back_to_step()
            self._save_checkpoint(self.wrapped, None)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / PARTIAL)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights that are trained, whole on every kind of sharding, and what `describe` writes."""
        folder = Path(output_dir) if output_dir else self.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(self._trained_weights(), folder)
        if self.args.should_save:
            self.describe(folder)

    def _trained_weights(self) -> dict[str, Tensor]:
        named = self.wrapped.model.named_parameters()
        return {name: weight for name, weight in named if weight.requires_grad}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        read_weights(self._trained_weights(), folder)
        kept = folder / PROGRESS
        record = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        self.progress.restore(record, step=_step(folder))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None, "made when the training began"
        write_optimizer(self.wrapped, self.optimizer, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not (Path(checkpoint) / OPTIMIZER).is_dir():  # of an earlier version
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None, "made when the training began"
        read_optimizer(self.wrapped, self.optimizer, Path(checkpoint))
        step = _step(Path(checkpoint))
        schedule: Any = self.lr_scheduler
        schedule.load_state_dict(schedule.state_dict() | {"last_epoch": step, "_step_count": step + 1})
        for group, base, factor in zip(
            self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(step)

    def _save_rng_state(self, output_dir: str) -> None:
        """Write nothing: all draws follow from the seed and the numbers of samples and steps."""


def whole_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a training, oldest first."""
    found = [path for path in folder.glob(f"{CHECKPOINT}*") if path.name.removeprefix(CHECKPOINT).isdecimal()]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(CHECKPOINT))


def check_checkpoint(folder: Path) -> None:
    """Compare a checkpoint with its checksums, where it has some.

    Raises:
        UserError: it is damaged.
    """
    reason = damage(folder) if (folder / SEAL).exists() else None
    if reason is None and (folder / SEAL).exists() and (strays := added(folder)):
        raise UserError(
            f"checkpoint {str(folder)!r} has files that are not of its training, such as {strays[0]}: delete them."
        )
    if reason is not None:
        others = len(whole_checkpoints(folder.parent)) > 1
        remedy = "go on from the one before" if others else "begin anew, without resume"
        raise UserError(f"checkpoint {str(folder)!r} is damaged ({reason}): delete it to {remedy}.")


def sync(folder: Path) -> None:
    """Flush a folder's files, and those below, to the disk, so that no name is there before its content."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
