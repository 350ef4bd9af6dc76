# shellcheck shell=bash disable=SC2154
# The whole cluster of a folder. Sourced by compose/local; works on `dir`.
#
#   DIR/custody.toml   what all roles read       DIR/keys/   root key and writers' keys
#   DIR/kafka, minio   as `kafka start` and `minio start` make them
#   DIR/NAME/          of each role: log, pid, data; NAME is proxy-1, ingest-2, query-1, record …
#   DIR/logs/          links to every log

cluster_up() {
  local brokers=1 sasl='' durability=local proxies=2 workers=2 queries=2 partitions=3
  local parent='' temporary='' free=no name
  while [[ $# -gt 0 ]]; do
    case $1 in
      --brokers) brokers=${2:?--brokers wants 1 or 3} && shift 2 ;;
      --sasl) sasl=--sasl && shift ;;
      --durability) durability=${2:?--durability wants local or replicated} && shift 2 ;;
      --proxies) proxies=${2:?--proxies wants a number} && shift 2 ;;
      --workers) workers=${2:?--workers wants a number} && shift 2 ;;
      --queries) queries=${2:?--queries wants a number} && shift 2 ;;
      --partitions) partitions=${2:?--partitions wants a number} && shift 2 ;;
      --free-ports) free=yes && shift ;;
      --parent) parent=${2:?--parent wants a process id} && shift 2 ;;
      --temporary) temporary=--temporary && shift ;;
      *) usage "up: '$1' is not an option" ;;
    esac
  done
  cluster_find_custody
  cluster_services
  cluster_names >"$dir/names"
  cluster_configuration >"$dir/custody.toml"
  cluster_prepare
  for name in $(<"$dir/names"); do cluster_launch "$name"; done
  for name in $(<"$dir/names"); do await "$dir/$name" 60 "$name" cluster_ready "$name"; done
  if [[ -n $parent ]]; then
    # shellcheck disable=SC2046
    follow "$parent" "$([[ -n $temporary ]] && echo yes || echo no)" \
      $(for name in $(<"$dir/names"); do echo "$dir/$name"; done)
  fi
  cluster_print
}

# The executable: CUSTODY_BIN, else the newest that cargo has built.
cluster_find_custody() {
  local target=${CARGO_TARGET_DIR:-$here/../target} built
  custody=${CUSTODY_BIN:-}
  for built in "$target"/{release,debug}/custody; do
    [[ -n ${CUSTODY_BIN:-} ]] || if [[ $built -nt $custody ]]; then custody=$built; fi
  done
  [[ -x $custody ]] || die "custody is not built: run cargo build --release, or set CUSTODY_BIN"
}

# Kafka and the object store, at once; their addresses in DIR/kafka.out and DIR/minio.out.
cluster_services() {
  local with=() job
  [[ -z $parent ]] || with=(--parent "$parent")
  # shellcheck disable=SC2086
  "$here/local" kafka start "$dir/kafka" --brokers "$brokers" $sasl "${with[@]}" >"$dir/kafka.out" 9>&- &
  job=$!
  "$here/local" minio start "$dir/minio" "${with[@]}" >"$dir/minio.out" 9>&-
  wait "$job"
}

# told FILE NAME: the value of a name=value line.
told() { sed -n "s/^$2=//p" "$1"; }

cluster_names() {
  local n
  echo record
  for ((n = 1; n <= proxies; n++)); do echo "proxy-$n"; done
  for ((n = 1; n <= workers; n++)); do echo "ingest-$n"; done
  for ((n = 1; n <= queries; n++)); do echo "query-$n"; done
}

# cluster_port NAME DEFAULT: the variable of compose.yaml (CUSTODY_PROXY_1_PORT …), what was
# settled before, the default if it is free, or any other port.
cluster_port() {
  local variable file="$dir/$1/port" number
  variable=CUSTODY_$(tr 'a-z-' 'A-Z_' <<<"$1")_PORT
  number=${!variable:-}
  if [[ -z $number && -f $file ]]; then number=$(<"$file"); fi
  if [[ -z $number ]]; then
    if [[ ${free:-no} == yes ]] || listening "$2" 2>/dev/null; then number=$(port); else number=$2; fi
  fi
  mkdir -p "$dir/$1"
  printf '%s\n' "$number" | tee "$file"
}
cluster_default_port() {
  local n=${1##*-}
  case $1 in
    record) echo 9000 ;;
    proxy-*) echo $((7399 + n)) ;;
    ingest-*) echo $((7469 + n)) ;;
    query-*) echo $((7479 + n)) ;;
  esac
}

cluster_configuration() {
  local replicas=$brokers
  cat <<TOML
# Made by compose/local up.
[deployment]
name = "cluster.custody.localhost"
keys = "$dir/keys"

[proxy]
durability = "$durability"

[journal]
kind = "kafka"
brokers = "$(told "$dir/kafka.out" bootstrap)"
partitions = $partitions
replication_factor = $replicas
min_insync_replicas = $((replicas > 1 ? 2 : 1))
max_bytes = "8 GiB"
TOML
  if [[ -n $sasl ]]; then
    cat <<TOML

[journal.tls]
ca = "$(told "$dir/kafka.out" ca)"

[journal.sasl]
mechanism = "SCRAM-SHA-512"
username = "$(told "$dir/kafka.out" username)"
password = "$(told "$dir/kafka.out" password)"
TOML
  fi
  cat <<TOML

[lake]
url = "s3://$(told "$dir/minio.out" bucket)/lake"
flush_seconds = 10

[lake.storage]
endpoint = "$(told "$dir/minio.out" endpoint)"
region = "$(told "$dir/minio.out" region)"
allow_http = "true"

[[server]]
name = "ehr"
url = "http://127.0.0.1:$(cluster_port record 9000)/mcp"
phi = true
recipient = { name = "Synthetic EHR", relation = "internal" }
TOML
}

