# shellcheck shell=bash disable=SC2154
# Apache Kafka in KRaft mode, one or three brokers that are controllers too. Sourced by
# compose/local; works on `dir`.
#
#   DIR/kafka.env      brokers, ports, password; chosen once
#   DIR/broker-N/      server.properties, data, log, pid
#   DIR/tls/           with --sasl: a CA, the brokers' and a client's certificate, made once
#
# With --sasl clients speak SASL_SSL (SCRAM-SHA-512, SCRAM-SHA-256, and OAUTHBEARER with unsigned
# tokens), or TLS with a client certificate on the listener `mtls`. Controllers talk in the clear on
# loopback. Topics are never made by asking for them.

kafka_start() {
  local wanted=1 sasl=no advertise='' parent='' temporary=no n
  while [[ $# -gt 0 ]]; do
    case $1 in
      --brokers) wanted=${2:?--brokers wants 1 or 3} && shift 2 ;;
      --sasl) sasl=yes && shift ;;
      --advertise) advertise=${2:?--advertise wants a port} && shift 2 ;;
      --parent) parent=${2:?--parent wants a process id} && shift 2 ;;
      --temporary) temporary=yes && shift ;;
      *) usage "kafka start: '$1' is not an option" ;;
    esac
  done
  [[ $wanted == 1 || $wanted == 3 ]] || usage "--brokers wants 1 or 3"
  [[ -z $advertise || $wanted == 1 ]] || usage "--advertise is for a single broker"
  command -v java >/dev/null || die "java is not installed: run tests/tools.sh kafka"
  compgen -G "$cache/kafka/libs/kafka_*.jar" >/dev/null ||
    die "Kafka is not in $cache/kafka: run tests/tools.sh kafka"
  [[ -f $dir/kafka.env ]] || kafka_settle "$wanted" "$sasl" "$advertise"
  kafka_settings
  for ((n = 1; n <= brokers; n++)); do kafka_launch "$n"; done
  for ((n = 1; n <= brokers; n++)); do
    await "$dir/broker-$n" 90 "Kafka broker $n" grep -q 'Kafka Server started' "$dir/broker-$n/log"
  done
  if [[ -n $parent ]]; then
    follow "$parent" "$temporary" "$dir"/broker-*
  fi
  kafka_print
}

# What was chosen when the folder was made.
kafka_settings() {
  [[ -f $dir/kafka.env ]] || die "there is no Kafka in $dir"
  # shellcheck disable=SC1091
  source "$dir/kafka.env"
}

kafka_print() {
  local n list=()
  for ((n = 1; n <= brokers; n++)); do list+=("127.0.0.1:${advertised:-$(kafka_value "client_port_$n")}"); done
  printf 'bootstrap=%s\n' "$(IFS=, && echo "${list[*]}")"
  [[ -z ${advertised:-} ]] || printf 'direct=127.0.0.1:%s\n' "$(kafka_value client_port_1)"
  [[ $sasl == yes ]] || return 0
  printf 'ca=%s\nusername=custody\npassword=%s\n' "$dir/tls/ca.pem" "$password"
  printf 'mtls=127.0.0.1:%s\ncertificate=%s\nkey=%s\n' \
    "$mtls_port_1" "$dir/tls/client.pem" "$dir/tls/client.key"
}

# Chooses ports, ids and the password, writes each broker's properties and formats its storage.
kafka_settle() {
  local n formats=()
  {
    printf 'brokers=%s\nsasl=%s\nadvertised=%s\npassword=%s\ncluster_id=%s\n' \
      "$1" "$2" "$3" "$(secret)" "$(kafka_id)"
    for ((n = 1; n <= $1; n++)); do
      printf 'client_port_%s=%s\ncontroller_port_%s=%s\ndirectory_%s=%s\n' \
        "$n" "$(port)" "$n" "$(port)" "$n" "$(kafka_id)"
      [[ $2 == no ]] || printf 'mtls_port_%s=%s\n' "$n" "$(port)"
    done
  } >"$dir/kafka.env.new"
  # shellcheck disable=SC1091
  source "$dir/kafka.env.new"
  if [[ $sasl == yes ]]; then kafka_certificates; fi
  for ((n = 1; n <= brokers; n++)); do
    mkdir -p "$dir/broker-$n"
    kafka_properties "$n" >"$dir/broker-$n/server.properties"
    kafka_format "$n" &
    formats+=($!)
  done
  for n in "${formats[@]}"; do wait "$n" || exit 1; done
  mv "$dir/kafka.env.new" "$dir/kafka.env"
}

# 16 random bytes as Kafka writes an id; a leading dash would look like an option.
kafka_id() { head -c 16 /dev/urandom | base64 | tr '+/' 'AB' | tr -d '='; }

# The Java of a broker and of its tools; with the classes as tests/tools.sh has laid them out, where
# they fit this Java, a broker takes half the processor time to start.
kafka_java=(java -Xshare:auto -XX:+UseSerialGC)
if [[ -f $cache/kafka/classes.jsa ]]; then
  kafka_java+=("-XX:SharedArchiveFile=$cache/kafka/classes.jsa" -Xlog:cds=off -Xlog:cds+dynamic=off)
fi
kafka_java+=(-cp "$cache/kafka/libs/*")

