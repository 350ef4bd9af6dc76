"""What passes between an MCP client and a server over HTTP, kept byte for byte.

`Recorder` is a transport for the HTTP client: it passes everything on unchanged and keeps the
bytes of each request and answer. `Exchange.line()` is what the tests compare with SQL; README.md
beside this file says what its fields mean.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2


def fingerprint(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def sse_messages(stream: bytes) -> list[bytes]:
    """The data of each complete server-sent event, without those that carry none."""
    messages: list[bytes] = []
    data: list[bytes] = []
    # What follows the last line end is not a line yet.
    for line in re.split(rb"\r\n|\n|\r", stream)[:-1]:
        if line == b"":
            if data and data != [b""]:
                messages.append(b"\n".join(data))
            data = []
        elif line == b"data" or line.startswith(b"data:"):
            value = line[5:]
            data.append(value[1:] if value.startswith(b" ") else value)
    return messages


def parsed(message: bytes) -> dict[str, Any]:
    try:
        value = json.loads(message)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def token(value: Any) -> str | None:
    """A JSON value as it stands in the message, e.g. an id: 7 or "7"."""
    return None if value is None else json.dumps(value, ensure_ascii=False)


def is_answer(message: dict[str, Any]) -> bool:
    return "result" in message or "error" in message


def relayed(message: bytes) -> dict[str, Any]:
    value = parsed(message)
    what = {"method": value.get("method"), "rpc_id": token(value.get("id"))}
    return what | fingerprint(message)


class Exchange:
    """One HTTP request and what came back."""

    def __init__(self, n: int, step: str, request: httpx2.Request, body: bytes) -> None:
        self.n, self.step, self.http = n, step, request.method
        self.headers = request.headers
        self.body = body
        self.status: int | None = None
        self.answer_headers = httpx2.Headers()
        self.raw = bytearray()
        self.ended = "open"
        self.started_ms = round(time.time() * 1000)
        self.ended_ms: int | None = None

    def end(self, how: str) -> None:
        if self.ended == "open":
            self.ended = how
            self.ended_ms = round(time.time() * 1000)

    def messages(self) -> list[bytes]:
        raw = bytes(self.raw)
        if self.answer_headers.get("content-type", "").startswith("text/event-stream"):
            return sse_messages(raw)
        return [raw] if parsed(raw) else []

    def split(self) -> tuple[bytes | None, list[bytes]]:
        """The message that answers this request, if one came, and all others."""
        messages = self.messages()
        asked = parsed(self.body)
        if self.http == "POST" and "method" in asked and "id" in asked:
            for at, message in enumerate(messages):
                value = parsed(message)
                # A refusal may come without the id, when the server could not read it.
                if is_answer(value) and value.get("id") in (asked["id"], None):
                    return message, messages[:at] + messages[at + 1 :]
        return None, messages

    def outcome(self, answer: dict[str, Any]) -> str:
        if "error" in answer:
            return "rpc_error"
        if "result" in answer:
            failed = isinstance(answer["result"], dict) and answer["result"].get("isError") is True
            return "tool_error" if failed else "ok"
        if self.status is None:
            return "aborted" if self.ended == "closed" else "unreachable"
        if self.status >= 400:
            return "http_error"
        if "id" in parsed(self.body) and "method" in parsed(self.body):
            return "aborted" if self.ended == "closed" else "cut"
        return "accepted" if self.http == "POST" else "ok"

    def line(self) -> dict[str, Any]:
        asked = parsed(self.body)
        params = asked["params"] if isinstance(asked.get("params"), dict) else {}
        answer, others = self.split()
        value = parsed(answer) if answer is not None else {}
        result = value["result"] if isinstance(value.get("result"), dict) else {}
        error = value["error"] if isinstance(value.get("error"), dict) else {}
        session = self.headers.get("mcp-session-id")
        return {
            "type": "exchange",
            "n": self.n,
            "step": self.step,
            "http": self.http,
            "method": asked.get("method"),
            "name": params.get("name") or params.get("uri"),
            "rpc_id": token(asked.get("id")),
            "protocol": self.headers.get("mcp-protocol-version"),
            "session_sha256": session and hashlib.sha256(session.encode()).hexdigest(),
            "status": self.status,
            "content_type": self.answer_headers.get("content-type"),
            "content_encoding": self.answer_headers.get("content-encoding"),
            "outcome": self.outcome(value),
            "code": token(error.get("code")),
            "result_type": result.get("resultType"),
            "request": fingerprint(self.body),
            "response": fingerprint(answer) if answer is not None else None,
            "raw": fingerprint(bytes(self.raw)),
            "relayed": [relayed(message) for message in others],
            "ended": self.ended,
            "started_ms": self.started_ms,
            "ended_ms": self.ended_ms,
        }

    def keep(self, folder: Path) -> None:
        (folder / f"{self.n}.request").write_bytes(self.body)
        (folder / f"{self.n}.raw").write_bytes(bytes(self.raw))
        answer, _ = self.split()
        if answer is not None:
            (folder / f"{self.n}.response").write_bytes(answer)


class Tee(httpx2.AsyncByteStream):
    """The body of an answer on its way to the client, remembered."""

    def __init__(self, inner: Any, exchange: Exchange) -> None:
        self.inner, self.exchange = inner, exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self.inner:
                self.exchange.raw += chunk
                yield chunk
        except httpx2.TransportError:
            self.exchange.end("cut")
            raise
        self.exchange.end("complete")

    async def aclose(self) -> None:
        self.exchange.end("closed")
        await self.inner.aclose()


class Recorder(httpx2.AsyncBaseTransport):
    """Keeps every exchange of one client; `step` names what the client is doing just now."""

    def __init__(self) -> None:
        self.inner = httpx2.AsyncHTTPTransport()
        self.exchanges: list[Exchange] = []
        self.step = "connect"

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        exchange = Exchange(len(self.exchanges), self.step, request, await request.aread())
        self.exchanges.append(exchange)
        try:
            response = await self.inner.handle_async_request(request)
        except httpx2.TransportError:
            exchange.end("unreachable")
            raise
        except BaseException:
            exchange.end("closed")
            raise
        exchange.status = response.status_code
        exchange.answer_headers = response.headers
        return httpx2.Response(
            status_code=response.status_code,
            headers=response.headers,
            stream=Tee(response.stream, exchange),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self.inner.aclose()
