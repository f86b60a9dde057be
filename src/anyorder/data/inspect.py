"""What training would see of data, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.data.config import DataConfig
from anyorder.data.dataset import Report
from anyorder.data.encoding import Sample, Tally
from anyorder.data.preparation import Preparation
from anyorder.data.records import BadLines
from anyorder.utils.annotations import checked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What training would see.

    Attributes:
        report: what became of the data.
        lengths: `(tokens, records)`: how many records have at most so many tokens and more than the line before says,
            doubling from line to line.
        rows: the first rows, as `prepare` would give them.
    """

    report: Report
    lengths: list[tuple[int, int]]
    rows: list[dict[str, Any]]


@checked()
def inspect_data(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    config: DataConfig,
    *,
    examples: int = 3,
    progress: Callable[[int], None] | None = None,
) -> Inspection:
    """Read everything, as `prepare` does, and keep nothing on disk. Lines that cannot be used are listed.

    Args:
        source, tokenizer, config: as of `prepare`; bad lines are skipped in any case.
        examples: rows to return.
        progress: called with the number of records read so far.

    Raises:
        UserError: there are no data at all, or see `DataConfig.completed`.
    """
    preparation = Preparation.of(source, tokenizer, config.replace(skip_bad_lines=True))
    bad_lines, tally, count = BadLines(skip=True), Tally(), 0
    rows: list[dict[str, Any]] = []
    doublings: dict[int, int] = {}
    for batch in preparation.batches(_measured(preparation.samples(bad_lines, tally), doublings)):
        rows += batch.slice(0, max(0, examples - len(rows))).to_pylist()
        count += batch.num_rows
        if progress is not None:
            progress(tally.forms.total())
    powers = range(min(doublings), max(doublings) + 1) if doublings else ()
    lengths = [(2**power, doublings.get(power, 0)) for power in powers]
    return Inspection(report=Report.of(count, bad_lines, tally), lengths=lengths, rows=rows)


def _measured(chunks: Iterable[Sequence[Sample]], doublings: dict[int, int]) -> Iterator[Sequence[Sample]]:
    """Yield the same, while lengths are counted by powers of two."""
    for samples in chunks:
        for sample in samples:
            power = (len(sample.ids) + sample.cut - 1).bit_length()
            doublings[power] = doublings.get(power, 0) + 1
        yield samples
