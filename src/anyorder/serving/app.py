"""The routes of the HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException

from anyorder.api.images import encoded
from anyorder.checkpoints.tokenizer.encoding import plain_tokens, prompt_tokens
from anyorder.decoding.fusion.attention_share import segment_shares
from anyorder.errors import UserError
from anyorder.parallel import is_split
from anyorder.serving.answers import Answer, Stream
from anyorder.serving.dialogue import plain_messages
from anyorder.serving.engine import Engine
from anyorder.serving.fields import (
    ApplyTemplate,
    Chat,
    Completion,
    Detokenize,
    FieldError,
    Fuse,
    Infill,
    Score,
    Tokenize,
    Writing,
    read_body,
)
from anyorder.serving.pieces import Pieces
from anyorder.serving.plans import Plan, Planner
from anyorder.serving.samples import samples_of
from anyorder.serving.scoring import check_scored, echo_scores, score_text
from anyorder.serving.tasks import BusyError, CancelledError, ClosingError, LateError, Task
from anyorder.utils.annotations import shown

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from anyorder.api.output import Output
    from anyorder.model.llama import Llama

logger = logging.getLogger(__name__)

Record = TypeVar("Record")

PAGE = Path(__file__).parent / "page" / "index.html"
"""One file, which uses the routes here as any other client does."""

PAGE_MAY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
)
"""The page's own script and style, and requests to this server: nothing from elsewhere."""

LARGEST_BODY = 16 << 20
"""Bytes of a body at most."""

BETWEEN_CHUNKS = 1 / 30
"""Seconds between two chunks of a stream at least: what is written meanwhile comes together."""

QUIET = 15.0
"""Seconds without a chunk after which a stream sends a comment, so that nobody between takes it for dead."""


