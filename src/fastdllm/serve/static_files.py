"""The playground's files, each at its own path: what is no file of it stays with the other routes."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"
TYPES = {
    ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png",
}  # fmt: skip
"""Not left to the system's own table, which may call a script plain text."""
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def files(folder: Path = FOLDER) -> dict[str, Path]:
    """Paths and the files that stand there; none where there is no page."""
    if not (folder / INDEX).is_file():
        return {}
    found = {f"/{path.name}": path for path in sorted(folder.iterdir()) if path.suffix in TYPES}
    return {"/": folder / INDEX, **found}


def static_routes(folder: Path = FOLDER) -> APIRouter:
    router = APIRouter()
    for place, path in files(folder).items():
        router.add_api_route(place, _sender(path), include_in_schema=False, methods=["GET", "HEAD"])
    return router


def _sender(path: Path):  # type: ignore[no-untyped-def]
    async def send() -> Response:
        return FileResponse(path, media_type=TYPES[path.suffix], headers=HEADERS)

    return send
