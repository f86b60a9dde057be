"""From samples to rows of a table, as record batches of Arrow.

Each row has its number as `sample`, which stays with it when rows are shuffled, selected or skipped. Training numbers
its samples anew, since a row comes again in each epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from anyorder.data.encoding import Sample

Ids = npt.NDArray[np.int32]


def packed_schema(length: int) -> pa.Schema:
    """Return rows of exactly `length` tokens, and which document of its row each token belongs to, from 0."""
    return pa.schema(
        {"sample": pa.int64(), "input_ids": pa.list_(pa.int32(), length), "document": pa.list_(pa.int32(), length)}
    )


def packed(chunks: Iterable[Sequence[Sample]], length: int) -> Iterator[pa.RecordBatch]:
    """Yield samples laid end to end and cut into rows; the tokens that do not fill a last row are left out.

    A sample that goes over the end of a row goes on in the next one as a document of its own.
    """
    schema = packed_schema(length)
    ids: Ids = np.zeros(0, np.int32)
    document: Ids = np.zeros(0, np.int32)
    first = 0
    for samples in chunks:
        if not samples:
            continue
        begin = document[-1] + 1 if len(document) else 0
        ids = np.concatenate([ids, *(sample.ids for sample in samples)])
        numbers = np.arange(begin, begin + len(samples), dtype=np.int32)
        document = np.concatenate([document, numbers.repeat([len(sample.ids) for sample in samples])])
        rows = len(ids) // length
        if rows:
            ids_NL = ids[: rows * length].reshape(rows, length)
            document_NL = document[: rows * length].reshape(rows, length)
            document_NL = document_NL - document_NL[:, :1]
            yield pa.record_batch([_numbers(first, rows), _fixed(ids_NL), _fixed(document_NL)], schema=schema)
        first += rows
        ids, document = ids[rows * length :], document[rows * length :]
        document = document - document[:1]  # small again, however many documents there are


def unpacked_schema() -> pa.Schema:
    """Return rows of one document, or of a piece of one."""
    return pa.schema({"sample": pa.int64(), "input_ids": pa.list_(pa.int32())})


def unpacked(chunks: Iterable[Sequence[Sample]], length: int) -> Iterator[pa.RecordBatch]:
    """Yield a row per sample; those that are longer than `length` are cut into several."""
    schema = unpacked_schema()
    first = 0
    for samples in chunks:
        pieces = [sample.ids[at : at + length] for sample in samples for at in range(0, len(sample.ids), length)]
        if pieces:
            yield pa.record_batch([_numbers(first, len(pieces)), _ragged(pieces)], schema=schema)
        first += len(pieces)


def answered_schema() -> pa.Schema:
    """Return the columns of a prompt and its answers: `prompt_length`, where the first begins, and `turns`.

    The row ends where the last answer ends.
    """
    return pa.schema(
        {
            "sample": pa.int64(),
            "input_ids": pa.list_(pa.int32()),
            "prompt_length": pa.int32(),
            "turns": pa.list_(pa.list_(pa.int32(), 2)),
        }
    )


def answered(chunks: Iterable[Sequence[Sample]]) -> Iterator[pa.RecordBatch]:
    """Yield a row per sample."""
    schema = answered_schema()
    first = 0
    for samples in chunks:
        if samples:
            spans = [np.asarray(sample.answer_spans, np.int32) for sample in samples]
            answer_spans = pa.ListArray.from_arrays(_offsets(spans), _fixed(np.concatenate(spans)))
            begins = pa.array([sample.answer_spans[0][0] for sample in samples], pa.int32())
            ids = _ragged([sample.ids for sample in samples])
            yield pa.record_batch([_numbers(first, len(samples)), ids, begins, answer_spans], schema=schema)
        first += len(samples)


def _numbers(first: int, count: int) -> pa.Array:
    return pa.array(np.arange(first, first + count, dtype=np.int64))


def _fixed(values_NL: Ids) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_NL.reshape(-1)), values_NL.shape[1])


def _ragged(pieces: Sequence[Ids]) -> pa.Array:
    return pa.ListArray.from_arrays(_offsets(pieces), pa.array(np.concatenate(pieces)))


def _offsets(pieces: Sequence[Ids]) -> pa.Array:
    return pa.array(np.cumsum([0, *map(len, pieces)], dtype=np.int32))
