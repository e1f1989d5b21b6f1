"""Imports go one way, down the list of docs/design.md; nothing imports what stands below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastdllm

ROOT = Path(fastdllm.__file__).parent
# Modules of a tier may import the tiers above it and one another; surfaces never import one another.
TIERS = (
    ("errors", "events"),
    ("checks", "files", "processes", "machine", "heap"),
    ("canvas", "state"),
    ("kv", "sampling", "density", "native"),
    ("caches", "decoders", "models", "frequencies"),
    ("passes", "memory"),
    ("loop",),
    ("text", "config", "completion", "pieces", "presets", "catalogue"),
    ("engine",),
    ("loading",),
    ("record", "results"),
    ("arena",),
    ("evals", "studies", "replay", "tune", "serve", "bench"),
    ("load_test",),
    ("cluster",),
    ("cli",),
)
LEVEL = {name: level for level, tier in enumerate(TIERS) for name in tier}
SURFACES = ("cli",)
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem not in ("__init__", "__main__"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} has a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    names = {name.split(".")[1] for name in found if name.startswith("fastdllm.") and name.count(".") >= 1}
    return {name for name in names if name in LEVEL}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = room(path)
    assert own in LEVEL, f"{own} has no place in the order; give it one"
    for other in imported(path) - {own}:
        assert LEVEL[other] <= LEVEL[own], f"{own} imports {other}, which stands below it"
        assert not (own in SURFACES and other in SURFACES), f"surface {own} imports surface {other}"


def test_the_core_needs_no_surface_library() -> None:
    for path in FILES:
        if room(path) not in SURFACES:
            text = path.read_text()
            assert "import typer" not in text, path
            assert "import rich" not in text, path
