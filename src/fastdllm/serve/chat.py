"""``POST /v1/chat/completions``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from fastdllm.errors import OptionError
from fastdllm.serve import asked
from fastdllm.serve.document import answers
from fastdllm.serve.errors import api_error, invalid
from fastdllm.serve.forms import ChatForm
from fastdllm.serve.replies import ChatReply
from fastdllm.serve.respond import log_text, respond
from fastdllm.serve.schema import ChatRequest
from fastdllm.serve.service import Service


def chat_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=answers(ChatReply), response_class=Response, tags=["generation"])
    async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        asked.check(service, body, prompts=1)
        log_text(service, request, "messages", [(turn.role, turn.text) for turn in body.messages])
        prompt = await asyncio.to_thread(_encode, service, body)
        form = ChatForm(service.engine, bool(body.logprobs))
        return await respond(service, request, body, form, [prompt], where="messages")

    return router


def _encode(service: Service, body: ChatRequest) -> list[int]:
    text = service.engine.text
    if text is None or not text.has_chat_template:
        lacks = "tokenizer" if text is None else "chat template"
        raise invalid(f"{service.name} has no {lacks}, so it cannot chat; use /v1/completions.", "messages")
    turns = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in body.messages]
    try:
        return text.encode_chat(turns)
    except OptionError as error:
        raise api_error(error, param="messages") from None
