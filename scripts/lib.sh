# shellcheck shell=bash
# Shared by the scripts of this folder: servers, free ports, steps, copies of the checkout, linters.

# Prints the path of the newest PostgreSQL server on this machine; a server in PATH takes precedence. All supported
# versions have two digits, so names sort by version.
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

# Waits at most 5 s, because a starting or stuck engine may never answer and macOS has no `timeout`.
docker_answers() {
  command -v docker >/dev/null || return 1
  docker info >/dev/null 2>&1 &
  local info=$! tries=50
  while kill -0 "$info" 2>/dev/null && [ $((tries -= 1)) -gt 0 ]; do sleep 0.1; done
  kill "$info" 2>/dev/null || :
  wait "$info" 2>/dev/null
}

# Prints `binaries` or `docker`: how to run a server of kind $1. APP_SERVERS forces one of them. Binaries need pgrep, which
# slim images lack, to find the processes of the server.
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

# Prints the first port from $1 on that has no listener on 127.0.0.1.
free_port() {
  local port=$1
  while (exec 9<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  echo "$port"
}

# Opens descriptors 3 and 4, the ends of a pipe. A reader of 4 sees the end of input when this script exits for any
# reason. A process that may outlive the script must not inherit 3.
open_lifeline() {
  local folder
  folder=$(mktemp -d)
  mkfifo "$folder/pipe"
  exec 3<>"$folder/pipe"
  exec 4<"$folder/pipe"
  rm -r "$folder"
}

# Runs scripts/server with these arguments, bound to the lifeline, as in: exec 5< <(private_server redis DIR PORT)
private_server() {
  exec <&4 3>&- 4<&- 5<&- # a separate exec, because in one step bash 3.2 would leave copies open
  exec "$(dirname "${BASH_SOURCE[0]}")/server" "$@"
}

# Reads the first reply of a private server from descriptor $1; $2 is the folder of its data.
await_ready() {
  local answer=
  read -r answer <&"$1" || :
  if [ "$answer" = ready ]; then return; fi
  echo "${answer:-error scripts/server ended}" >&2
  if grep -qiE 'address already in use|port is already allocated' "$2/log"; then
    echo "Another program took the port: try again." >&2
  fi
  return 1
}

# Closes the lifeline and waits until the servers on descriptors 5 and 6 have stopped.
stop_private_servers() {
  exec 3>&-
  { cat <&5; cat <&6; } >/dev/null 2>&1 || :
}

# Runs a step of a check under a heading. If STEP_TIMES names a file, appends the duration of the step to it; steps inside a
# make target are indented.
step() {
  local start=$SECONDS status=0 mark=
  echo "== $*"
  "$@" || status=$? mark=' FAILED'
  if [ -n "${STEP_TIMES:-}" ]; then
    printf '%*s%5d s  %s%s\n' $((9 * ${MAKELEVEL:-0})) '' $((SECONDS - start)) "$*" "$mark" >>"$STEP_TIMES"
  fi
  return "$status"
}

# Prints a field of [package] in Cargo.toml.
package() { sed -n "/^\[package\]/,/^$/s/^$1 = \"\(.*\)\"/\1/p" Cargo.toml; }

# Writes the name of the package into Cargo.lock, which in a new project still has the template's; otherwise commands with
# --locked fail. Nothing else changes. Needs the network if this machine has no registry index yet.
name_in_lock() {
  awk 'BEGIN { RS = "" } !/\nsource = /' Cargo.lock | grep -qx "name = \"$(package name)\"" ||
    cargo update --quiet --workspace --offline 2>/dev/null || cargo update --quiet --workspace
}

# Lists the tracked and untracked, but not ignored, files that match the given pathspecs, separated by NUL.
checkout_files() {
  git ls-files --cached --others --exclude-standard -z "$@" | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi # git lists a deleted file until the deletion is staged
  done
}

# Copies the checkout to folder $1. Files get the current time, so that cargo does not mistake them for files that it
# compiled before.
copy_checkout() {
  mkdir -p "$1"
  checkout_files . | tar --create --null --files-from=- | tar --extract -m --directory "$1"
}

# Succeeds if Python can install scripts/policy.d/linters.txt.
python_is_ready() { python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Installs the linters of scripts/policy.d/linters.txt below target/ and puts them first in PATH. They come from PyPI,
# pinned by version and hash; uv, one of them, installs the others in seconds.
install_linters() {
  local folder=${CARGO_TARGET_DIR:-target}/linters lock=scripts/policy.d/linters.txt
  mkdir -p "$folder"
  folder=$(cd "$folder" && pwd)
  cmp -s "$lock" "$folder/installed" || make_linters "$folder" "$lock"
  PATH=$folder/bin:$PATH
}

# Creates folder $1 from lock file $2.
make_linters() {
  local folder=$1 lock=$2
  if ! python_is_ready && command -v apt-get >/dev/null; then
    echo "Installing python3-venv with apt-get, for the linters in $lock."
    $([ "$(id -u)" = 0 ] || echo sudo) sh -c 'apt-get update --quiet --quiet &&
      apt-get install --quiet --quiet --yes --no-install-recommends python3-venv >/dev/null'
  fi
  python_is_ready || { echo "Python 3.11 or newer with the venv module is required." >&2 && return 1; }
  echo "Installing the linters in $lock from PyPI into $folder"
  rm -rf "$folder"
  python3 -m venv "$folder"
  awk '/^[a-z]/ { found = /^uv==/ } found' "$lock" >"$folder/uv.txt"
  "$folder/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --require-hashes --requirement "$folder/uv.txt"
  VIRTUAL_ENV=$folder "$folder/bin/uv" pip install --quiet --no-cache --only-binary :all: --require-hashes --requirement "$lock"
  cp "$lock" "$folder/installed"
}
