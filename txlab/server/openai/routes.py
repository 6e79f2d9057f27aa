"""OpenAI's routes. Every model that is served here, live adapters included, is continued through them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import BaseModel

from txlab.engine.requests import SampleResult
from txlab.engine.validation import validate
from txlab.server.errors import ApiError
from txlab.server.openai.catalog import Catalog
from txlab.server.openai.conversation import chat_prompt
from txlab.server.openai.errors import ERRORS, PREFIXES
from txlab.server.openai.events import EventStream
from txlab.server.openai.formats import Chat, Completions, Format
from txlab.server.openai.generation import Generation
from txlab.server.openai.pieces import all_pieces
from txlab.server.openai.plan import Plan, Telling, make_plan
from txlab.server.openai.prompts import completion_prompts
from txlab.server.openai.replies import ChatCompletion, Completion, ModelCard, ModelList
from txlab.server.openai.wire import ChatRequest, CompletionRequest, Drawing
from txlab.server.state import Server, ServerState

DEFAULT_MAX_TOKENS = 16  # of a completion, as OpenAI has it; a chat may fill the context

router = APIRouter(tags=["openai"], responses=ERRORS)


async def _catalog(request: Request) -> Catalog:
    return request.app.state.openai


Models = Annotated[Catalog, Depends(_catalog)]


def include_openai(app: FastAPI, server: ServerState) -> None:
    """Serve OpenAI's API under each of its prefixes; the first one is the documented one."""
    app.state.openai = Catalog(server)
    for prefix in PREFIXES:
        app.include_router(router, prefix=prefix, include_in_schema=prefix == PREFIXES[0])


def _streamed(example: str) -> dict[int | str, dict[str, Any]]:
    """Describe that a response may be a stream, too."""
    return {200: {"content": {"text/event-stream": {"schema": {"type": "string"}, "example": example}}}}


@router.get("/models", summary="List the models that are alive")
async def list_models(models: Models) -> ModelList:
    """The base model and every live adapter. Checkpoints are served by their `tinker://` path without being listed."""
    return ModelList(data=models.cards())


@router.get("/models/{model:path}", summary="Describe a model")
async def retrieve_model(model: str, models: Models) -> ModelCard:
    """By any name that completions take."""
    return await models.card(model)


@router.post(
    "/completions",
    summary="Continue a text",
    response_model=Completion,
    responses=_streamed('data: {"choices": [{"index": 0, "text": " Paris", …}], …}\n\ndata: [DONE]\n\n'),
)
async def completions(body: CompletionRequest, request: Request, server: Server, models: Models) -> Response:
    """Draws `n` texts for each prompt. With `stream` they come in pieces, mixed, each with its `index`.

    Where `echo` is set, or likeliest tokens are asked for, a stream gives each text as one piece.
    """
    if body.best_of not in (None, body.n or 1):
        raise ApiError(400, "best_of is not supported by this server: leave it out, or give n", "best_of")
    base = server.engine.base
    special = body.add_special_tokens is not False
    prompts = await server.in_worker(completion_prompts, body.prompt, base.tokenizer, special)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    telling = Telling(
        logprobs=body.logprobs is not None,
        top=body.logprobs or 0,
        echo=bool(body.echo),
        echo_only=bool(body.echo) and max_tokens == 0,
    )
    form = Completions(body.model, telling.logprobs, models.vocabulary)
    return await _answer(body, make_plan(body, prompts, telling, max_tokens, base), form, request, server, models)


@router.post(
    "/chat/completions",
    summary="Answer a conversation",
    response_model=ChatCompletion,
    responses=_streamed('data: {"choices": [{"index": 0, "delta": {"content": "Ellohay"}, …}], …}\n\ndata: [DONE]\n\n'),
)
async def chat_completions(body: ChatRequest, request: Request, server: Server, models: Models) -> Response:
    """Lays the conversation out by the base model's own chat template and draws `n` answers.

    With `stream` they come in pieces, mixed, each with its `index`; where likeliest tokens are asked for, each as one.
    """
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: set it to true", "top_logprobs")
    base = server.engine.base
    prompt = await server.in_worker(chat_prompt, body, base.tokenizer)
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    telling = Telling(logprobs=bool(body.logprobs), top=body.top_logprobs or 0)
    form = Chat(body.model, telling.logprobs, models.vocabulary)
    return await _answer(body, make_plan(body, [prompt], telling, max_tokens, base), form, request, server, models)


async def _answer(
    body: Drawing, plan: Plan, form: Format, request: Request, server: ServerState, models: Catalog
) -> Response:
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: set it to true", "stream_options")
    for sample in plan.samples:
        validate(sample, server.engine.limits)
    generation = Generation(models, await models.hold(body.model), plan, stream=bool(body.stream))
    if body.stream:
        counted = body.stream_options is not None and bool(body.stream_options.include_usage)
        return EventStream(_events(generation, form, counted), generation.close)
    try:
        results = await _unless_gone(request, generation)
    finally:
        generation.close()

    def render() -> str:
        pieces = all_pieces(plan, results, models.vocabulary)
        return form.reply(pieces, generation.usage).model_dump_json()

    return Response(await server.in_worker(render), media_type="application/json")


async def _unless_gone(request: Request, generation: Generation) -> list[SampleResult]:
    """Wait for the results, no longer than the client does."""
    results = asyncio.create_task(generation.results())
    gone = asyncio.ensure_future(request.receive())  # the body was read: all that can come is that the client has left
    try:
        await asyncio.wait({results, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not results.done():
            raise ApiError(400, "the client has left")
        return results.result()
    finally:
        results.cancel()
        gone.cancel()


async def _events(generation: Generation, form: Format, counted: bool) -> AsyncIterator[BaseModel]:
    for index in range(generation.plan.n * len(generation.plan.samples)):
        if (opening := form.opening(index)) is not None:
            yield opening
    async for piece in generation.pieces():
        if piece.text or piece.tokens or piece.finish_reason:
            yield form.event(piece)
    if counted:
        yield form.counted(generation.usage)
