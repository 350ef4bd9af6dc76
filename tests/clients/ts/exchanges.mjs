// What passes between an MCP client and a server over HTTP, kept byte for byte.
//
// `Recorder.fetch` passes everything on unchanged and keeps the bytes of each request and answer.
// `line(exchange)` is what the tests compare with SQL; ../README.md says what its fields mean.
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

const sha256 = (data) => createHash("sha256").update(data).digest("hex");
const fingerprint = (data) => ({ sha256: sha256(data), bytes: data.length });

/** A JSON value as it stands in the message, e.g. an id: 7 or "7". */
const token = (value) => (value === undefined || value === null ? null : JSON.stringify(value));

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function parsed(message) {
  try {
    const value = JSON.parse(message.toString("utf8"));
    return isObject(value) ? value : {};
  } catch {
    return {};
  }
}

/** The data of each complete server-sent event, without those that carry none. */
function sseMessages(stream) {
  const messages = [];
  let data = [];
  // latin1 keeps every byte as one character, so nothing is decoded on the way.
  const lines = stream.toString("latin1").split(/\r\n|\n|\r/);
  lines.pop(); // what follows the last line end is not a line yet
  for (const line of lines) {
    if (line === "") {
      const message = data.join("\n");
      if (message !== "") messages.push(Buffer.from(message, "latin1"));
      data = [];
    } else if (line === "data" || line.startsWith("data:")) {
      data.push(line.slice(5).replace(/^ /, ""));
    }
  }
  return messages;
}

function messagesOf(exchange) {
  const raw = Buffer.concat(exchange.chunks);
  if (exchange.contentType?.startsWith("text/event-stream")) return sseMessages(raw);
  return Object.keys(parsed(raw)).length > 0 ? [raw] : [];
}

const isRequest = (message) => "method" in message && "id" in message;

/** The message that answers this request, if one came, and all others. */
function split(exchange) {
  const messages = messagesOf(exchange);
  const asked = parsed(exchange.body);
  if (exchange.http !== "POST" || !isRequest(asked)) return [null, messages];
  const at = messages.findIndex((message) => {
    const value = parsed(message);
    // A refusal may come without the id, when the server could not read it.
    const ours = value.id === asked.id || value.id === null || value.id === undefined;
    return ours && ("result" in value || "error" in value);
  });
  return at < 0 ? [null, messages] : [messages[at], messages.toSpliced(at, 1)];
}

function outcome(exchange, answer) {
  if ("error" in answer) return "rpc_error";
  if ("result" in answer) return answer.result?.isError === true ? "tool_error" : "ok";
  if (exchange.status === null) return exchange.ended === "closed" ? "aborted" : "unreachable";
  if (exchange.status >= 400) return "http_error";
  if (isRequest(parsed(exchange.body))) return exchange.ended === "closed" ? "aborted" : "cut";
  return exchange.http === "POST" ? "accepted" : "ok";
}

function relayed(message) {
  const value = parsed(message);
  return { method: value.method ?? null, rpc_id: token(value.id), ...fingerprint(message) };
}

export function line(exchange) {
  const asked = parsed(exchange.body);
  const [answer, others] = split(exchange);
  const value = answer === null ? {} : parsed(answer);
  const session = exchange.headers.get("mcp-session-id");
  return {
    type: "exchange",
    n: exchange.n,
    step: exchange.step,
    http: exchange.http,
    method: asked.method ?? null,
    name: asked.params?.name ?? asked.params?.uri ?? null,
    rpc_id: token(asked.id),
    protocol: exchange.headers.get("mcp-protocol-version"),
    session_sha256: session === null ? null : sha256(session),
    status: exchange.status,
    content_type: exchange.contentType,
    content_encoding: exchange.contentEncoding,
    outcome: outcome(exchange, value),
    code: token(value.error?.code),
    result_type: value.result?.resultType ?? null,
    request: fingerprint(exchange.body),
    response: answer === null ? null : fingerprint(answer),
    raw: fingerprint(Buffer.concat(exchange.chunks)),
    relayed: others.map(relayed),
    ended: exchange.ended,
    started_ms: exchange.started_ms,
    ended_ms: exchange.ended_ms,
  };
}

export function keep(exchange, folder) {
  const [answer] = split(exchange);
  writeFileSync(join(folder, `${exchange.n}.request`), exchange.body);
  writeFileSync(join(folder, `${exchange.n}.raw`), Buffer.concat(exchange.chunks));
  if (answer !== null) writeFileSync(join(folder, `${exchange.n}.response`), answer);
}

function end(exchange, how) {
  if (exchange.ended !== "open") return;
  exchange.ended = how;
  exchange.ended_ms = Date.now();
}

/** The body of an answer on its way to the client, remembered; a client that leaves is passed on. */
function tee(body, exchange) {
  const reader = body.getReader();
  return new ReadableStream({
    async pull(controller) {
      try {
        const { done, value } = await reader.read();
        if (done) {
          end(exchange, "complete");
          controller.close();
        } else {
          exchange.chunks.push(Buffer.from(value));
          controller.enqueue(value);
        }
      } catch (error) {
        end(exchange, error?.name === "AbortError" ? "closed" : "cut");
        controller.error(error);
      }
    },
    cancel(reason) {
      end(exchange, "closed");
      return reader.cancel(reason);
    },
  });
}

/** Keeps every exchange of one client; `step` names what the client is doing just now. */
export class Recorder {
  exchanges = [];
  step = "connect";

  fetch = async (url, init = {}) => {
    const body = init.body ?? "";
    if (typeof body !== "string") throw new TypeError("expected the client to send a string");
    const exchange = {
      n: this.exchanges.length,
      step: this.step,
      http: init.method ?? "GET",
      headers: new Headers(init.headers),
      body: Buffer.from(body, "utf8"),
      status: null,
      contentType: null,
      contentEncoding: null,
      chunks: [],
      ended: "open",
      started_ms: Date.now(),
      ended_ms: null,
    };
    this.exchanges.push(exchange);
    let response;
    try {
      response = await fetch(url, init);
    } catch (error) {
      end(exchange, error?.name === "AbortError" ? "closed" : "unreachable");
      throw error;
    }
    exchange.status = response.status;
    exchange.contentType = response.headers.get("content-type");
    exchange.contentEncoding = response.headers.get("content-encoding");
    if (response.body === null) end(exchange, "complete");
    const passedOn = response.body === null ? null : tee(response.body, exchange);
    const { status, statusText, headers } = response;
    return new Response(passedOn, { status, statusText, headers });
  };
}
