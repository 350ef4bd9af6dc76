// The official JavaScript MCP clients go through ../steps.json and write down what they saw.
//
//   node client.mjs --url URL --out FILE [--key KEY] [--sdk sdk|client]
//                   [--era 2025-11-25|2026-07-28|auto] [--steps A,B,…] [--skip A,B,…] [--keep FOLDER]
//
// --sdk sdk is @modelcontextprotocol/sdk, which speaks 2025-11-25 only; client is its successor
// @modelcontextprotocol/client. The packages are those that tests/tools.sh installed.
// Writes JSON lines: one `client`, the `step`s, the `exchange`s, one `done` (../README.md).
// Exit: 0 every step ended as expected, 1 one did not, 2 no connection, 64 usage.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { homedir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { keep, line, Recorder } from "./exchanges.mjs";

const cache = process.env.CUSTODY_CACHE ?? join(homedir(), ".cache", "custody");
const require = createRequire(join(cache, "node", "package.json"));
const versionOf = (name) =>
  JSON.parse(readFileSync(join(cache, "node", "node_modules", name, "package.json"))).version;

const sampled = () => ({
  role: "assistant",
  model: "none",
  stopReason: "endTurn",
  content: { type: "text", text: "as the client says" },
});
const elicited = () => ({ action: "accept", content: { name: "Ada", check: true } });
const me = { name: "custody-test-javascript", version: "1" };
const capabilities = { sampling: {}, elicitation: { form: {} } };

/** The first generation of the client. */
function oldClient(options, recorder, onLog) {
  if (options.era === "2026-07-28") usage("--sdk sdk does not speak 2026-07-28");
  const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
  const { StreamableHTTPClientTransport } = require("@modelcontextprotocol/sdk/client/streamableHttp.js");
  const schemas = require("@modelcontextprotocol/sdk/types.js");
  const client = new Client(me, { capabilities });
  client.setRequestHandler(schemas.CreateMessageRequestSchema, sampled);
  client.setRequestHandler(schemas.ElicitRequestSchema, elicited);
  client.setNotificationHandler(schemas.LoggingMessageNotificationSchema, onLog);
  return {
    name: "@modelcontextprotocol/sdk",
    client,
    transport: new StreamableHTTPClientTransport(new URL(options.url), http(options, recorder)),
    // The older client takes the shape of the result before the options.
    callTool: (params, call) => client.callTool(params, undefined, call),
    timedOut: (error) => error.code === schemas.ErrorCode.RequestTimeout,
    isRpcError: (error) => error instanceof schemas.McpError,
  };
}

/** The second generation. */
function newClient(options, recorder, onLog) {
  const sdk = require("@modelcontextprotocol/client");
  const mode = { "2025-11-25": "legacy", "2026-07-28": { pin: "2026-07-28" }, auto: "auto" };
  const versionNegotiation = { mode: mode[options.era] };
  const client = new sdk.Client(me, { capabilities, versionNegotiation });
  client.setRequestHandler("sampling/createMessage", sampled);
  client.setRequestHandler("elicitation/create", elicited);
  client.setNotificationHandler("notifications/message", onLog);
  return {
    name: "@modelcontextprotocol/client",
    client,
    transport: new sdk.StreamableHTTPClientTransport(new URL(options.url), http(options, recorder)),
    callTool: (params, call) => client.callTool(params, call),
    timedOut: (error) => error.code === sdk.SdkErrorCode.RequestTimeout,
    isRpcError: (error) => error instanceof sdk.ProtocolError,
  };
}

function http(options, recorder) {
  const headers = options.key ? { Authorization: `Bearer ${options.key}` } : {};
  return { fetch: recorder.fetch, requestInit: { headers } };
}

function request(party, step, call) {
  const { client } = party;
  const params = structuredClone(step.params);
  for (const [key, times] of Object.entries(step.repeat ?? {})) {
    params.arguments[key] = params.arguments[key].repeat(times);
  }
  // The newer revision sends log messages only to requests that ask for them.
  if ("waits_for" in step && client.getNegotiatedProtocolVersion?.() === "2026-07-28") {
    params._meta = { "io.modelcontextprotocol/logLevel": "debug" };
  }
  switch (step.method) {
    case "tools/list":
      return client.listTools(params, call);
    case "resources/list":
      return client.listResources(params, call);
    case "prompts/list":
      return client.listPrompts(params, call);
    case "resources/read":
      return client.readResource(params, call);
    case "prompts/get":
      return client.getPrompt(params, call);
    case "tools/call":
      return party.callTool(params, call);
    default:
      throw new Error(`steps.json: unknown method ${step.method}`);
  }
}

