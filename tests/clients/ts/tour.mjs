// The JavaScript clients, as they are published, go through the tours of ../tours.json.
//
//   node tour.mjs --client sdk|client [--era E] --folder F --tour NAME=PREFIX … URL
//
// --client sdk is @modelcontextprotocol/sdk, client its successor. `{server}` in URL becomes the
// name of the tour, with a connection for each; a tool of a tour is called as PREFIX followed by its name. Prints one JSON line for each call: tool, ok, text. Exit 1 when a
// call did not say what the tour expects, or a tool is not listed.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { homedir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

const cache = process.env.CUSTODY_CACHE ?? join(homedir(), ".cache", "custody");
const require = createRequire(join(cache, "node", "package.json"));
const { values, positionals } = parseArgs({
  options: {
    client: { type: "string" },
    era: { type: "string", default: "auto" },
    folder: { type: "string" },
    tour: { type: "string", multiple: true },
  },
  allowPositionals: true,
});
const me = { name: "custody-tour", version: "1" };

async function connect(url) {
  if (values.client === "sdk") {
    const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
    const http = require("@modelcontextprotocol/sdk/client/streamableHttp.js");
    const client = new Client(me);
    await client.connect(new http.StreamableHTTPClientTransport(new URL(url)));
    return client;
  }
  const sdk = require("@modelcontextprotocol/client");
  const modes = { auto: "auto", "2025-11-25": "legacy", "2026-07-28": { pin: "2026-07-28" } };
  const client = new sdk.Client(me, { versionNegotiation: { mode: modes[values.era] } });
  await client.connect(new sdk.StreamableHTTPClientTransport(new URL(url)));
  return client;
}

async function names(client) {
  const names = new Set();
  let cursor;
  do {
    const page = await client.listTools({ cursor });
    for (const { name } of page.tools) names.add(name);
    cursor = page.nextCursor;
  } while (cursor);
  return names;
}

const filled = (value) =>
  JSON.parse(JSON.stringify(value).replaceAll("${folder}", values.folder));

const tours = JSON.parse(readFileSync(new URL("../tours.json", import.meta.url)));
const apart = positionals[0].includes("{server}");
let client;
let listed;
for (const [tour, prefix] of values.tour.map((pair) => pair.split("="))) {
  if (apart || !client) {
    client = await connect(positionals[0].replace("{server}", tour));
    listed = await names(client);
  }
  for (const step of tours[tour]) {
    const name = prefix + step.tool;
    const result = await client.callTool({ name, arguments: filled(step.arguments) });
    const text = result.content.map((part) => part.text ?? "").join("");
    const ok = listed.has(name) && text.includes(filled(step.says));
    if (!ok) process.exitCode = 1;
    console.log(JSON.stringify({ tool: name, ok, text }));
  }
  if (apart) await client.close();
}
if (!apart) await client.close();
