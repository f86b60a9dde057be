"""Data to train on: tokenised once, kept on disk, and read from there without being loaded.

The rows lie in a file of Arrow, which is mapped into memory, in a folder whose name is a fingerprint of the contents of
the files and of everything that decides what becomes of them. So the same data are prepared once, and data that were
changed are prepared anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
from filelock import FileLock

from anyorder.data.config import DataConfig
from anyorder.data.encoding import Tally
from anyorder.data.files import find
from anyorder.data.preparation import Preparation
from anyorder.data.records import BadLines
from anyorder.errors import UserError
from anyorder.utils.annotations import checked
from anyorder.utils.files import damage, seal, whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS, REPORT = "rows.arrow", "report.json"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of the data.

    Attributes:
        forms: number of records of each form.
        rows: to train on.
        tokens: of all records, end tokens included, before they are cut or packed.
        truncated: records whose answers were cut, because they are longer than a row.
        bytes_per_token: UTF-8 bytes of the text that is trained on, per token of it, by which nats per token
            become bits per byte; None where the text is not known, since the data are token ids.
        left_out: one sentence for each line that was left out.
        passed_over: files of a folder that were not read, each with the reason.
        unread: fields with text that no form reads, each with the number of records that have it.
    """

    forms: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    bytes_per_token: float | None = None
    left_out: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: int, bad_lines: BadLines, tally: Tally) -> Report:
        """Return the report on rows that were made."""
        return cls(
            forms=dict(tally.forms),
            rows=rows,
            tokens=tally.tokens,
            truncated=tally.truncated,
            bytes_per_token=tally.target_bytes / tally.target_tokens if tally.target_tokens else None,
            left_out=bad_lines.found,
            passed_over=bad_lines.passed_over,
            unread=dict(bad_lines.unread),
        )


@checked()
def prepare(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    config: DataConfig,
    *,
    cache_dir: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """Return rows of tokens to train on, from a file or folder.

    Args:
        source: JSON, text or tables, see `read_records`.
        tokenizer: the network's; may be None where the data are token ids.
        config: what rows are made of the data.
        cache_dir: where prepared rows are kept; a folder in the cache of the library datasets unless given.
        progress: called with the number of records read so far.
        streaming: whether rows are made while they are read, for what does not fit on the disk twice. Nothing is
            kept, and a wrong line raises when it is reached.

    Returns:
        Columns `sample` (number of the row) and `input_ids` `[length]`, and `document` `[length]`, the number of the
        document within its row; without `document` and as long as they are if not packed. For SFT `sample`,
        `input_ids`, `prompt_length` and `turns`, begin and end of each answer, the first of which begins at
        `prompt_length`.

    Raises:
        UserError: there are no data, a line cannot be used (file, line and remedy), they do not fill one row, an
            option has a value that it cannot have, or the cache cannot be written.
    """
    preparation = Preparation.of(source, tokenizer, config)
    if streaming:
        find(source)  # before any step
        return datasets.IterableDataset.from_generator(
            _stream,
            features=datasets.Features.from_arrow_schema(preparation.schema()),
            gen_kwargs={"preparation": preparation},
        )
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "anyorder" if cache_dir is None else Path(cache_dir)
    folder = cache / preparation.fingerprint()
    with _locked(folder):  # of several processes, one prepares and the others wait
        if folder.exists() and damage(folder) is not None:
            shutil.rmtree(folder)  # made again; who has mapped its rows keeps them
        if not folder.exists():
            with whole_folder(folder) as partial:
                _write(preparation, partial, progress)
                seal(partial)
    return datasets.Dataset.from_file(str(folder / ROWS))


def report_of(dataset: datasets.Dataset) -> Report:
    """Return the report on the data of a dataset of `prepare`, or of one that was shuffled or selected from it.

    Raises:
        UserError: it was not made so.
    """
    files = [Path(file["filename"]) for file in dataset.cache_files]
    file = next((file.with_name(REPORT) for file in files if file.name == ROWS), None)
    if file is None or not file.is_file():
        raise UserError("this dataset has no report: make it with anyorder.data.prepare.")
    try:
        return Report(**json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{str(file)!r} is damaged: call anyorder.data.prepare again, which makes it anew.") from error


def _write(preparation: Preparation, folder: Path, progress: Callable[[int], None] | None) -> None:
    bad_lines, tally, count = BadLines(preparation.config.skip_bad_lines), Tally(), 0
    with pa.OSFile(str(folder / ROWS), "wb") as file, pa.ipc.new_stream(file, preparation.schema()) as writer:
        for batch in preparation.batches(preparation.samples(bad_lines, tally)):
            writer.write_batch(batch)
            count += batch.num_rows
            if progress is not None:
                progress(tally.forms.total())
    if not count:
        raise preparation.no_rows(bad_lines, tally)
    report = Report.of(count, bad_lines, tally)
    (folder / REPORT).write_text(json.dumps(vars(report)), encoding="utf-8")


def _stream(preparation: Preparation) -> Iterator[dict[str, Any]]:
    for batch in preparation.batches(preparation.samples(BadLines(preparation.config.skip_bad_lines), Tally())):
        yield from batch.to_pylist()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"cache_dir {str(folder.parent)!r} cannot be written ({error.strerror or error}): give another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
