"""Which plain kernel, if any, does the same as a visibility: then no tensor of rows by keys is built.

Shape suffixes: B batch, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from anyorder.attention.mask import Request
from anyorder.visibility import And, Everything, Labels, Not, NotAfter, Ranges, Same, Visibility

FAR = 2**40
"""Beyond every label, and still without overflow after a shift."""


@dataclass(frozen=True)
class Hint:
    """A plain kernel, which needs no tensor of rows by keys.

    Attributes:
        kind: "everything"; "causal" (row i sees keys 0..i); "window" (causal, the latest `window`
            keys only); "documents" (packed neighbours that do not see each other).
        window: number of visible keys, for "window".
        causal: whether rows see only earlier ones within their document, for "documents".
        starts: start of each document in the batch laid end to end, int32 `[documents + 1]`, the
            last one being the number of all rows, for "documents".
    """

    kind: Literal["everything", "causal", "window", "documents"]
    window: int | None = None
    causal: bool = False
    starts: Tensor | None = None


def simplify(request: Request) -> Request:
    """Leave out of the visibility what is certain for the labels of valid rows and present keys."""
    query, key = _ranges(request.query, request.valid), _ranges(request.key, request.present)
    return replace(request, visibility=request.visibility.simplify(query, key))


def kernel_hint(request: Request) -> Hint | None:
    """The kernel that does the same for every valid row of a request that `simplify` returned; None: there is none."""
    query, key, present = request.query, request.key, request.present
    all_present = present is None or bool(present.all())
    if request.visibility == Everything():
        return Hint("everything") if all_present else None
    if query["position"].shape != key["position"].shape or not _absent_keys_trail(present, request.valid):
        return None
    match request.visibility:
        case NotAfter(label, 0, 1) if _rises(label, query, key, present, by_one=False):
            return Hint("causal")
        case And(NotAfter(label, 0, 1), Not(NotAfter(other, window, 1))) | And(
            Not(NotAfter(other, window, 1)), NotAfter(label, 0, 1)
        ) if label == other and window > 0:
            return Hint("window", window=window) if _rises(label, query, key, present, by_one=True) else None
        case And(inner, Same(label, 0, 1)) | And(Same(label, 0, 1), inner) if all_present:
            return _documents(inner, label, query, key)
        case Same(label, 0, 1) if all_present:
            return _documents(Everything(), label, query, key)
    return None


def _ranges(labels: Labels, counts: Tensor | None) -> Ranges:
    """Ranges over all rows of a sample that count, each end `[batch]`."""
    return lambda name: lowest_and_highest(labels[name], counts)


def lowest_and_highest(label: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Along the last dimension, of the entries that count; an impossible range where none does."""
    if counts is None:
        return label.amin(-1), label.amax(-1)
    return label.masked_fill(~counts, FAR).amin(-1), label.masked_fill(~counts, -FAR).amax(-1)


def _absent_keys_trail(present: Tensor | None, valid: Tensor | None) -> bool:
    """Whether absent keys come last, so that a causal kernel hides them from every valid row."""
    if present is None:
        return True
    if valid is None:
        return bool(present.all())
    return not bool((present[:, 1:] & ~present[:, :-1]).any() | (valid & ~present).any())


def _rises(label: str, query: Labels, key: Labels, present: Tensor | None, by_one: bool) -> bool:
    """Whether rows and keys carry the same labels, which rise (by one) from each to the next."""
    if not torch.equal(query[label], key[label]):
        return False
    step_BR = key[label].diff(dim=1)
    rises_BR = step_BR == 1 if by_one else step_BR > 0
    return bool((rises_BR if present is None else rises_BR | ~present[:, 1:]).all())


def _documents(inner: Visibility, label: str, query: Labels, key: Labels) -> Hint | None:
    """The hint for packed neighbours, if each document is in one piece and `inner` is plain in it."""
    document_BR = key[label]
    if not torch.equal(query[label], document_BR):
        return None
    begins_BR = torch.ones_like(document_BR, dtype=torch.bool)
    begins_BR[:, 1:] = document_BR.diff(dim=1) != 0
    if int(begins_BR.sum()) != sum(len(document_R.unique()) for document_R in document_BR):
        return None
    end = torch.tensor([begins_BR.numel()], device=begins_BR.device)
    starts = torch.cat((begins_BR.flatten().nonzero().flatten(), end))
    match inner:
        case Everything():
            return Hint("documents", starts=starts.to(torch.int32))
        case NotAfter(name, 0, 1) if torch.equal(query[name], key[name]):
            if bool(((key[name].diff(dim=1) > 0) | begins_BR[:, 1:]).all()):
                return Hint("documents", causal=True, starts=starts.to(torch.int32))
    return None
