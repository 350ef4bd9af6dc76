"""The official Python MCP client goes through steps.json and writes down what it saw.

    mcp_client.py --url URL --out FILE [--key KEY] [--era 2025-11-25|2026-07-28|auto]
                  [--steps A,B,…] [--skip A,B,…] [--keep FOLDER] [--connect PROGRAM]

With --connect it starts `PROGRAM connect URL` and speaks to that over its standard input and output;
then there are no `exchange`s.
Writes JSON lines: one `client`, the `step`s, the `exchange`s, one `done` (README.md says what is
in them). Exit: 0 every step ended as steps.json expects, 1 one did not, 2 no connection.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as types
from exchanges import Recorder
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPDeprecationWarning

MODE = {"2025-11-25": "legacy", "2026-07-28": "auto", "auto": "auto"}


async def sample(_context: Any, _params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
    text = types.TextContent(type="text", text="as the client says")
    return types.CreateMessageResult(role="assistant", content=text, model="none", stop_reason="endTurn")


async def elicit(_context: Any, _params: types.ElicitRequestParams) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ada", "check": True})


def steps(only: str | None, skip: str | None) -> list[dict[str, Any]]:
    every = json.loads((Path(__file__).parent / "steps.json").read_text())
    names = [step["step"] for step in every]
    wanted = only.split(",") if only else names
    unwanted = skip.split(",") if skip else []
    unknown = {*wanted, *unwanted} - {*names}
    if unknown:
        raise ValueError(f"steps.json has no step {', '.join(sorted(unknown))}")
    return [step for step in every if step["step"] in wanted and step["step"] not in unwanted]


async def request(client: Client, step: dict[str, Any], on_progress: Any) -> Any:
    params = dict(step["params"])
    match step["method"]:
        case "tools/list":
            return await client.list_tools()
        case "resources/list":
            return await client.list_resources()
        case "prompts/list":
            return await client.list_prompts()
        case "resources/read":
            return await client.read_resource(params["uri"])
        case "prompts/get":
            return await client.get_prompt(params["name"], params["arguments"])
        case "tools/call":
            arguments = dict(params["arguments"])
            for key, times in step.get("repeat", {}).items():
                arguments[key] *= times
            timeout_ms = step.get("timeout_ms")
            return await client.call_tool(
                params["name"],
                arguments,
                read_timeout_seconds=timeout_ms and timeout_ms / 1000,
                progress_callback=on_progress if "progress" in step else None,
            )
        case other:
            raise ValueError(f"steps.json: unknown method {other}")


async def outcome(client: Client, step: dict[str, Any], on_progress: Any) -> tuple[str, str]:
    """How the step ended in the client's own words, and a short text about it."""
    try:
        result = await request(client, step, on_progress)
    except MCPError as error:
        # The client reports its own time-out as an error with this code.
        timed_out = error.error.code == types.REQUEST_TIMEOUT and "timeout_ms" in step
        return "timeout" if timed_out else "rpc_error", f"{error.error.code} {error.error.message}"
    except Exception as error:  # whatever else the client raises is what the test wants to see
        return "error", f"{type(error).__name__}: {error}"
    failed = getattr(result, "is_error", None) is True
    return "tool_error" if failed else "ok", result.model_dump_json(by_alias=True)


async def reached(wait_for: dict[str, asyncio.Event], method: str | None) -> bool:
    """Whether the notification that the step is to cause has come, soon after its answer at most."""
    if method is None:
        return True
    try:
        await asyncio.wait_for(wait_for[method].wait(), 5)
    except TimeoutError:
        return False
    return True


async def walk(
    client: Client, recorder: Recorder, notified: dict[str, asyncio.Event], step: dict[str, Any]
) -> dict[str, Any]:
    recorder.step = step["step"]
    first, started, progress = len(recorder.exchanges), time.monotonic(), 0

    async def on_progress(*_: Any) -> None:
        nonlocal progress
        progress += 1

    times = step.get("times", 1)
    ends = await asyncio.gather(*(outcome(client, step, on_progress) for _ in range(times)))
    words = sorted({word for word, _ in ends})
    as_expected = all(word in step["expect"] for word in words)
    notification = await reached(notified, step.get("waits_for"))
    return {
        "type": "step",
        "step": step["step"],
        "method": step["method"],
        "saw": words[0] if len(words) == 1 else words,
        "as_expected": as_expected and notification and progress == step.get("progress", 0),
        "times": times,
        "progress": progress,
        "detail": ends[0][1][:300],
        "exchanges": list(range(first, len(recorder.exchanges))),
        "elapsed_ms": round((time.monotonic() - started) * 1000),
    }


