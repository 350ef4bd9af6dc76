// The client that the conformance suite puts before its own servers, scenario by scenario.
//
//   node scenarios.mjs [--custody EXECUTABLE] URL
//
// The suite adds URL, where its server is, and says by environment variables which scenario it
// plays and in which revision. With --custody the client talks to a `custody up` of its own
// that stands before that server, so that the suite sees what passes through it; what has passed
// must then be on record.
// Exit: 0 the client has gone to the end, 1 it could not.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

const cache = process.env.CUSTODY_CACHE ?? join(homedir(), ".cache", "custody");
const sdk = createRequire(join(cache, "node", "package.json"))("@modelcontextprotocol/client");

const scenario = process.env.MCP_CONFORMANCE_SCENARIO;
const revision = process.env.MCP_CONFORMANCE_PROTOCOL_VERSION ?? "2025-11-25";
const context = JSON.parse(process.env.MCP_CONFORMANCE_CONTEXT ?? "{}");

/** A product of our own before the server, and how to end it. */
async function before(executable, url) {
  const folder = mkdtempSync(join(tmpdir(), "custody-scenario-"));
  const config = join(folder, "custody.toml");
  const address = 'listen = "127.0.0.1:0"';
  const data = JSON.stringify(join(folder, "data"));
  writeFileSync(
    config,
    `[deployment]\nname = "audit.test"\ndata = ${data}\n[proxy]\n${address}\n[lake]\n[query]\n` +
      `${address}\n[[server]]\nname = "suite"\nurl = ${JSON.stringify(url)}\nphi = false\n`,
  );
  const child = spawn(executable, ["up", "-c", config], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise((give) => child.once("exit", give));
  const listens = {};
  for await (const line of createInterface({ input: child.stdout })) {
    const [part, url] = line.trim().split(/ +/);
    listens[part] = url;
    if (listens.proxy && listens.query) break;
  }
  if (!listens.query) throw new Error("custody up has ended at once");
  const end = async () => {
    const calls = await recorded(listens.query);
    child.kill("SIGTERM");
    await ended;
    rmSync(folder, { recursive: true });
    if (!(calls > 0)) throw new Error("nothing is on record");
  };
  return [`${listens.proxy}/servers/suite/mcp`, end];
}

/** How many calls SQL knows. */
async function recorded(query) {
  const body = JSON.stringify({ sql: "SELECT count(*) AS calls FROM calls" });
  const headers = { "content-type": "application/json", accept: "application/x-ndjson" };
  const answer = await fetch(`${query}/v1/sql`, { method: "POST", headers, body });
  return JSON.parse((await answer.text()).split("\n")[0]).calls;
}

/** Asks; an error that the server answers is as good an answer as any. */
async function ask(what, asking) {
  try {
    return await asking();
  } catch (error) {
    console.error(`${what}: ${error}`);
    return undefined;
  }
}

async function play(client) {
  const { tools = [] } = (await ask("tools/list", () => client.listTools())) ?? {};
  if (scenario === "json-schema-ref-no-deref") return;
  const listed = tools.map(({ name, inputSchema }) => ({
    name,
    arguments: name === "json_schema_echo" ? { schema: tools[0].inputSchema } : example(inputSchema),
  }));
  for (const call of context.toolCalls ?? listed) {
    await ask(`tools/call ${call.name}`, () => client.callTool(call));
  }
  if (scenario !== "http-standard-headers") return;
  const { resources = [] } = (await ask("resources/list", () => client.listResources())) ?? {};
  for (const { uri } of resources) await ask("resources/read", () => client.readResource({ uri }));
  const { prompts = [] } = (await ask("prompts/list", () => client.listPrompts())) ?? {};
  for (const { name } of prompts) await ask("prompts/get", () => client.getPrompt({ name }));
}

/** Arguments that fit a schema well enough. */
function example(schema) {
  const of = { number: 2, integer: 2, string: "a text", boolean: true };
  const properties = Object.entries(schema?.properties ?? {});
  return Object.fromEntries(properties.map(([name, { type }]) => [name, of[type] ?? null]));
}

const { values, positionals } = parseArgs({
  options: { custody: { type: "string" } },
  allowPositionals: true,
});
const direct = positionals.at(-1);
const [url, end] = values.custody ? await before(values.custody, direct) : [direct, () => {}];
const mode = revision >= "2026-07-28" ? "auto" : "legacy";
const client = new sdk.Client(
  { name: "custody-conformance", version: "1" },
  {
    capabilities: { elicitation: { form: { applyDefaults: true } }, sampling: {}, roots: {} },
    versionNegotiation: { mode },
  },
);
client.setRequestHandler("elicitation/create", () => ({ action: "accept", content: {} }));
client.setRequestHandler("roots/list", () => ({ roots: [] }));
try {
  await client.connect(new sdk.StreamableHTTPClientTransport(new URL(url)));
  await play(client);
  await client.close();
} finally {
  await end();
}
