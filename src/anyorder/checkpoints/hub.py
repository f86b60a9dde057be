"""Names of models become folders: an id of the Hugging Face hub, such as "org/name", and the network of the package."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from anyorder.checkpoints.places import is_file, is_folder, network_folder
from anyorder.errors import UserError
from anyorder.utils.annotations import shown

logger = logging.getLogger(__name__)

SHIPPED = {"stories": Path(__file__).with_name("shipped") / "stories"}
"""Networks that the package ships, by name."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

FILE_SUFFIXES = (".bin", ".gguf", ".json", ".model", ".pth", ".safetensors")
"""What ends in one of these is a file here, not a model on the hub."""

BESIDE = ("*config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.json",
         "merges.txt")  # fmt: skip
"""The files beside the weights: configurations and tokenizer."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
META = ("params.json", "consolidated.*.pth")

NOT_FETCHED = ("*/*", "consolidated*.safetensors")
"""Folders within a model, and Mistral's second copy of the weights."""


def is_hub_id(path: str | Path) -> bool:
    """Return whether this names a model on the hub: a string "org/name" that can be no place here.

    A `Path` never does, nor does a string whose first part is a folder here.
    """
    if isinstance(path, Path) or HUB_ID.fullmatch(path) is None:
        return False
    place = Path(path)
    return not is_folder(place.parent) and place.suffix not in FILE_SUFFIXES


def is_shipped(path: str | Path) -> bool:
    """Return whether this names a network that the package ships: a string, and no file or folder here.

    A `Path` never does.
    """
    if isinstance(path, Path) or path not in SHIPPED:
        return False
    if not (is_folder(Path(path)) or is_file(Path(path))):
        return True
    logger.warning("%r is a folder or file here, which is read instead of the network that anyorder ships", path)
    return False


def fetch(path: str | Path, revision: str | None = None, token: str | None = None, *, weights: bool = True) -> Path:
    """Return the place of a checkpoint: a hub id is fetched into the local cache, "stories" is the package's network.

    Anything else is a path already.

    What is in the cache is not fetched again, and with HF_HUB_OFFLINE=1 only the cache is read.

    Args:
        path: a path, an id such as "org/name", or "stories", unless a file or folder here has this name.
        revision: a branch, a tag or a commit on the hub; its main branch unless given.
        token: for private and gated models; that of HF_TOKEN or of `hf auth login` unless given.
        weights: False fetches configurations and tokenizer only.

    Raises:
        UserError: the model or the revision does not exist, access is not granted, or it can be had neither from the
            hub nor from the cache.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"checkpoint is {shown(path)}: give a path, or the id of a model on the hub.")
    if not is_hub_id(path):
        if revision is not None:
            raise UserError(f"revision is {revision!r}, but {str(path)!r} is no model on the hub: leave it out.")
        if is_shipped(path):
            return SHIPPED[str(path)]
        try:
            return network_folder(Path(path).expanduser())
        except RuntimeError as error:
            raise UserError(f"checkpoint {str(path)!r} is in the home of nobody here: check the path.") from error
    repository = str(path)
    folder = _snapshot(repository, revision, token, (*BESIDE, *WEIGHTS) if weights else BESIDE)
    if weights and not any(folder.glob("*.safetensors")):
        folder = _snapshot(repository, revision, token, (*BESIDE, *META))
        if not any(folder.glob("consolidated.*.pth")):
            folder = _snapshot(repository, revision, token, (*BESIDE, *PICKLED))
            if not any(folder.glob(PICKLED[0])):
                raise UserError(
                    f"model {repository!r} has no weights in safetensors or {PICKLED[0]}: give another revision."
                )
    return folder


def _snapshot(repository: str, revision: str | None, token: str | None, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                token=token,
                allow_patterns=list(patterns),
                ignore_patterns=list(NOT_FETCHED),
                # Said aloud, because some versions then ask for a commit's files all the same.
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    except errors.GatedRepoError as error:  # a kind of `RepositoryNotFoundError`
        raise UserError(
            f"model {repository!r} is gated: accept its licence at {constants.ENDPOINT}/{repository}, then give a "
            "token, or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"model {repository!r} is neither a folder here nor on the hub: check the spelling, or give a token or set "
            "HF_TOKEN if it is private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"revision {revision!r} of model {repository!r} does not exist: give a branch, a tag or a commit of it."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        wanted = f"model {repository!r}" if revision is None else f"revision {revision!r} of model {repository!r}"
        cached = "only in part in the hub's cache" if hasattr(error, "snapshot_path") else "not in the hub's cache"
        online = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "try again with a connection"
        raise UserError(
            f"{wanted} is no folder here, is {cached}, and the hub cannot be asked: check the path, or {online}."
        ) from error
    except Exception as error:  # of the network by httpx or requests, and of the disk
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(f"model {repository!r} cannot be fetched from the hub ({reason}): try again later.") from error
