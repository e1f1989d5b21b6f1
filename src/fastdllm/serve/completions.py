"""``POST /v1/completions``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from fastdllm.errors import OptionError
from fastdllm.serve import asked
from fastdllm.serve.document import answers
from fastdllm.serve.errors import api_error
from fastdllm.serve.forms import CompletionForm
from fastdllm.serve.replies import CompletionReply
from fastdllm.serve.respond import log_text, respond
from fastdllm.serve.schema import CompletionRequest
from fastdllm.serve.service import Service


def completion_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", responses=answers(CompletionReply), response_class=Response, tags=["generation"])
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        """Continue texts, without the chat template."""
        prompts = prompts_of(body)
        asked.check(service, body, prompts=len(prompts))
        log_text(service, request, "prompts", prompts)
        ids = await asyncio.to_thread(_encode, service, prompts)
        form = CompletionForm(service.engine, body.logprobs is not None)
        return await respond(service, request, body, form, ids, where="prompt")

    return router


def prompts_of(body: CompletionRequest) -> list[str] | list[list[int]]:
    """The prompts of a request, which may be one or several, as texts or as token ids."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


def _encode(service: Service, prompts: list[str] | list[list[int]]) -> list[list[int]]:
    try:
        return service.engine.encode(prompts, chat=False)
    except OptionError as error:
        raise api_error(error, param="prompt") from None
