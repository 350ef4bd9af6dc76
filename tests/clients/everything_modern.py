"""A server with the tools of the reference server that speaks both 2026-07-28 and 2025-11-25.

    everything_modern.py PORT [--json]        http://127.0.0.1:PORT/mcp
    everything_modern.py stdio                standard input and output

The reference server knows only the older revision. This one answers every step of steps.json in
either, as server-sent events or, with --json, as plain JSON where no notification is to be sent.
On 2026-07-28 sampling and elicitation are multi-round-trip requests. Ready when it listens.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import anyio
from mcp.server.mcpserver import Context, Elicit, Image, MCPServer, Resolve, Sample
from mcp_types import CreateMessageResult, SamplingMessage, TextContent
from pydantic import BaseModel

# A PNG of one pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c63f8cfc0f01f00050001ff89993d1d0000000049454e44ae426082"
)

server = MCPServer("everything-modern", version="1", log_level="WARNING")


class Person(BaseModel):
    name: str
    check: bool


class Weather(BaseModel):
    temperature: float
    conditions: str
    humidity: int


@server.tool(name="echo", structured_output=False)
def echo(message: str) -> str:
    """Echoes back the input string"""
    return f"Echo: {message}"


@server.tool(name="get-sum", structured_output=False)
def get_sum(a: float, b: float) -> str:
    """Returns the sum of two numbers"""
    return f"The sum of {a} and {b} is {a + b}."


@server.tool(name="get-tiny-image", structured_output=False)
def get_tiny_image() -> list[str | Image]:
    """Returns an image of one pixel"""
    return ["Here's the image you requested:", Image(data=PIXEL, format="png")]


@server.tool(name="get-structured-content")
def get_structured_content(location: Literal["New York", "Chicago", "Los Angeles"]) -> Weather:
    """Returns the weather as structured content"""
    return Weather(temperature=36.6, conditions=f"Light rain in {location}", humidity=82)


@server.tool(name="trigger-long-running-operation", structured_output=False)
async def long_running(ctx: Context, duration: float = 10, steps: int = 5) -> str:
    """Takes its time and reports progress"""
    for done in range(1, steps + 1):
        await anyio.sleep(duration / steps)
        await ctx.report_progress(done, steps)
    return f"Long running operation completed. Duration: {duration} seconds, Steps: {steps}."


@server.tool(name="toggle-simulated-logging", structured_output=False)
async def logging(ctx: Context) -> str:
    """Sends one log message"""
    await ctx.info("Info-level message")
    return "Sent one log message."


def ask_model(prompt: str, maxTokens: int = 100) -> Sample:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
    return Sample([message], max_tokens=maxTokens)


@server.tool(name="trigger-sampling-request", structured_output=False)
def sampling(
    prompt: str, said: Annotated[CreateMessageResult, Resolve(ask_model)], maxTokens: int = 100
) -> str:
    """Asks the client's model"""
    return f"LLM sampling result for {prompt!r}, at most {maxTokens}: {said.content}"


def ask_person() -> Elicit[Person]:
    return Elicit("Please provide inputs for the following fields:", Person)


@server.tool(name="trigger-elicitation-request", structured_output=False)
def elicitation(person: Annotated[Person, Resolve(ask_person)]) -> str:
    """Asks the user"""
    return f"User inputs: {person.name}, {person.check}"


@server.resource("demo://resource/dynamic/text/{number}")
def text(number: str) -> str:
    """A text made on demand"""
    return f"Resource {number}: This is a plaintext resource"


@server.resource("demo://resource/static/document/about")
def about() -> str:
    """A text that is always the same"""
    return "Nothing here is real."


@server.prompt(name="args-prompt")
def args_prompt(city: str, state: str = "") -> str:
    """A prompt with arguments"""
    return f"What's weather in {city}{', ' + state if state else ''}?"


def main() -> int:
    arguments = [a for a in sys.argv[1:] if a != "--json"]
    if arguments == ["stdio"]:
        server.run("stdio")
        return 0
    if len(arguments) != 1 or not arguments[0].isdigit():
        print("usage: everything_modern.py PORT [--json] | stdio", file=sys.stderr)
        return 64
    as_json = "--json" in sys.argv
    server.run("streamable-http", host="127.0.0.1", port=int(arguments[0]), json_response=as_json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
