"""The server that is tested: where it is, and what it says of itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fastdllm.errors import FastdllmError, OptionError

OWN = "fastdllm_"
"""What the names of this package's metrics begin with."""
INFO = "fastdllm_info"
LIMITS = ("slots", "rows_per_pass", "kv_bytes")
"""Gauges that are recorded."""
CATALOGUES = ("caches", "decoders")
"""What a model's entry lists that says nothing of this server."""
LOOK_SECONDS = 10.0


class ServerError(FastdllmError, RuntimeError):
    """The server is not there, or does not take the requests of the test."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An address and the key that opens it.

    Args:
        url: without ``/v1`` and what follows it.
    """

    url: str
    key: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str, key: str | None = None, *, allow_remote: bool = False) -> Target:
        """The target of an address as somebody types it.

        Raises:
            OptionError: it is none, or another machine's, which is refused unless ``allow_remote``.
        """
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if host is None or parts.scheme not in ("http", "https") or parts.query or "@" in parts.netloc:
            raise OptionError(f"{text!r} is no address of a server; give one such as http://127.0.0.1:8000.")
        if not (allow_remote or is_loopback(host)):
            raise OptionError(
                f"{host} is not this machine; a load test can be an attack, so other hosts need --allow-remote."
            )
        place = f"[{host}]" if ":" in host else host
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(url=f"{parts.scheme}://{place}{f':{port}' if port else ''}{path}", key=key)

    def client(self) -> httpx.AsyncClient:
        """A client without limits of its own: how many requests are on their way is the test's to say."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=None, trust_env=not is_loopback(httpx.URL(self.url).host),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page of metrics: this package's samples without labels, summed over replicas, and the labels of its info."""

    samples: Mapping[str, float]
    info: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Server:
    """What a server says of itself; None where it does not say."""

    url: str
    model: str
    owner: str | None
    details: Mapping[str, Any] | None
    """Family, dtype, device, lengths and defaults, of a server of this package."""
    limits: Mapping[str, float] | None
    environment: Mapping[str, str] | None
    weights: str | None = None
    """The fingerprint that its answers bear."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def chats(self) -> bool:
        """Whether it takes conversations, as far as it says."""
        return self.details is None or bool(self.details.get("chat", True))


async def look(client: httpx.AsyncClient, model: str | None) -> Server:
    """What the server says of a model, or of the only one it has.

    Raises:
        ServerError: it is not there, wants a key, or is no such server.
        OptionError: it has no such model, or several of which none was named.
    """
    entries = _entries(await _get(client, "/v1/models"), client.base_url)
    entry = _chosen(entries, model)
    details, page = entry.get("fastdllm"), await read_metrics(client)
    return Server(
        url=str(client.base_url).rstrip("/"),
        model=model or str(entry["id"]),
        owner=entry.get("owned_by"),
        details={k: v for k, v in details.items() if k not in CATALOGUES} if isinstance(details, dict) else None,
        limits={n: page.samples[OWN + n] for n in LIMITS if OWN + n in page.samples} if page else None,
        environment=page.info if page else None,
    )


async def _get(client: httpx.AsyncClient, path: str) -> httpx.Response:
    place = str(client.base_url).rstrip("/")
    try:
        response = await client.get(path, timeout=LOOK_SECONDS)
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise ServerError(f"there is no server at {place} ({why}); start one with fastdllm serve.") from None
    if response.status_code in (401, 403):
        has = "does not take this API key" if "Authorization" in client.headers else "wants an API key"
        raise ServerError(f"the server at {place} {has}; give one with --api-key-file or in FASTDLLM_API_KEYS.")
    return response


def _entries(response: httpx.Response, place: httpx.URL) -> list[dict[str, Any]]:
    """The models of ``GET /v1/models``."""
    try:
        entries = [entry for entry in response.json()["data"] if entry["id"]]
    except (ValueError, KeyError, TypeError):
        entries = []
    if not entries:
        said = f"GET /v1/models gives status {response.status_code} and no list of models"
        raise ServerError(f"what answers at {place} does not speak OpenAI's protocol: {said}.")
    return entries


def _chosen(entries: list[dict[str, Any]], model: str | None) -> dict[str, Any]:
    names = {str(name): entry for entry in entries for name in (entry["id"], *_aliases(entry))}
    if model is None and len(entries) > 1:
        raise OptionError(f"the server has {len(entries)} models; give --model, one of {', '.join(names)}.")
    if model is None:
        return entries[0]
    if model not in names:
        raise OptionError(f"--model {model!r} is not one of the server's: {', '.join(names)}.")
    return names[model]


def _aliases(entry: Mapping[str, Any]) -> list[str]:
    details = entry.get("fastdllm")
    return list(details.get("aliases", ())) if isinstance(details, dict) else []


async def read_metrics(client: httpx.AsyncClient) -> Page | None:
    """The server's metrics; None where it has none of this package's."""
    try:
        response = await client.get("/metrics", timeout=LOOK_SECONDS)
        families = list(text_string_to_metric_families(response.text)) if response.status_code == 200 else []
    except (httpx.HTTPError, ValueError):
        return None
    samples: dict[str, float] = {}
    info: dict[str, str] = {}
    for sample in (sample for family in families for sample in family.samples):
        if sample.name == INFO:
            info = dict(sample.labels)
        elif sample.name.startswith(OWN) and sample.labels.keys() <= {"replica"}:
            samples[sample.name] = samples.get(sample.name, 0.0) + sample.value
    return Page(samples=samples, info=info) if samples else None
