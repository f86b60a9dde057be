"""Hub ids: what is one, what is fetched, and what a person reads when it cannot be had. Nothing leaves the machine."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

from anyorder.checkpoints import convert, fetch, load, load_model, load_tokenizer, save_model
from anyorder.checkpoints.hub import is_hub_id
from anyorder.data import train_tokenizer
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from tests.checkpoints.metas_form import write_metas_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def put_into_cache(cache: Path, folder: Path, name: str = "models--org--name", revision: str = "main") -> Path:
    """A snapshot as huggingface_hub lays it out: files under their hashes, links to them, and branches."""
    snapshot = cache / name / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for number, file in enumerate(folder.iterdir()):
        blob = cache / name / "blobs" / f"{number:040x}"
        blob.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    reference = cache / name / "refs" / revision
    reference.parent.mkdir(parents=True)
    reference.write_text(COMMIT)
    return snapshot


@pytest.fixture
def saved(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["Once upon a time"], 300)
    model = Llama(tiny_config.replace(vocab_size=len(tokenizer)))
    save_model(model, tmp_path / "saved", tokenizer=tokenizer)
    return tmp_path / "saved"


# ------------------------------------------------------------------------------------------------ what is an id


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-1B", "org/name", "o/n_1.x--y", "Org0/.hidden"])
def test_ids(cache: Path, name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "path",
    ["./org/name", "/org/name", "~/name", "../name", "name", "a/b/c", "here/name", "org/name.bin", "org/params.json",
     "org/tokenizer.model", "org/", "", "org\\name", Path("org/name")],
)  # fmt: skip
def test_paths(cache: Path, monkeypatch: pytest.MonkeyPatch, path: str | Path) -> None:
    Path("here").mkdir()

    def asked(*_: object, **__: object) -> str:
        raise AssertionError("the hub is asked for a path")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    assert fetch(path) == Path(path).expanduser()
    with pytest.raises(UserError, match=r"(is no folder or file here|has no config.json)"):
        load_model(path)
    with pytest.raises(UserError, match=r"revision is 'v2', but '.*' is no model on the hub: leave it out"):
        fetch(path, revision="v2")


# ------------------------------------------------------------------------------------------------ from the cache


def test_a_cached_model_loads_offline(cache: Path, saved: Path, tmp_path: Path) -> None:
    snapshot = put_into_cache(cache, saved)
    assert fetch("org/name") == snapshot
    model, tokenizer = load("org/name", device="cpu")
    assert tokenizer is not None
    assert tokenizer.encode("Once") == load_tokenizer(saved).encode("Once") == load_tokenizer("org/name").encode("Once")
    assert torch.equal(model.lm_head.weight, load_model(saved, device="cpu").lm_head.weight)
    convert("org/name", tmp_path / "converted", kv_heads=1)
    assert load_model(tmp_path / "converted").config.head_layout == "MQA"


def test_revisions_of_a_cached_model(cache: Path, saved: Path) -> None:
    snapshot = put_into_cache(cache, saved, revision="v2")
    assert fetch("org/name", revision="v2") == fetch("org/name", revision=COMMIT) == snapshot
    with pytest.raises(UserError, match=r"^revision 'v3' of model 'org/name' is no folder here, is not in the hub's"):
        fetch("org/name", revision="v3")


def test_nothing_cached(cache: Path) -> None:
    message = (
        r"^model 'org/name' is no folder here, is not in the hub's cache, and the hub cannot be asked: check the path, "
        r"or unset HF_HUB_OFFLINE.$"
    )
    for do in (lambda: load("org/name"), lambda: load_tokenizer("org/name"), lambda: convert("org/name", "new")):
        with pytest.raises(UserError, match=message):
            do()
    assert not Path("new").exists()


def test_a_model_in_metas_form(cache: Path, tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = Llama(tiny_config)
    folder = write_metas_folder(model, tmp_path / "llama", 2)
    (folder / "config.json").write_text("{}")  # as some have it beside
    put_into_cache(cache, folder)
    assert torch.equal(load_model("org/name", device="cpu").lm_head.weight, model.lm_head.weight)


# ------------------------------------------------------------------------------------------------ what is asked for


class Hub:
    """Stands in for the hub: keeps what it is asked, and gives the files that match."""

    def __init__(self, files: list[str], folder: Path) -> None:
        self.files, self.folder = files, folder
        self.asked: list[dict[str, Any]] = []

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.asked.append({"repo_id": repo_id, **options})
        for name in self.files:
            wanted, not_wanted = options["allow_patterns"], options["ignore_patterns"]
            if any(fnmatch.fnmatch(name, pattern) for pattern in wanted) and not any(
                fnmatch.fnmatch(name, pattern) for pattern in not_wanted
            ):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).touch()
        return str(self.folder)

    @property
    def given(self) -> set[str]:
        return {str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hub]]:
    monkeypatch.chdir(tmp_path)

    def with_files(*files: str) -> Hub:
        made = Hub([*files, "README.md", "LICENSE"], tmp_path / "snapshot")
        made.folder.mkdir()
        monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
        return made

    return with_files  # type: ignore[return-value]


SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def test_only_what_is_needed_is_fetched(hub: Callable[..., Hub]) -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    copies = ("pytorch_model.bin", "original/consolidated.00.pth", "original/params.json", "consolidated.safetensors",
              "params.json", "onnx/model.safetensors")  # fmt: skip
    made = hub(*SMALL, *shards, *copies)
    assert fetch("org/name", revision="v2", token="secret") == made.folder
    assert made.given == {*SMALL, *shards}
    assert [(asked["repo_id"], asked["revision"], asked["token"]) for asked in made.asked] == [
        ("org/name", "v2", "secret")
    ]


def test_metas_form_where_there_is_no_other(hub: Callable[..., Hub]) -> None:
    metas = ("params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model")
    made = hub(*metas)
    fetch("org/name")
    assert made.given == set(metas)


def test_a_tokenizer_needs_no_weights(hub: Callable[..., Hub]) -> None:
    made = hub(*SMALL, "model.safetensors")
    fetch("org/name", weights=False)
    assert made.given == set(SMALL)


def test_pickled_weights_are_fetched_where_there_are_no_others(hub: Callable[..., Hub]) -> None:
    shards = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json")
    made = hub(*SMALL, *shards, "training_args.bin")
    fetch("org/name")
    assert made.given == {*SMALL, *shards}


def test_a_model_without_weights(hub: Callable[..., Hub]) -> None:
    hub(*SMALL)
    with pytest.raises(UserError, match=r"^model 'org/name' has no weights in safetensors or .*: give another"):
        fetch("org/name")


# ------------------------------------------------------------------------------------------------ what goes wrong


def of_the_hub(kind: Any, status: int = 404) -> Exception:
    """An exception as huggingface_hub raises it; its HTTP library depends on its version."""
    http = pytest.importorskip("httpx2" if hasattr(errors, "IncompleteSnapshotError") else "httpx")
    request = http.Request("GET", "https://hub/api/models/org/name")
    return kind("404 Client Error. (Request ID: 1)\n\nmore", response=http.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError, r"model 'org/name' is gated: accept its licence at https://\S+/org/name, then give"),
        (errors.RepositoryNotFoundError, r"model 'org/name' is neither a folder here nor on the hub: check the"),
        (errors.RevisionNotFoundError, r"revision 'v2' of model 'org/name' does not exist: give a branch, a tag or a"),
        (errors.HfHubHTTPError, r"model 'org/name' cannot be fetched from the hub \(404 Client Error. \(.*\)\): try"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses(cache: Path, monkeypatch: pytest.MonkeyPatch, error: Any, message: str) -> None:
    fails(monkeypatch, of_the_hub(error))
    with pytest.raises(UserError, match="^" + message) as caught:
        fetch("org/name", revision="v2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("none"), r"is not in the hub's cache, .*: check the path, or try again with a"),
        (OSError(28, "No space left on device"), r"cannot be fetched from the hub \(.*No space left on device\): try"),
        (TimeoutError(), r"cannot be fetched from the hub \(TimeoutError\): try again later"),
    ],
)
def test_what_fails_on_the_way(cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fails(monkeypatch, error)
    with pytest.raises(UserError, match=message):
        fetch("org/name")


def test_a_snapshot_that_is_cached_in_part(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(errors, "IncompleteSnapshotError"):
        pytest.skip("this huggingface_hub does not tell")
    fails(monkeypatch, errors.IncompleteSnapshotError("some files", "there"))
    with pytest.raises(UserError, match="is only in part in the hub's cache, and the hub cannot be asked"):
        fetch("org/name")


def fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