class RequestError(Exception):
    """A request that is answered by an error.

    Attributes:
        status: of HTTP.
        body: in OpenAI's form.
        headers: of the answer.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = dict(headers or {})


def as_request_error(error: BaseException) -> RequestError:
    """The answer to an error, whatever it is."""
    match error:
        case RequestError():
            return error
        case FieldError():
            return RequestError(400, str(error), param=error.field or None)
        case UserError():
            return RequestError(400, str(error))
        case BusyError():
            return RequestError(429, str(error), code="queue_full", headers={"retry-after": str(error.retry_after)})
        case ClosingError() | CancelledError():
            return RequestError(503, str(error), headers={"retry-after": "5"})
        case LateError():
            return RequestError(504, str(error), code="timeout", headers={"x-should-retry": "false"})
    logger.error("a request failed", exc_info=error)
    return RequestError(500, f"the server failed at this request ({type(error).__name__}): see its log.")


@dataclass(kw_only=True)
class Server:
    """A network that is served.

    Args:
        model, tokenizer: the network and its tokenizer, if it has one.
        name: of the network, as requests call it.
        engine: writes.
        api_key: that requests must carry; None for none.
        most_tokens: that a request may have written to each text; None for what the network was trained on.
    """

    model: Llama
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    engine: Engine = field(default_factory=Engine)
    api_key: str | None = None
    most_tokens: int | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.planner = Planner(self.model, self.tokenizer, self.most_tokens, self._encode_image)
        self.pieces = None if self.tokenizer is None else Pieces(self.tokenizer)
        self.metrics = Metrics(self.engine)

    def _encode_image(self, model: Llama, tile_TCSS: Tensor) -> Tensor:
        return self.engine.call(functools.partial(encoded, model, tile_TCSS)).result()

    # ---- reading requests ------------------------------------------------------------------------------

    def check_key(self, request: Request) -> None:
        """Refuse a request without the key.

        Raises:
            RequestError: see above.
        """
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self.api_key is None or hmac.compare_digest(given.encode(), self.api_key.encode()):
            return
        message = "the API key is wrong" if given else "the API key is missing: send it as `Authorization: Bearer KEY`"
        raise RequestError(401, f"{message}.", code="invalid_api_key")

    async def body(self, request: Request, record: type[Record]) -> Record:
        """Read and check the body of a request.

        Raises:
            RequestError: it is too large or no JSON, or names another network.
            FieldError: a field cannot be.
        """
        self.check_key(request)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > LARGEST_BODY:
                most = LARGEST_BODY >> 20
                raise RequestError(
                    413, f"the body has more than {most} MiB: send less.", headers={"connection": "close"}
                )
            parts.append(part)
        try:
            body = json.loads(b"".join(parts), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            reason = str(error).partition(":")[0] if not isinstance(error, RecursionError) else "nested too deeply"
            raise RequestError(400, f"the body is not JSON ({reason}): send a JSON object.") from None
        checked = read_body(record, body)
        model = getattr(checked, "model", None)
        if model not in (None, self.name):
            message = f"the model {shown(model)} is unknown: this server has {self.name!r}."
            raise RequestError(404, message, param="model", code="model_not_found")
        return checked

    # ---- writing answers -------------------------------------------------------------------------------

    async def written(self, request: Request, body: Writing, plan: Plan) -> Response:
        """Have a plan written, and answer with all of it or in chunks."""
        answer = Answer(body=body, plan=plan, tokenizer=self.tokenizer, pieces=self.pieces, name=self.name)
        if isinstance(body, Completion) and body.echo and body.logprobs is not None:
            count = body.logprobs
            for prompt in plan.prompts[:: body.n]:
                future = self.engine.call(functools.partial(echo_scores, self.model, prompt, count))
                answer.echoes = [*answer.echoes, await asyncio.wrap_future(future)]
        if body.max_tokens == 0:
            return JSONResponse(answer.echo_alone())
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        task = Task(
            size=len(plan.prompts), open=functools.partial(samples_of, plan, self.tokenizer),
            on_news=lambda: _tell(loop, news, task, always=body.stream),
        )  # fmt: skip
        self.engine.submit(task)
        try:
            await _first_news(request, news)
        except BaseException:
            self.engine.cancel(task)
            raise
        if task.error is not None:
            raise as_request_error(task.error)
        if not body.stream:
            outputs = await asyncio.to_thread(task.outputs) if len(plan.prompts) > 1 else task.outputs()
            self.metrics.observe(task)
            return JSONResponse(answer.whole(task.samples, outputs) | await self._shares(plan, outputs))
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        chunks = self._chunks(answer, task, news)
        return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)

    async def _shares(self, plan: Plan, outputs: Sequence[Output]) -> dict[str, Any]:
        """Return what part of the attention each phrasing of a fused answer got, where attention fused them.

        Nothing of a network that is split, as a process has some of the heads.
        """
        if not plan.fused or plan.fusion.method != "attention" or not plan.modes[0][0].kind.causal:
            return {}
        if is_split(self.model):
            return {}
        find = functools.partial(segment_shares, self.model, plan.fused[:1], plan.fusion, [outputs[0].token_ids])
        [shares] = await asyncio.wrap_future(self.engine.call(find))
        return {"shares": shares}

    async def _chunks(self, answer: Answer, task: Task, news: asyncio.Event) -> AsyncIterator[str]:
        """Yield the events of a stream. Where it is left early, the task is cancelled."""
        try:
            for chunk in answer.first_chunks():
                yield _event(chunk)
            stream = Stream(answer, task.samples)
            while True:
                news.clear()
                done = task.done.is_set()
                if task.error is not None:
                    yield _event(as_request_error(task.error).body)
                    return
                for chunk in stream.chunks(task.outputs() if done else ()):
                    yield _event(chunk)
                if done:
                    break
                await asyncio.sleep(BETWEEN_CHUNKS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(QUIET):
                        await news.wait()
                if not news.is_set():
                    yield ": writing\n\n"
            if answer.body.streaming.include_usage:
                yield _event(answer.last_chunk(task.samples))
            yield "data: [DONE]\n\n"
            self.metrics.observe(task)
        finally:
            if not task.done.is_set():
                self.engine.cancel(task)

    def describe(self) -> dict[str, Any]:
        """Return the network in OpenAI's form, with what it can do."""
        config = self.model.config
        masks = {mode.name: mode.mask_token_id for mode in config.modes if mode.mask_token_id is not None}
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "anyorder",
            "modes": [mode.name for mode in config.modes], "default_mode": config.default_mode,
            "max_tokens": config.context_length, "mask_token_ids": masks,
        }  # fmt: skip


