"""Python clients, as they are published, go through the tours of tours.json.

    tour.py --client mcp|fastmcp [--era E] --folder F --tour NAME=PREFIX … URL
    tour.py --client stdio               --folder F --tour NAME=PREFIX … COMMAND …

mcp and fastmcp speak streamable HTTP; stdio starts COMMAND, which is an MCP server on its standard
input and output (mcp-remote, custody connect). `{server}` in URL or COMMAND becomes the name of the
tour, with a connection for each; a tool of a tour is called as PREFIX followed by its name. Prints one JSON line for each call: tool, ok, text. Exit 1 when a call did not say what the
tour expects, or a tool is not listed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, AsyncIterator

import fastmcp
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

MODE = {"2025-11-25": "legacy", "2026-07-28": "2026-07-28", "auto": "auto"}


@asynccontextmanager
async def connect(options: argparse.Namespace, tour: str) -> AsyncIterator[Any]:
    where = [part.replace("{server}", tour) for part in options.where]
    match options.client:
        case "mcp":
            async with Client(streamable_http_client(where[0]), mode=MODE[options.era]) as client:
                yield client
        case "fastmcp":
            async with fastmcp.Client(where[0]) as client:
                yield client
        case "stdio":
            server = StdioServerParameters(command=where[0], args=where[1:])
            async with Client(stdio_client(server), mode=MODE[options.era]) as client:
                yield client


def filled(value: Any, folder: str) -> Any:
    return json.loads(json.dumps(value).replace("${folder}", folder))


async def names(client: Any) -> set[str]:
    """The tools of all pages."""
    listed = await client.list_tools()
    tools = listed if isinstance(listed, list) else listed.tools
    cursor = None if isinstance(listed, list) else listed.next_cursor
    while cursor:
        listed = await client.list_tools(cursor=cursor)
        tools += listed.tools
        cursor = listed.next_cursor
    return {tool.name for tool in tools}


async def go(options: argparse.Namespace) -> bool:
    tours = json.loads((Path(__file__).parent / "tours.json").read_text())
    well = True
    apart = any("{server}" in part for part in options.where)
    async with AsyncExitStack() as open_clients:
        client, listed = None, set()
        for tour, prefix in (pair.split("=") for pair in options.tour):
            if client is None or apart:
                client = await open_clients.enter_async_context(connect(options, tour))
                listed = await names(client)
            for step in tours[tour]:
                tool = prefix + step["tool"]
                arguments = filled(step["arguments"], options.folder)
                result = await client.call_tool(tool, arguments)
                text = "".join(getattr(part, "text", "") for part in result.content)
                ok = tool in listed and filled(step["says"], options.folder) in text
                well = well and ok
                print(json.dumps({"tool": tool, "ok": ok, "text": text}), flush=True)
    return well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--client", required=True, choices=["mcp", "fastmcp", "stdio"])
    parser.add_argument("--era", default="auto", choices=sorted(MODE))
    parser.add_argument("--folder", required=True)
    parser.add_argument("--tour", required=True, action="append", metavar="NAME=PREFIX")
    parser.add_argument("where", nargs=argparse.REMAINDER)
    return 0 if asyncio.run(go(parser.parse_args())) else 1


if __name__ == "__main__":
    sys.exit(main())
