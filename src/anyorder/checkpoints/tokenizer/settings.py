"""What a folder says of its tokenizer beside the vocabulary: special and added tokens, chat templates, lengths."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from anyorder.checkpoints.json_files import read_json
from anyorder.checkpoints.tokenizer.encoding import SURROGATE
from anyorder.errors import UserError
from anyorder.utils.annotations import shown
from anyorder.utils.numbers import is_whole

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
TEMPLATE = "chat_template.jinja"
TEMPLATES = "additional_chat_templates"

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

BY_OPTIONS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
"""Classes for which transformers 4 replaces what `tokenizer.json` adds to a text by `add_bos_token`, `add_eos_token`.

Of the others, and where an option is not named, the file decides. DeepSeek's networks, for instance, read a begin token
that their files do not add.
"""

KINDS: dict[str, tuple[type, ...]] = {
    "model_max_length": (int, float),
    "clean_up_tokenization_spaces": (bool,),
    "split_special_tokens": (bool,),
    "add_bos_token": (bool,),
    "add_eos_token": (bool,),
    "legacy": (bool,),
    "tokenizer_class": (str,),
}
"""Fields with a single value, by type."""

KEPT = ("model_max_length", "clean_up_tokenization_spaces", "split_special_tokens")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What files beside the vocabulary say.

    Attributes:
        options: keywords of transformers' `PreTrainedTokenizerFast`.
        added: tokens beside the vocabulary, by id.
        its_class: the class that is named, without "Fast"; "" if none is.
        add_bos, add_eos: whether a text gets a begin and an end token; None where nothing says so.
        legacy: whether SentencePiece's space precedes the text behind each added token, not the whole text alone.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    its_class: str = ""
    add_bos: bool | None = None
    add_eos: bool | None = None
    legacy: bool = True

    def completed(self, special: Mapping[str, str]) -> Settings:
        """Return the same with these special tokens by name, such as "bos_token", where none is named."""
        return replace(self, options={**special, **self.options})

    def with_normalized(self, normalized: bool) -> Settings:
        """Return the same with added tokens that are found in normalized text, or in the text as it is."""
        added = {
            token_id: AddedToken(
                token.content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
                normalized=normalized, special=token.special,
            )
            for token_id, token in self.added.items()
        }  # fmt: skip
        return replace(self, added=added)

    def with_class_defaults(self, vocabulary: Collection[str]) -> Settings:
        """Return the same with the special tokens of the class where none are named, if the vocabulary has them."""
        import transformers

        known = getattr(transformers, self.its_class, None) if self.its_class else None
        if not isinstance(known, type):
            return self
        defaults = {name: value.default for name, value in inspect.signature(known).parameters.items()}
        return self.completed({
            name: defaults[name]
            for name in NAMED
            if isinstance(defaults.get(name), str) and defaults[name] in vocabulary
        })  # fmt: skip


def read_settings(folder: Path) -> Settings:
    """Return the settings in a folder's files; nothing where there are none.

    Raises:
        UserError: a file is damaged, or a field is of another type than it must be.
    """
    config = _Fields(folder / CONFIG)
    added: dict[int, AddedToken] = {}
    named = config.special_tokens()
    if config.fields.get("added_tokens_decoder") is not None:
        added = config.added_tokens_decoder()
    else:  # files of older versions of transformers
        named |= _Fields(folder / SPECIAL_TOKENS_MAP).special_tokens()
        special = {str(token) for value in named.values() for token in (value if isinstance(value, list) else [value])}
        added = _Fields(folder / ADDED_TOKENS).added_tokens(special)
    options = {name: value for name in KEPT if (value := config.single(name)) is not None}
    for name in ("padding_side", "truncation_side"):
        if (side := config.fields.get(name)) is not None:
            options[name] = side if side in ("left", "right") else config.refuse(name, 'give "left" or "right"')
    if (names := config.fields.get("model_input_names")) is not None:
        options["model_input_names"] = config.strings("model_input_names", names)
    if template := _templates(folder) or config.chat_template():
        options["chat_template"] = template
    return Settings(
        options={**options, **named},
        added=added,
        its_class=str(config.single("tokenizer_class") or "").removesuffix("Fast"),
        add_bos=config.single("add_bos_token"),
        add_eos=config.single("add_eos_token"),
        legacy=config.single("legacy") is True if config.fields else True,
    )


def _templates(folder: Path) -> str | dict[str, str] | None:
    """Return chat templates in files of their own, which come before those in the configuration."""
    files = {"default": folder / TEMPLATE} if (folder / TEMPLATE).is_file() else {}
    files |= {file.stem: file for file in sorted((folder / TEMPLATES).glob("*.jinja"))}
    try:
        texts = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    except UnicodeDecodeError as error:
        raise UserError(f"a chat template in {str(folder)!r} is not UTF-8 ({error}): fetch it again.") from error
    return texts["default"] if list(texts) == ["default"] else texts or None


class _Fields:
    """The fields of a JSON file, checked; none where there is no file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.fields = read_json(file) if file.is_file() else {}

    def refuse(self, name: str, remedy: str) -> Any:
        raise UserError(f"field {name!r} of {str(self.file)!r} is {shown(self.fields[name])}: {remedy}.")

    def single(self, name: str) -> Any:
        """Return a field of the table; None where it is missing or null."""
        value, kinds = self.fields.get(name), KINDS[name]
        if value is None:
            return None
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.refuse(name, f"give {kinds[0].__name__}, or leave it out")
        return value

    def strings(self, name: str, value: object) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            self.refuse(name, "give a list of names")
        assert isinstance(value, list)
        return value

    def token(self, name: str, value: object) -> str | AddedToken:
        """Return a token as text, or as an object with its flags."""
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and SURROGATE.search(text):
            self.refuse(name, "give tokens of whole characters, no surrogate alone")
        if isinstance(value, str):
            return value
        if isinstance(value, dict) and isinstance(value.get("content"), str):
            flags = {
                flag: value[flag]
                for flag in ("lstrip", "rstrip", "single_word", "normalized", "special")
                if isinstance(value.get(flag), bool)
            }
            return AddedToken(value["content"], **flags)
        raise UserError(
            f"field {name!r} of {str(self.file)!r} is {shown(self.fields.get(name))}: give the text of a token, or an "
            "object with its content."
        )

    def special_tokens(self) -> dict[str, Any]:
        """Return special tokens by name, and a list of those without one.

        A null counts: there is no such token, also where the class has one by default.
        """
        tokens: dict[str, Any] = {}
        extra: list[str | AddedToken] = []
        for name, value in self.fields.items():
            if name in NAMED:
                # Llama's first conversions name empty texts.
                tokens[name] = None if value is None or value == "" else self.token(name, value)
            elif name in ("additional_special_tokens", "extra_special_tokens"):
                if isinstance(value, dict):
                    tokens |= {str(key): self.token(name, token) for key, token in value.items() if token}
                elif isinstance(value, list):
                    extra += [self.token(name, token) for token in value if token]
                elif value is not None:
                    self.refuse(name, "give a list of tokens")
            elif name.endswith("_token") and isinstance(value, str | dict) and value:
                tokens[name] = self.token(name, value)  # of a kind of model alone, such as image_token
        return tokens | ({"extra_special_tokens": extra} if extra else {})

    def chat_template(self) -> str | dict[str, str] | None:
        """Return one template, or several by name."""
        name = "chat_template"
        value = self.fields.get(name)
        if value is None or isinstance(value, str):
            return value or None
        if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
            value = {entry.get("name"): entry.get("template") for entry in value}
        if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
            self.refuse(name, "give a template, or a list of templates with their names")
        assert isinstance(value, dict)
        return value or None

    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Return added tokens by id, as transformers 4 and later write them."""
        name = "added_tokens_decoder"
        value = self.fields[name]
        if not isinstance(value, dict) or not all(key.isdecimal() and len(key) < 10 for key in value):
            self.refuse(name, "give an object of token ids and tokens")
        tokens = {int(key): self.token(name, token) for key, token in value.items()}
        return {key: token if isinstance(token, AddedToken) else AddedToken(token) for key, token in tokens.items()}

    def added_tokens(self, special: Collection[str]) -> dict[int, AddedToken]:
        """Return added tokens by id, as the file of older versions has them."""
        for name, token_id in self.fields.items():
            if not is_whole(token_id) or not 0 <= token_id < 2**31:
                self.refuse(name, "give the id of a token")
            self.token(name, name)
        return {
            token_id: AddedToken(name, special=name in special, normalized=name not in special)
            for name, token_id in self.fields.items()
        }