# Topics, and every writer on the keyring; ingest workers record nothing.
cluster_prepare() {
  local name
  "$custody" topics create -c "$dir/custody.toml" >&2
  mkdir -p "$dir/logs"
  for name in $(<"$dir/names"); do
    [[ $name == record || $name == ingest-* ]] || "$custody" keys add "$name" -c "$dir/custody.toml" >&2
    ln -sfn "../$name/log" "$dir/logs/$name.log"
  done
  ln -sfn ../minio/minio/log "$dir/logs/minio.log"
  for ((name = 1; name <= brokers; name++)); do
    ln -sfn "../kafka/broker-$name/log" "$dir/logs/kafka-$name.log"
  done
}

# cluster_launch NAME: starts a role unless it runs. Only who needs the lake gets its credentials.
cluster_launch() {
  local name=$1 role=${1%-*} listen
  if running "$dir/$name"; then return; fi
  listen=127.0.0.1:$(cluster_port "$name" "$(cluster_default_port "$name")")
  if [[ $role == record ]]; then
    launch "$dir/$name" "$custody" demo --record "$listen"
    return
  fi
  local settings=(
    "CUSTODY__DEPLOYMENT__DATA=$dir/$name/data" "CUSTODY__${role^^}__LISTEN=$listen")
  [[ $role == proxy ]] || settings+=(
    "AWS_ACCESS_KEY_ID=$(told "$dir/minio.out" access_key)"
    "AWS_SECRET_ACCESS_KEY=$(told "$dir/minio.out" secret_key)")
  if [[ $role == ingest ]]; then
    settings+=("CUSTODY__JOURNAL__INSTANCE=$name")
  else
    settings+=("CUSTODY__DEPLOYMENT__WRITER=$name")
  fi
  launch "$dir/$name" env "${settings[@]}" "$custody" "$role" -c "$dir/custody.toml"
}

# cluster_ready NAME: whether /readyz says yes; the record only has to listen.
cluster_ready() {
  local number
  number=$(<"$dir/$1/port")
  if [[ $1 == record ]]; then listening "$number"; else [[ $(readiness "$number") == *' 200 '* ]]; fi
}

# readiness PORT: the status line of /readyz.
readiness() {
  local status
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'GET /readyz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3
  read -r -t 2 -u 3 status || status=''
  exec 3>&- 3<&-
  printf '%s\n' "${status%$'\r'}"
}

cluster_print() {
  local name
  for name in $(<"$dir/names"); do printf '%s=http://127.0.0.1:%s\n' "$name" "$(<"$dir/$name/port")"; done
  cat "$dir/kafka.out" "$dir/minio.out" | grep -v '^password=\|^secret_key='
  printf 'logs=%s\n' "$dir/logs"
}

# Proxies first, so that what they have recorded is shipped and stored by those who come after.
cluster_down() {
  local name part
  [[ -f $dir/names ]] || die "there is no cluster in $dir"
  for part in proxy ingest query record; do
    local folders=()
    while read -r name; do folders+=("$dir/$name"); done < <(grep "^$part" "$dir/names")
    [[ ${#folders[@]} == 0 ]] || end "${folders[@]}"
  done
  "$here/local" kafka stop "$dir/kafka" 9>&-
  "$here/local" minio stop "$dir/minio" 9>&-
}

cluster_status() {
  local name n all=0
  [[ -f $dir/names ]] || die "there is no cluster in $dir"
  for name in kafka/broker-1 kafka/broker-2 kafka/broker-3 minio/minio $(<"$dir/names"); do
    [[ -d $dir/$name ]] || continue
    local says='-'
    if ! running "$dir/$name"; then
      says=stopped all=1
    elif [[ -f $dir/$name/port ]]; then
      n=$(<"$dir/$name/port")
      says=not-ready
      if cluster_ready "$name" 2>/dev/null; then says=ready; else all=1; fi
      says+=" http://127.0.0.1:$n"
    else
      says=running
    fi
    printf '%-16s %s\n' "$name" "$says"
  done
  return "$all"
}

# One role of the cluster: cluster_role VERB NAME.
cluster_role() {
  local verb=$1 name=$2
  grep -qxF "$name" "$dir/names" 2>/dev/null || die "there is no $name in $dir"
  case $verb in
    start)
      cluster_find_custody
      cluster_launch "$name"
      await "$dir/$name" 60 "$name" cluster_ready "$name"
      ;;
    stop) end "$dir/$name" ;;
    kill) kill_now "$dir/$name" ;;
    pause) signal STOP "$dir/$name" ;;
    resume) signal CONT "$dir/$name" ;;
  esac
}