/** How the step ended in the client's own words, and a short text about it. */
async function outcome(party, step, onprogress) {
  const call = { timeout: step.timeout_ms ?? 30_000, ...("progress" in step ? { onprogress } : {}) };
  try {
    const result = await request(party, step, call);
    return [result.isError === true ? "tool_error" : "ok", JSON.stringify(result)];
  } catch (error) {
    if (party.timedOut(error) && "timeout_ms" in step) return ["timeout", String(error)];
    if (party.isRpcError(error)) return ["rpc_error", `${error.code} ${error.message}`];
    return ["error", String(error)];
  }
}

const within = (ms, promise) =>
  Promise.race([promise.then(() => true), new Promise((give) => setTimeout(give, ms, false).unref())]);

async function walk(party, recorder, notified, step) {
  recorder.step = step.step;
  const first = recorder.exchanges.length;
  const started = performance.now();
  let progress = 0;
  const times = step.times ?? 1;
  const one = () => outcome(party, step, () => (progress += 1));
  const ends = await Promise.all(Array.from({ length: times }, one));
  const words = [...new Set(ends.map(([word]) => word))].sort();
  const notification = "waits_for" in step ? await within(5000, notified[step.waits_for]) : true;
  const asExpected = words.every((word) => step.expect.includes(word));
  return {
    type: "step",
    step: step.step,
    method: step.method,
    saw: words.length === 1 ? words[0] : words,
    as_expected: asExpected && notification && progress === (step.progress ?? 0),
    times,
    progress,
    detail: ends[0][1].slice(0, 300),
    exchanges: recorder.exchanges.slice(first).map((exchange) => exchange.n),
    elapsed_ms: Math.round(performance.now() - started),
  };
}

function steps(options) {
  const every = JSON.parse(readFileSync(new URL("../steps.json", import.meta.url)));
  const names = every.map((step) => step.step);
  const wanted = options.steps?.split(",") ?? names;
  const unwanted = options.skip?.split(",") ?? [];
  const unknown = [...wanted, ...unwanted].filter((name) => !names.includes(name));
  if (unknown.length > 0) usage(`steps.json has no step ${unknown.join(", ")}`);
  return every.filter(({ step }) => wanted.includes(step) && !unwanted.includes(step));
}

async function run(options, recorder, lines) {
  let heard;
  const notified = { "notifications/message": new Promise((give) => (heard = give)) };
  const party = (options.sdk === "sdk" ? oldClient : newClient)(options, recorder, () => heard());
  const chosen = steps(options);
  await party.client.connect(party.transport);
  const negotiated = party.client.getNegotiatedProtocolVersion?.() ?? party.transport.protocolVersion;
  lines.push({
    type: "client",
    name: party.name,
    version: versionOf(party.name),
    era: options.era,
    negotiated,
    server: party.client.getServerVersion() ?? null,
  });
  if (options.era !== "auto" && options.era !== negotiated) {
    throw new Error(`wanted ${options.era}, agreed on ${negotiated}`);
  }
  for (const step of chosen) lines.push(await walk(party, recorder, notified, step));
  recorder.step = "leave";
  if (party.transport.sessionId) await party.transport.terminateSession();
  await party.client.close();
}

function usage(mistake) {
  console.error(`client.mjs: ${mistake}`);
  process.exit(64);
}

const text = { type: "string" };
const known = { url: text, out: text, key: text, steps: text, skip: text, keep: text };
known.sdk = { type: "string", default: "client" };
known.era = { type: "string", default: "2025-11-25" };

function readOptions() {
  let values;
  try {
    ({ values } = parseArgs({ options: known }));
  } catch (error) {
    usage(error.message);
  }
  if (!values.url || !values.out) usage("--url and --out are needed");
  if (!["sdk", "client"].includes(values.sdk)) usage("--sdk is sdk or client");
  if (!["2025-11-25", "2026-07-28", "auto"].includes(values.era)) {
    usage("--era is 2025-11-25, 2026-07-28 or auto");
  }
  return values;
}

const options = readOptions();
const recorder = new Recorder();
const lines = [];
let failed = null;
try {
  await run(options, recorder, lines);
} catch (error) {
  failed = error; // a connection that failed leaves exchanges that the test wants
}
const unexpected = lines.filter((l) => l.as_expected === false).map((l) => l.step);
lines.push(...recorder.exchanges.map(line));
const stepCount = lines.filter((l) => l.type === "step").length;
lines.push({ type: "done", steps: stepCount, exchanges: recorder.exchanges.length, unexpected });
writeFileSync(options.out, lines.map((l) => JSON.stringify(l) + "\n").join(""));
if (options.keep) {
  mkdirSync(options.keep, { recursive: true });
  for (const exchange of recorder.exchanges) keep(exchange, options.keep);
}
if (failed !== null) console.error(`client.mjs: ${failed.stack ?? failed}`);
// Not by itself: a stream that the other side holds open would keep the process.
process.exit(failed !== null ? 2 : unexpected.length > 0 ? 1 : 0);
