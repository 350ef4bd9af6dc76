# shellcheck shell=bash disable=SC2154
# MinIO as the object store. Sourced by compose/local; works on `dir`.
#
#   DIR/minio.env   port, credentials, bucket    DIR/minio/  log, pid    DIR/objects/  the data

minio_start() {
  local bucket=custody parent='' temporary=no
  while [[ $# -gt 0 ]]; do
    case $1 in
      --bucket) bucket=${2:?--bucket wants a name} && shift 2 ;;
      --parent) parent=${2:?--parent wants a process id} && shift 2 ;;
      --temporary) temporary=yes && shift ;;
      *) usage "minio start: '$1' is not an option" ;;
    esac
  done
  [[ -x $cache/minio/minio ]] || die "MinIO is not in $cache/minio: run tests/tools.sh minio"
  [[ -f $dir/minio.env ]] || minio_settle
  # shellcheck disable=SC1091
  source "$dir/minio.env"
  # A folder in the root of a single drive is a bucket.
  mkdir -p "$dir/objects/$bucket"
  if ! running "$dir/minio"; then
    MINIO_ROOT_USER=$access_key MINIO_ROOT_PASSWORD=$secret_key MINIO_BROWSER=off \
      MINIO_CALLHOME_ENABLE=off MINIO_UPDATE=off HOME=$dir launch "$dir/minio" \
      "$cache/minio/minio" --quiet server --address "127.0.0.1:$port" "$dir/objects"
  fi
  await "$dir/minio" 60 MinIO minio_ready "$port"
  if [[ -n $parent ]]; then follow "$parent" "$temporary" "$dir/minio"; fi
  printf 'endpoint=http://127.0.0.1:%s\naccess_key=%s\nsecret_key=%s\nbucket=%s\nregion=us-east-1\n' \
    "$port" "$access_key" "$secret_key" "$bucket"
}

# Chooses port and credentials, once for each folder.
minio_settle() {
  printf 'port=%s\naccess_key=%s\nsecret_key=%s\n' "$(port)" "custody-$(secret)" "$(secret)" \
    >"$dir/minio.env.new"
  mv "$dir/minio.env.new" "$dir/minio.env"
}

# minio_ready PORT: whether it says that it serves.
minio_ready() {
  local status
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'GET /minio/health/ready HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3
  read -r -t 2 -u 3 status || status=''
  exec 3>&- 3<&-
  [[ $status == *' 200 '* ]]
}

minio_stop() { end "$dir/minio"; }
minio_kill() { kill_now "$dir/minio"; }
minio_pause() { signal STOP "$dir/minio"; }
minio_resume() { signal CONT "$dir/minio"; }
minio_restart() { minio_stop && minio_start "$@"; }