def introduction(client: Client, era: str) -> dict[str, Any]:
    server = client.server_info
    return {
        "type": "client",
        "name": "mcp (Python)",
        "version": version("mcp"),
        "era": era,
        "negotiated": client.protocol_version,
        "server": server and {"name": server.name, "version": server.version},
    }


async def run(options: argparse.Namespace, recorder: Recorder, lines: list[dict[str, Any]]) -> None:
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    environment = {"CUSTODY_KEY": options.key} if options.key else {}
    timeout = httpx2.Timeout(30, read=60)
    notified = {"notifications/message": asyncio.Event()}

    async def on_log(_: types.LoggingMessageNotificationParams) -> None:
        notified["notifications/message"].set()

    async with httpx2.AsyncClient(transport=recorder, headers=headers, timeout=timeout) as http:
        if options.connect:
            program = StdioServerParameters(
                command=options.connect, args=["connect", options.url], env=environment
            )
            transport = stdio_client(program)
        else:
            transport = streamable_http_client(options.url, http_client=http)
        async with Client(
            transport,
            mode=MODE[options.era],
            client_info=types.Implementation(name="custody-test-python", version="1"),
            sampling_callback=sample,
            elicitation_callback=elicit,
            logging_callback=on_log,
            log_level="debug",
            read_timeout_seconds=30,
            cache=None,
        ) as client:
            lines.append(introduction(client, options.era))
            if options.era not in ("auto", client.protocol_version):
                raise ConnectionError(f"wanted {options.era}, agreed on {client.protocol_version}")
            for step in steps(options.steps, options.skip):
                lines.append(await walk(client, recorder, notified, step))
            recorder.step = "leave"


def write(options: argparse.Namespace, recorder: Recorder, lines: list[dict[str, Any]]) -> None:
    lines += [exchange.line() for exchange in recorder.exchanges]
    lines.append({
        "type": "done",
        "steps": sum(line["type"] == "step" for line in lines),
        "exchanges": len(recorder.exchanges),
        "unexpected": [line["step"] for line in lines if line.get("as_expected") is False],
    })
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    Path(options.out).write_text(text, encoding="utf-8")
    if options.keep:
        folder = Path(options.keep)
        folder.mkdir(parents=True, exist_ok=True)
        for exchange in recorder.exchanges:
            exchange.keep(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="e.g. http://127.0.0.1:7400/servers/everything/mcp")
    parser.add_argument("--out", required=True, help="file for the JSON lines")
    parser.add_argument("--key", help="sent as Authorization: Bearer KEY")
    parser.add_argument("--era", default="2025-11-25", choices=sorted(MODE))
    parser.add_argument("--connect", help="speak to PROGRAM connect URL", metavar="PROGRAM")
    parser.add_argument("--steps", help="only these of steps.json, with commas between")
    parser.add_argument("--skip", help="not these of steps.json, with commas between")
    parser.add_argument("--keep", help="also write the bytes of every exchange into this folder")
    options = parser.parse_args()
    # Sampling and elicitation are deprecated in the newer revision and still spoken.
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    recorder, lines = Recorder(), []
    failed = None
    try:
        asyncio.run(run(options, recorder, lines))
    except Exception as error:  # a connection that failed leaves exchanges that the test wants
        failed = error
        while isinstance(failed, ExceptionGroup):
            failed = failed.exceptions[0]
    write(options, recorder, lines)
    if failed is not None:
        print(f"mcp_client: {failed!r}", file=sys.stderr)
        return 2
    return 1 if json.loads(Path(options.out).read_text().splitlines()[-1])["unexpected"] else 0


if __name__ == "__main__":
    sys.exit(main())
