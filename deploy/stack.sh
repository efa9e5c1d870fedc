# shellcheck shell=bash
# Shared by the commands of this folder: access to the production stack, settings, and cleanup on signals.

fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints variable $1: from the environment, otherwise from .env as compose reads it, otherwise $2.
setting() {
  local value=${!1:-}
  if [ -z "$value" ] && [ -f .env ]; then
    value=$(sed -nE "s/^$1=//; T; s/ +#.*//; s/ +$//; s/^([\"'])(.*)\1\$/\2/; p" .env | tail -n 1)
  fi
  echo "${value:-$2}"
}

# Prints the backups in folder $1, oldest first: the names sort by time.
backups() {
  local file
  for file in "$1"/app-*.dump; do
    if [[ ${file##*/} =~ ^app-[0-9]{8}T[0-9]{6}\.[0-9]{3}Z\.dump$ ]]; then echo "$file"; fi
  done
}

# Waits at most $1 seconds until the given command succeeds.
within() {
  local end=$((SECONDS + $1))
  until "${@:2}"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}

milliseconds() {
  date +%s%3N
}

# Prints the seconds since $1, which is in milliseconds.
seconds_since() {
  local passed=$(($(milliseconds) - $1))
  printf '%d.%03d s' $((passed / 1000)) $((passed % 1000))
}

# Queries the database as the service does. Over TCP, because PostgreSQL opens its socket file before it is initialized.
sql() {
  "${postgres[@]}" psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --host=127.0.0.1 \
    --username=app --dbname=app "$@"
}

# Runs a program in the container and reacts to a signal immediately. setsid keeps Ctrl-C from the program, so that the
# script can end it.
attend() {
  local status=0
  setsid "${postgres[@]}" "$@" <&0 &
  attended=$!
  wait "$attended" || status=$?
  attended=
  return "$status"
}

# First step of each EXIT trap: ends the program that `attend` was running when a signal arrived. A program in a container
# outlives the client that started it, with its locks and its transaction. So its connection is terminated first; the
# loop repeats, because the program may not have connected yet.
end_attended() {
  trap '' HUP INT TERM
  set +e # the rest of the trap has to run
  local tries=20
  while [ -n "${attended:-}" ] && kill -0 "$attended" 2>/dev/null; do
    if [ $((tries -= 1)) -lt 0 ]; then kill -9 "$attended"; fi
    sql --command="select pg_terminate_backend(pid, 5000) from pg_stat_activity
      where application_name = '$session' and pid <> pg_backend_pid()" </dev/null >/dev/null 2>&1
    sleep 0.1
  done
}

# Variables of the compose files, which require a version even where it does not matter. Without .env the names come from
# the package. A container's name is also its host name: at most 63 characters with `-production-green-10`, without `_`.
name=$(sed -n '/^\[package\]/,/^$/s/^name = "\(.*\)"/\1/p' Cargo.toml)
label=${name//_/-}
export LC_ALL=C COMPOSE_FILE APP_IMAGE APP_NAME APP_TAG
COMPOSE_FILE=$(setting COMPOSE_FILE docker-compose.prod.yml)
APP_IMAGE=$(setting APP_IMAGE "$name")
APP_NAME=$(setting APP_NAME "${label:0:40}")
APP_TAG=$(setting APP_TAG any)
# Prefix of the commands that the scripts suggest to the operator.
# shellcheck disable=SC2034 # used by the scripts that source this file
compose="COMPOSE_FILE=$COMPOSE_FILE APP_NAME=$APP_NAME APP_IMAGE=$APP_IMAGE APP_TAG=any docker compose"

# Name of the database connections of this run.
session=deploy-$$-$RANDOM
postgres=(docker compose exec -T --env "PGAPPNAME=$session" postgres)

# Exit on a signal, so that the EXIT trap runs.
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