async def _first_news(request: Request, news: asyncio.Event) -> None:
    """Wait for news of a task.

    Raises:
        CancelledError: the other side has hung up.
    """
    waiting, gone = asyncio.ensure_future(news.wait()), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise CancelledError("the connection was closed.")
    finally:
        for future in (waiting, gone):
            future.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await future


async def _gone(request: Request) -> None:
    """Wait until the other side hangs up; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _tell(loop: asyncio.AbstractEventLoop, news: asyncio.Event, task: Task, *, always: bool) -> None:
    """Set the event of a task from the engine's thread: each time, or at its end."""
    if always or task.done.is_set():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(news.set)


def _event(data: Any) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


# ---- metrics -------------------------------------------------------------------------------------------


class Metrics(Collector):
    """What Prometheus reads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.requests = Counter(
            "anyorder_http_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram("anyorder_request_seconds", "From arrival to end.", registry=self.registry)
        self.queued = Histogram("anyorder_queue_seconds", "From arrival to beginning.", registry=self.registry)

    def observe(self, task: Task) -> None:
        """Count a task that has ended."""
        self.seconds.observe(task.ended - task.arrived)
        self.queued.observe(task.began - task.arrived)

    def collect(self) -> Iterable[Metric]:
        """Yield what the engine counts."""
        counts = self.engine.counts
        yield GaugeMetricFamily("anyorder_texts_running", "Texts that are being written.", self.engine.running)
        yield GaugeMetricFamily("anyorder_requests_waiting", "Requests in the queue.", self.engine.waiting)
        for name, about, value in (
            ("passes", "Forward passes.", counts.passes),
            ("generated_tokens", "Tokens written.", counts.tokens),
            ("prompt_tokens", "Tokens of prompts.", counts.prompt_tokens),
            ("requests_finished", "Requests that were written to their end.", counts.finished),
            ("requests_cancelled", "Requests that were cancelled.", counts.cancelled),
            ("requests_failed", "Requests that ended in an error.", counts.failed),
        ):
            yield CounterMetricFamily(f"anyorder_{name}", about, value)


# ---- routes --------------------------------------------------------------------------------------------


def build_app(server: Server) -> FastAPI:
    """Make the application that serves a network; at its shutdown it ends what runs."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.engine.close)

    app = FastAPI(title="anyorder", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = RequestError(error.status_code, f"{request.method} {request.url.path}: {error.detail}.")
        refused = as_request_error(error)
        return JSONResponse(refused.body, refused.status, headers=refused.headers)

    for kind in (
        RequestError, UserError, BusyError, ClosingError, LateError, CancelledError, HTTPException, Exception,
    ):  # fmt: skip
        app.add_exception_handler(kind, refuse)

    def route(method: str, path: str, handler: Callable[..., Any]) -> None:
        async def counted(request: Request) -> Response:
            status = 500
            try:
                response: Response = await handler(request)
                status = response.status_code
            except Exception as error:
                refused = as_request_error(error)
                status = refused.status
                response = JSONResponse(refused.body, status, headers=refused.headers)
            finally:
                server.metrics.requests.labels(path, str(status)).inc()
            response.headers["x-request-id"] = request.headers.get("x-request-id") or uuid.uuid4().hex
            return response

        app.add_api_route(path, counted, methods=[method])

    def writes(path: str, record: type[Writing], plan: Callable[[Any], Plan]) -> None:
        async def handler(request: Request) -> Response:
            body = await server.body(request, record)
            return await server.written(request, body, await asyncio.to_thread(plan, body))

        route("POST", path, handler)

    planner = server.planner
    for path in ("/v1/chat/completions", "/chat/completions"):
        writes(path, Chat, planner.of_chat)
    for path in ("/v1/completions", "/completions"):
        writes(path, Completion, planner.of_completion)
    writes("/infill", Infill, planner.of_infill)
    writes("/v1/fuse", Fuse, planner.of_fuse)

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"content-security-policy": PAGE_MAY})

    async def models(request: Request) -> Response:
        server.check_key(request)
        return JSONResponse({"object": "list", "data": [server.describe()]})

    async def model(request: Request) -> Response:
        server.check_key(request)
        if request.path_params["name"] != server.name:
            message = f"the model {shown(request.path_params['name'])} is unknown: this server has {server.name!r}."
            raise RequestError(404, message, param="model", code="model_not_found")
        return JSONResponse(server.describe())

    async def score(request: Request) -> Response:
        body = await server.body(request, Score)
        return JSONResponse(await _scores(server, body))

    async def tokenize(request: Request) -> Response:
        body = await server.body(request, Tokenize)
        encode = prompt_tokens if body.add_special else plain_tokens
        ids = await asyncio.to_thread(planner.encoder.call, lambda tokenizer: encode(tokenizer, body.content))
        if not body.with_pieces:
            return JSONResponse({"tokens": ids})
        assert server.pieces is not None, "text was encoded"
        spell = server.pieces.text
        return JSONResponse({"tokens": [{"id": token_id, "piece": spell(token_id)} for token_id in ids]})

    async def detokenize(request: Request) -> Response:
        body = await server.body(request, Detokenize)
        size = server.model.config.vocab_size
        for token_id in body.tokens:
            if not 0 <= token_id < size:
                raise FieldError("tokens", f"tokens has {token_id}: give ids from 0 to {size - 1}.")
        return JSONResponse({"content": planner.encoder.call(lambda tokenizer: tokenizer.decode(list(body.tokens)))})

    async def apply_template(request: Request) -> Response:
        body = await server.body(request, ApplyTemplate)
        messages, _ = plain_messages(body.messages)
        return JSONResponse({"prompt": await asyncio.to_thread(planner.encoder.text, messages)})

    async def health(request: Request) -> Response:
        if server.engine.error is not None:
            return JSONResponse({"status": "error", "message": "the engine has ended: see the log."}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        server.check_key(request)
        return PlainTextResponse(generate_latest(server.metrics.registry).decode())

    for method, path, handler in (
        ("GET", "/", page), ("GET", "/v1/models", models), ("GET", "/v1/models/{name:path}", model),
        ("POST", "/v1/score", score),
        ("POST", "/tokenize", tokenize), ("POST", "/detokenize", detokenize),
        ("POST", "/apply-template", apply_template), ("GET", "/health", health), ("GET", "/metrics", metrics),
    ):  # fmt: skip
        route(method, path, handler)
    return app


async def _scores(server: Server, body: Score) -> dict[str, Any]:
    texts, begun = await asyncio.to_thread(server.planner.of_score, body)
    data = []
    for index, (ids, given) in enumerate(zip(texts, begun, strict=True)):
        check_scored(server.model, ids, given)
        scored = functools.partial(
            score_text, server.model, ids, given, body.order, samples=body.samples, seed=body.seed,
            on_pass=server.engine.breathe,
        )  # fmt: skip
        found = await asyncio.wrap_future(server.engine.call(scored))
        data.append(
            {
                "index": index, "object": "score", "log_prob": found.log_prob, "standard_error": found.standard_error,
                "exact": found.exact, "tokens": found.tokens,
                **({"token_ids": ids, "token_logprobs": found.of_tokens} if body.logprobs else {}),
            }
        )  # fmt: skip
    return {"object": "list", "model": server.name, "data": data, "seed": body.seed}
