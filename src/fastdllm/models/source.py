"""Where a checkpoint comes from: this package, a folder, or the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from fastdllm.errors import CheckpointError

EMBEDDED: dict[str, Path] = {"tiny": Path(__file__).parents[1] / "checkpoints" / "tiny"}

# Weights as safetensors, configuration and tokenizer. Code (*.py) and pickles (*.bin, *.pt) are never fetched.
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def resolve(source: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder that holds a checkpoint, downloaded first where it is a hub id.

    A name of :data:`EMBEDDED` means the model in this package, even beside a folder of that name
    (write ``./tiny`` for the folder). HF_HUB_OFFLINE and the hub's cache work as everywhere.

    Args:
        source: a name of EMBEDDED, a folder, or a hub id such as ``GSAI-ML/LLaDA-8B-Instruct``.
        revision: branch, tag or commit of a hub id.
        weights: whether the weights are wanted too; without, a hub id costs a few small files.

    Raises:
        CheckpointError: there is no such checkpoint, or the hub does not give it.
    """
    folder = EMBEDDED.get(source) or _expanded(source)
    if source in EMBEDDED or folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{source!r} is a local checkpoint; revision {revision!r} needs a hub id.")
        if not folder.is_dir():
            raise CheckpointError(f"{source!r} should lie in {folder}, which is missing; install the package again.")
        return folder
    if folder.exists():
        raise CheckpointError(f"{source!r} is a file; give the folder that holds config.json and the safetensors.")
    if not HUB_ID.fullmatch(source):
        known = ", ".join(EMBEDDED)
        raise CheckpointError(f"{source!r} is neither {known}, nor a folder, nor a hub id such as 'owner/name'.")
    return _download(source, revision, WANTED if weights else [kind for kind in WANTED if kind != "*.safetensors"])


def _expanded(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~name of nobody
        return Path(source)


def _download(source: str, revision: str | None, wanted: list[str]) -> Path:
    """Fetch from the hub, or from its cache; every failure becomes one sentence."""
    from huggingface_hub import snapshot_download  # slow to import, and a local checkpoint needs none of it

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises its own kinds and those of two HTTP libraries
        raise CheckpointError(_explain(error, source, revision)) from error


def _explain(error: Exception, source: str, revision: str | None) -> str:
    from huggingface_hub import errors
    from huggingface_hub.constants import HF_HUB_OFFLINE

    at = "" if revision is None else f" at revision {revision!r}"
    neither = f"{source!r}{at} is neither a folder nor"
    if isinstance(error, errors.GatedRepoError):  # before RepositoryNotFoundError, its base class
        return f"{source!r} is gated on the hub; ask for access on its page and log in with 'hf auth login'."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{source!r} is on the hub but has no revision {revision!r}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{neither} a model on the hub that this machine's login may read."
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the hub cannot be reached"
        return f"{neither} in the hub's local cache, and {why}."
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{neither} to be had from the hub ({first_line.rstrip('.')})."
