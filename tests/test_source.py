"""Where a checkpoint comes from: this package, a folder, the hub; and how each can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from fastdllm.errors import CheckpointError
from fastdllm.models import source as source_module
from fastdllm.models.checkpoint import resolve


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve("owner/name") == Path("owner/name")
    monkeypatch.setitem(source_module.EMBEDDED, "tiny", tmp_path)
    (tmp_path / "tiny").mkdir()
    assert resolve("tiny") == tmp_path
    assert resolve("./tiny") == Path("tiny")


def test_local_names_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        resolve(str(tmp_path / "file"))
    for name in (str(tmp_path / "none"), "./none", "a/b/c", "two words", ""):
        with pytest.raises(CheckpointError, match="is neither tiny, nor a folder, nor a hub id"):
            resolve(name) if name else resolve("~nobody/none")
    with pytest.raises(CheckpointError, match="is a local checkpoint; revision 'v1' needs a hub id"):
        resolve(str(tmp_path), "v1")
    with pytest.raises(CheckpointError, match="'tiny' is a local checkpoint"):
        resolve("tiny", "v1")
    monkeypatch.setitem(source_module.EMBEDDED, "tiny", tmp_path / "gone")
    with pytest.raises(CheckpointError, match="is missing; install the package again"):
        resolve("tiny")


def test_download_takes_no_code_and_no_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, object]]] = []

    def record(name: str, **options: object) -> str:
        calls.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    assert resolve("owner/name", "v1") == tmp_path
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    assert calls == [("owner/name", {"revision": "v1", "allow_patterns": patterns})]
    resolve("owner/name", weights=False)
    assert "*.safetensors" not in calls[1][1]["allow_patterns"]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (hub_errors.GatedRepoError, "'owner/name' is gated on the hub"),
        (
            hub_errors.RepositoryNotFoundError,
            "'owner/name' at revision 'v1' is neither a folder nor a model on the hub",
        ),
        (hub_errors.RevisionNotFoundError, "'owner/name' is on the hub but has no revision 'v1'"),
        (hub_errors.LocalEntryNotFoundError, "nor in the hub's local cache, and the hub cannot be reached"),
        (hub_errors.HfHubHTTPError, "nor to be had from the hub"),
        (hub_errors.HFValidationError, "nor to be had from the hub"),
        (ConnectionResetError, "nor to be had from the hub"),
    ],
)
def test_hub_refusals(kind: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise kind.__new__(kind)  # the hub's errors are built differently from version to version

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match=says):
        resolve("owner/name", "v1")


def test_offline(tmp_path: Path) -> None:
    code = "from fastdllm.models.source import resolve; resolve('owner/name')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last.endswith("'owner/name' is neither a folder nor in the hub's local cache, and HF_HUB_OFFLINE is set.")
