# shellcheck shell=bash disable=SC2154 # The variables are those of scripts/server.
# Functions with which scripts/server runs an installed PostgreSQL or Redis.

pid=

launch() {
  # Job control gives the server a process group of its own, which Ctrl-C in a terminal does not reach.
  set -m
  "${command_line[@]}" </dev/null >>"$log" 2>&1 &
  pid=$!
  set +m
}

running() {
  [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null
}

# Succeeds if this very server is ready: another program may have taken the port.
ready() {
  case $kind in
    postgres) [ "$(sed -n '1p;8p' "$data/postmaster.pid" 2>/dev/null | tr -d ' \n')" = "${pid}ready" ] ;;
    redis) redis_accepts_password ;;
  esac
}

server_pid() {
  echo "$pid"
}

# Sends signal $1 to the server and its children, and prints the children. The children of PostgreSQL have process groups
# of their own. The parent is stopped first, so that it does not start more children.
signal_all() {
  local child
  kill -s STOP "$pid"
  for child in $(pgrep -P "$pid"); do
    kill -s "$1" "$child" 2>/dev/null || continue
    echo "$child"
  done
  kill -s "$1" "$pid"
}

pause() {
  signal_all STOP >/dev/null
}

resume() {
  signal_all CONT >/dev/null
}

crash() {
  local child children
  children=$(signal_all KILL)
  wait "$pid" 2>/dev/null || :
  # PostgreSQL does not start while an old process holds its shared memory.
  for child in $children; do
    while [[ $(ps -o stat= -p "$child") == [!Z]* ]]; do sleep 0.02; done
  done
}

stop() {
  local deadline=$((SECONDS + 10))
  resume
  kill -s "$stop_signal" "$pid"
  while running; do
    if [ "$SECONDS" -ge "$deadline" ]; then crash; fi
    sleep 0.02
  done
}

discard() {
  :
}

prepare_redis() {
  printf '%s\n' "bind 127.0.0.1" "port $port" "requirepass $quoted_password" 'save ""' >"$dir/redis.conf"
  command_line=("$(redis_binary)" "$dir/redis.conf")
  stop_signal=TERM
}

prepare_postgres() {
  local bin
  bin=$(dirname "$(postgres_binary)")
  data=$dir/data
  as=(env)
  if [ "$(id -u)" = 0 ]; then use_other_user; fi
  if ! [ -d "$data" ]; then
    rm -rf "$data.new"
    mkdir "$data.new"
    if [ "$(id -u)" = 0 ]; then chown "$user" "$data.new"; fi
    # Through a pipe, because the other user cannot read the password file.
    "${as[@]}" bash -c 'exec "$@" --pwfile=<(cat)' initdb "$bin/initdb" --pgdata="$data.new" --username=app \
      --auth=scram-sha-256 --encoding=UTF8 --locale=C --no-sync <"$dir/password" >>"$log" 2>&1 || fail "initdb failed"
    echo 'CREATE DATABASE app' |
      "${as[@]}" "$bin/postgres" --single -D "$data.new" -c fsync=off postgres >>"$log" 2>&1 || fail "no database"
    mv "$data.new" "$data"
  fi
  # shellcheck disable=SC2206 # POSTGRES_ARGS is a list of words.
  command_line=("${as[@]}" "$bin/postgres" -D "$data" -p "$port" -c listen_addresses=127.0.0.1
    -c unix_socket_directories= ${POSTGRES_ARGS:-})
  stop_signal=INT # does not wait for clients to disconnect
}

# PostgreSQL does not run as root, and another user may have no access to DIR, for example below /root. Then the data is in
# /var/tmp, and DIR/data is a link to it.
use_other_user() {
  command -v setpriv >/dev/null || fail "PostgreSQL does not run as root: use another user, or install setpriv"
  user=postgres
  id "$user" >/dev/null 2>&1 || user=nobody
  as=(setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups)

  if [ -L "$data" ] && [ -d "$data" ]; then
    data=$(readlink "$data")
  elif ! [ -d "$data" ] && ! "${as[@]}" test -x "$dir"; then
    remove_orphans
    local home
    home=$(mktemp -d /var/tmp/app-servers-XXXXXX)
    chmod 0711 "$home"
    ln -sfn "$home/data" "$data"
    echo "$dir" >"$home/dir"
    data=$home/data
  fi
}

# Removes data in /var/tmp whose DIR has been removed.
remove_orphans() {
  local home
  for home in /var/tmp/app-servers-*; do
    if [ -f "$home/dir" ] && [ "$(readlink "$(cat "$home/dir")/data")" != "$home/data" ]; then rm -rf "$home"; fi
  done
}
