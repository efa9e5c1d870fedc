# shellcheck shell=bash
# What the commands of this folder share: how they reach the production stack, and how they end when they must.

fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints variable $1: from the environment, else from .env, as compose reads it, else $2.
setting() {
  local value=${!1:-}
  if [ -z "$value" ] && [ -f .env ]; then
    value=$(sed -nE "s/^$1=//; T; s/ +#.*//; s/ +$//; s/^([\"'])(.*)\1\$/\2/; p" .env | tail -n 1)
  fi
  echo "${value:-$2}"
}

# Prints the backups in folder $1, the oldest first: their names are in the order of time.
backups() {
  local file
  for file in "$1"/app-*.dump; do
    if [[ ${file##*/} =~ ^app-[0-9]{8}T[0-9]{6}\.[0-9]{3}Z\.dump$ ]]; then echo "$file"; fi
  done
}

# Waits at most $1 seconds until the command behind it succeeds.
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

# Asks the database, as the service: by TCP, since on its socket file PostgreSQL listens before it is complete.
sql() {
  "${postgres[@]}" psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --host=127.0.0.1 \
    --username=app --dbname=app "$@"
}

# Runs a program in the container, and answers a signal at once. Ctrl-C is for the script: in a session of its own the
# program does not get it.
attend() {
  local status=0
  setsid "${postgres[@]}" "$@" <&0 &
  attended=$!
  wait "$attended" || status=$?
  attended=
  return "$status"
}

# Begins the trap of EXIT: ends what a signal took `attend` away from. A program in a container outlives the client that
# started it, with its locks and its transaction, so its connection is ended first; it may not have one yet.
end_attended() {
  trap '' HUP INT TERM
  set +e # all of the trap has to be done
  local tries=20
  while [ -n "${attended:-}" ] && kill -0 "$attended" 2>/dev/null; do
    if [ $((tries -= 1)) -lt 0 ]; then kill -9 "$attended"; fi
    sql --command="select pg_terminate_backend(pid, 5000) from pg_stat_activity
      where application_name = '$session' and pid <> pg_backend_pid()" </dev/null >/dev/null 2>&1
    sleep 0.1
  done
}

# What compose reads. The files demand a version, which does not matter here. Without an .env the names are those of the
# package: a container's is a host name, of 63 characters at most with `-production-green-10`, and without `_`.
name=$(sed -n '/^\[package\]/,/^$/s/^name = "\(.*\)"/\1/p' Cargo.toml)
label=${name//_/-}
export LC_ALL=C COMPOSE_FILE APP_IMAGE APP_NAME APP_TAG
COMPOSE_FILE=$(setting COMPOSE_FILE docker-compose.prod.yml)
APP_IMAGE=$(setting APP_IMAGE "$name")
APP_NAME=$(setting APP_NAME "${label:0:40}")
APP_TAG=$(setting APP_TAG any)
# What a command for another shell begins with.
# shellcheck disable=SC2034 # by those that source this
compose="COMPOSE_FILE=$COMPOSE_FILE APP_NAME=$APP_NAME APP_IMAGE=$APP_IMAGE APP_TAG=any docker compose"

# The name of this run's connections.
session=deploy-$$-$RANDOM
postgres=(docker compose exec -T --env "PGAPPNAME=$session" postgres)

# What is to be done then is in the trap of EXIT.
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
