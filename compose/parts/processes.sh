# shellcheck shell=bash disable=SC2154
# Processes of a folder: started in a session of their own, found again by their pid files, ended
# for certain; and ports that nobody else has. Sourced by compose/local.

# hold DIR: makes the folder and its lock ours until we end; `dir` is its full path from then on.
hold() {
  mkdir -p "$1"
  dir=$(cd "$1" && pwd)
  exec 9>"$dir/lock"
  flock -w 120 9 || die "another start or stop has held $dir/lock for two minutes"
}

# running FOLDER: whether the process of FOLDER/pid lives and is the one that we started.
running() {
  local pid
  [[ -f $1/pid ]] && pid=$(<"$1/pid") || return 1
  for _ in 1 2 3 4 5; do
    # No pipe: grep -q leaves it at the first match, and the writer's SIGPIPE would be the answer.
    grep -qzxF "CUSTODY_LOCAL=$1" "/proc/$pid/environ" 2>/dev/null && return
    kill -0 "$pid" 2>/dev/null || return 1
    # In the middle of its exec a process has no environment that could be read.
    sleep 0.02
  done
  return 1
}

# launch FOLDER COMMAND…: starts it in the background with its output in FOLDER/log; the output
# of the run before is in FOLDER/log.1. Returns when it is what `running` finds, or has ended.
launch() {
  local folder=$1
  shift
  mkdir -p "$folder"
  if [[ -f $folder/log ]]; then mv "$folder/log" "$folder/log.1"; fi
  CUSTODY_LOCAL=$folder setsid "$@" </dev/null >"$folder/log" 2>&1 9>&- &
  printf '%s\n' $! >"$folder/pid"
  until running "$folder" || ! kill -0 $! 2>/dev/null; do sleep 0.01; done
}

# await FOLDER SECONDS WHAT TEST…: polls until TEST succeeds; dies with the end of the log when the
# process ends or the time is over.
await() {
  local folder=$1 deadline=$((SECONDS + $2)) what=$3
  shift 3
  until "$@" 2>/dev/null; do
    running "$folder" || fail "$folder" "$what ended instead of getting ready"
    ((SECONDS < deadline)) || fail "$folder" "$what was not ready in time"
    sleep 0.1
  done
}
fail() {
  tail -n 25 "$1/log" >&2
  die "$2; its output is in $1/log"
}

# signal NAME FOLDER: sends a signal if it runs.
signal() {
  if running "$2"; then kill "-$1" "$(<"$2/pid")" 2>/dev/null || true; fi
}

# gone FOLDER SECONDS: waits for its end; whether it came.
gone() {
  local deadline=$((SECONDS + $2))
  while running "$1"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.05
  done
  rm -f "$1/pid"
}

# end FOLDER…: asks all to stop, waits 20 seconds for each, then kills.
end() {
  local folder
  for folder in "$@"; do
    signal CONT "$folder"
    signal TERM "$folder"
  done
  for folder in "$@"; do gone "$folder" 20 || kill_now "$folder"; done
}
kill_now() {
  signal KILL "$1"
  gone "$1" 10 || die "process $(<"$1/pid") of $1 does not end"
}

# port: prints a port that nobody listens on and that no other living folder has reserved. A
# reservation is a link from the port's number to the folder; it is void when the folder is gone.
port() {
  local reserved=${TMPDIR:-/tmp}/custody-ports-$(id -u) number attempt
  mkdir -p "$reserved"
  for attempt in {1..200}; do
    number=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    if [[ -L $reserved/$number && ! -e $reserved/$number ]]; then rm -f "$reserved/$number"; fi
    ln -s "$dir" "$reserved/$number" 2>/dev/null || continue
    if ! listening "$number" 2>/dev/null; then
      printf '%s\n' "$number"
      return
    fi
    rm -f "$reserved/$number"
  done
  die "no free port found in $attempt attempts"
}
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# follow PID REMOVE FOLDER…: ends the folders' processes when PID does, and with REMOVE=yes removes
# `dir`. One watch per process and folder.
follow() {
  local pid=$1 remove=$2 watch="$dir/watch-$1"
  shift 2
  kill -0 "$pid" 2>/dev/null || die "--parent $pid: there is no such process"
  if running "$watch"; then return; fi
  launch "$watch" bash -c '
    pid=$1 remove=$2 dir=$3
    shift 3
    tail --pid="$pid" -f /dev/null
    for folder in "$@"; do
      [[ ! -f $folder/pid ]] || kill -KILL "$(<"$folder/pid")" 2>/dev/null
    done
    [[ $remove != yes ]] || rm -rf "$dir"
  ' watch "$pid" "$remove" "$dir" "$@"
}

# secret: 24 random letters and digits.
secret() { od -An -N12 -tx1 /dev/urandom | tr -d ' \n'; }
