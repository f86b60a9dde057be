"""Hugging Face folders: `tokenizer.json` as it is, with the settings of the files beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, processors

from anyorder.checkpoints.json_files import read_json
from anyorder.checkpoints.tokenizer.encoding import plain_tokens
from anyorder.checkpoints.tokenizer.settings import BY_OPTIONS, Settings, read_settings
from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TOKENIZER = "tokenizer.json"

PROBE = "The 1 cat."
"""A text of which every vocabulary has something."""

STOCK = {"DreamTokenizer": "Qwen2Tokenizer"}
"""Tokenizers that are, without the code that their folder may bring, one of transformers'."""


def load_tokenizer_json(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of `tokenizer.json`, whatever class is named beside it.

    Raises:
        UserError: a file is damaged.
    """
    with _readable(folder):
        backend = Tokenizer.from_file(str(folder / TOKENIZER))
    settings = read_settings(folder).with_class_defaults(backend.get_vocab())
    if settings.its_class not in BY_OPTIONS:
        settings = dataclasses.replace(settings, add_bos=None, add_eos=None)
    return with_settings(backend, settings, folder)


def load_built(folder: Path) -> PreTrainedTokenizerBase:
    """Return a tokenizer in another form, such as `vocab.json` with `merges.txt`, as transformers builds it.

    Raises:
        UserError: transformers cannot.
    """
    import transformers

    its_class = read_settings(folder).its_class
    loader: Any = getattr(transformers, STOCK.get(its_class, "AutoTokenizer"))
    # transformers does not know our networks, and would warn of them before it goes by the tokenizer's class.
    config = folder / "config.json"
    is_ours = config.is_file() and read_json(config).get("model_type") == "anyorder"
    options = {"config": transformers.PreTrainedConfig()} if is_ours and loader is transformers.AutoTokenizer else {}
    with _readable(folder):
        # Otherwise transformers waits for a person to allow code that came with the folder.
        built: PreTrainedTokenizerBase = loader.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    # Where the vocabulary's file is missing, some classes come without any.
    if not set(plain_tokens(built, PROBE)) - {built.unk_token_id}:
        raise UserError(
            f"folder {str(folder)!r} has the settings of a tokenizer and no vocabulary: fetch its tokenizer.json, "
            "tokenizer.model or vocab.json with merges.txt as well."
        )
    return built


def with_settings(backend: Tokenizer, settings: Settings, path: Path) -> PreTrainedTokenizerFast:
    """Return a tokenizer of transformers around a backend, which it changes.

    Args:
        backend: the vocabulary; gets the added tokens.
        settings: of the files beside it.
        path: for messages.

    Raises:
        UserError: an added token would have another id than it is said to have.
    """
    from transformers import PreTrainedTokenizerFast

    _add_tokens(backend, settings, path)
    if settings.add_bos is not None or settings.add_eos is not None:
        _set_ends(backend, settings)
    with _readable(path):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, **{"clean_up_tokenization_spaces": False, **settings.options}
        )
    # Texts are cut or padded where a call says so, never because the file does.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _add_tokens(backend: Tokenizer, settings: Settings, path: Path) -> None:
    """Add the tokens that the backend does not have as added ones, each at its id."""
    has = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token_id, token in sorted(settings.added.items()):
        if token.content in has:
            continue  # as the backend has it
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != token_id:
            raise UserError(
                f"the added token {token.content!r} of {str(path)!r} has id {token_id}, but the vocabulary leaves it "
                f"{backend.token_to_id(token.content)}: fetch the files of the tokenizer again, all of one version."
            )


def _set_ends(backend: Tokenizer, settings: Settings) -> None:
    """Let the backend add the begin and end token that the settings name, where it does not do so already."""
    tokens = (_content(settings.options.get(name)) for name in ("bos_token", "eos_token"))
    bos, eos = (token if token is not None and backend.token_to_id(token) is not None else None for token in tokens)
    plain, whole = backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids
    had = (whole[:1] != plain[:1], whole[-1:] != plain[-1:])
    wanted = tuple(
        before if option is None or token is None else option
        for before, option, token in zip(had, (settings.add_bos, settings.add_eos), (bos, eos), strict=True)
    )
    if wanted == had:
        return
    begin, end = (token if is_wanted else None for token, is_wanted in zip((bos, eos), wanted, strict=True))
    backend.post_processor = ends(backend, begin, end)


def ends(backend: Tokenizer, begin: str | None, end: str | None) -> processors.TemplateProcessing:
    """Return the post-processor that puts a begin token before each text and an end token behind it, where given."""

    def around(text: str, number: int) -> list[str]:
        return [f"{part}:{number}" for part in (begin, text, end) if part is not None]

    return processors.TemplateProcessing(
        single=around("$A", 0),
        pair=[*around("$A", 0), *around("$B", 1)],
        special_tokens=[(token, backend.token_to_id(token)) for token in {begin, end} if token is not None],
    )


def _content(token: str | AddedToken | None) -> str | None:
    return token.content if isinstance(token, AddedToken) else token


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what tokenizers and transformers raise for damaged files into one sentence."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, UserError):
        raise
    except BaseException as error:  # many kinds, down to bare `Exception` and the panics of Rust
        reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
        raise UserError(f"the tokenizer in {str(path)!r} cannot be read ({reason}): fetch it again.") from error