# kafka_format N: storage of broker N, with the account that clients and brokers use.
kafka_format() {
  local options=(--config "$dir/broker-$1/server.properties" -t "$cluster_id") voters=() n
  for ((n = 1; n <= brokers; n++)); do
    voters+=("$n@127.0.0.1:$(kafka_value "controller_port_$n"):$(kafka_value "directory_$n")")
  done
  options+=(--initial-controllers "$(IFS=, && echo "${voters[*]}")")
  [[ $sasl == no ]] || options+=(
    --add-scram "SCRAM-SHA-512=[name=custody,password=$password]"
    --add-scram "SCRAM-SHA-256=[name=custody,password=$password]")
  "${kafka_java[@]}" -XX:TieredStopAtLevel=1 kafka.tools.StorageTool format "${options[@]}" \
    >"$dir/broker-$1/format.log" 2>&1 </dev/null ||
    { cat "$dir/broker-$1/format.log" >&2 && die "Kafka's storage could not be formatted"; }
}
kafka_value() { printf '%s' "${!1}"; }

# kafka_launch N: starts broker N unless it runs.
kafka_launch() {
  if running "$dir/broker-$1"; then return; fi
  launch "$dir/broker-$1" "${kafka_java[@]}" -Xms128m -Xmx512m \
    -Dorg.slf4j.simpleLogger.showDateTime=true \
    -Dorg.slf4j.simpleLogger.dateTimeFormat="yyyy-MM-dd'T'HH:mm:ss.SSS" \
    kafka.Kafka "$dir/broker-$1/server.properties"
}

kafka_properties() {
  local n=$1 controllers=() i replicas=$brokers listener=PLAINTEXT
  for ((i = 1; i <= brokers; i++)); do controllers+=("127.0.0.1:$(kafka_value "controller_port_$i")"); done
  if [[ $sasl == yes ]]; then listener=SASL_SSL; fi
  local listeners="$listener://127.0.0.1:$(kafka_value "client_port_$n")"
  if [[ $sasl == yes ]]; then listeners+=",MTLS://127.0.0.1:$(kafka_value "mtls_port_$n")"; fi
  local told=$listeners
  [[ -z ${advertised:-} ]] || told="$listener://127.0.0.1:$advertised"
  cat <<PROPERTIES
process.roles=broker,controller
node.id=$n
controller.quorum.bootstrap.servers=$(IFS=, && echo "${controllers[*]}")
controller.listener.names=CONTROLLER
listeners=$listeners,CONTROLLER://127.0.0.1:$(kafka_value "controller_port_$n")
advertised.listeners=$told,CONTROLLER://127.0.0.1:$(kafka_value "controller_port_$n")
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,MTLS:SSL
inter.broker.listener.name=$listener
log.dirs=$dir/broker-$n/data
auto.create.topics.enable=false
default.replication.factor=$replicas
offsets.topic.replication.factor=$replicas
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$((replicas > 1 ? 2 : 1))
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=$((replicas > 1 ? 2 : 1))
min.insync.replicas=$((replicas > 1 ? 2 : 1))
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=6000
log.cleaner.dedupe.buffer.size=16777216
PROPERTIES
  if [[ $sasl == yes ]]; then kafka_security; fi
}

kafka_security() {
  local modules=org.apache.kafka.common.security
  cat <<PROPERTIES
ssl.keystore.type=PEM
ssl.keystore.location=$dir/tls/broker.all.pem
ssl.truststore.type=PEM
ssl.truststore.location=$dir/tls/ca.pem
listener.name.mtls.ssl.client.auth=required
sasl.enabled.mechanisms=SCRAM-SHA-512,SCRAM-SHA-256,OAUTHBEARER
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=$modules.scram.ScramLoginModule required username="custody" password="$password";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=$modules.scram.ScramLoginModule required;
listener.name.sasl_ssl.oauthbearer.sasl.jaas.config=$modules.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="custody";
PROPERTIES
}

# A CA for this folder alone, a certificate for the brokers, one for a client.
kafka_certificates() {
  local tls="$dir/tls" name
  mkdir -p "$tls"
  (
    cd "$tls"
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj '/CN=Custody test CA' \
      -keyout ca.key -out ca.pem
    for name in broker client; do
      openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout "$name.key" -out "$name.csr"
      openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 \
        -extfile <(printf 'subjectAltName=IP:127.0.0.1,DNS:localhost') -out "$name.pem"
    done
    cat broker.key broker.pem ca.pem >broker.all.pem
    chmod 600 ./*.key broker.all.pem
  ) >"$tls/log" 2>&1 || { cat "$tls/log" >&2 && die "the certificates could not be made"; }
}

# each VERB [N]: does it to broker N, or to every one.
kafka_each() {
  local verb=$1 n
  kafka_settings
  if [[ -n ${2:-} ]]; then
    [[ -d $dir/broker-$2 ]] || die "there is no broker $2 in $dir"
    "$verb" "$dir/broker-$2"
  else
    for ((n = 1; n <= brokers; n++)); do "$verb" "$dir/broker-$n"; done
  fi
}
kafka_stop() {
  kafka_settings
  if [[ -n ${1:-} ]]; then kafka_each end "$1"; else end "$dir"/broker-*; fi
}
kafka_kill() { kafka_each kill_now "${1:-}"; }
kafka_pause() { kafka_each stop_clock "${1:-}"; }
kafka_resume() { kafka_each go_on "${1:-}"; }
stop_clock() { signal STOP "$1"; }
go_on() { signal CONT "$1"; }
# Takes all that the brokers hold, as if their disks were new.
kafka_wipe() {
  local n
  kafka_each kill_now
  for ((n = 1; n <= brokers; n++)); do
    rm -rf "$dir/broker-$n/data"
    kafka_format "$n"
  done
}
kafka_restart() { kafka_each end "${1:-}" && kafka_start; }
