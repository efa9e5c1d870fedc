# shellcheck shell=bash disable=SC2154 # The variables are those of scripts/server.
# Functions with which scripts/server runs PostgreSQL or Redis in a container.

name=$(container_name "$kind" "$dir")
container= # set once this script has created the container
owner_label=app-server-$HOSTNAME-$(id -u) # distinguishes users of a shared engine, whose folders are not visible here

engine() {
  docker "$@" >/dev/null 2>>"$log"
}

launch() {
  engine start "$container"
}

running() {
  [ "$(docker inspect --format '{{.State.Running}}' "$container" 2>/dev/null)" = true ]
}

ready() {
  case $kind in
    # Over TCP, because the image listens only on a socket file during initialization.
    postgres) docker exec "$container" pg_isready --quiet --host=127.0.0.1 2>/dev/null ;;
    redis) redis_accepts_password ;;
  esac
}

server_pid() {
  docker inspect --format '{{.State.Pid}}' "$container"
}

pause() {
  engine pause "$container"
}

resume() {
  engine unpause "$container"
}

crash() {
  engine kill "$container"
}

stop() {
  resume || : # Needed before a stop; fails if the container is not paused.
  engine stop -t 10 "$container"
}

discard() {
  [ -n "$container" ] || return 0
  docker logs "$container" >>"$log" 2>&1 || :
  engine rm --force --volumes "$container" || :
}

prepare_redis() {
  echo "requirepass $quoted_password" >"$dir/redis.conf"
  # As root, because the image's user cannot read the file.
  create --publish "127.0.0.1:$port:6379" --volume "$dir/redis.conf:/redis.conf:ro" --user root \
    --entrypoint redis-server "${REDIS_IMAGE:-redis:8}" /redis.conf --bind 0.0.0.0 --save ''
}

prepare_postgres() {
  local volume=$name-$RANDOM$RANDOM
  if [ -s "$dir/volume" ]; then volume=$(cat "$dir/volume"); else echo "$volume" >"$dir/volume"; fi
  remove_orphans
  engine volume create --label "$owner_label=$dir" "$volume" || fail "no Docker volume"
  echo "POSTGRES_PASSWORD=$(cat "$dir/password")" >"$dir/environment"
  # shellcheck disable=SC2086 # POSTGRES_ARGS is a list of words.
  create --publish "127.0.0.1:$port:5432" --volume "$volume:/data" --env PGDATA=/data/pg --env POSTGRES_USER=app \
    --env-file "$dir/environment" --env POSTGRES_INITDB_ARGS='--encoding=UTF8 --locale=C --no-sync' \
    "${POSTGRES_IMAGE:-postgres:17}" postgres ${POSTGRES_ARGS:-}
}

create() {
  # Removes a container that a stopped engine or machine left behind. A running container stays.
  docker rm --volumes "$name" >/dev/null 2>&1 || :
  engine create --name "$name" "$@" ||
    fail "failed to create the container; if an earlier run left $name running: docker rm --force $name"
  container=$name
}

# Removes volumes, which contain the password, whose DIR has been removed.
remove_orphans() {
  local volume owner
  docker volume ls --filter "label=$owner_label" --format "{{.Name}} {{.Label \"$owner_label\"}}" |
    while read -r volume owner; do
      if [ "$(cat "$owner/volume" 2>/dev/null)" != "$volume" ]; then engine volume rm "$volume" || :; fi
    done
}
