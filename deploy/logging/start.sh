#!/bin/sh
# Starts the collector. syslog-ng.conf inserts these variables as text, so they must not contain a string terminator.
set -eu

LOG_STORE_AUTHORIZATION=$(cat /run/secrets/log_store_authorization)
for value in "$LOG_STORE_URL" "$LOG_STORE_AUTHORIZATION" "$LOG_PROJECT" "$LOG_BUFFER_BYTES"; do
  case $value in
    *[!\ -~]* | *[\"\\\`\$]*)
      echo 'LOG_STORE_URL, its secret file and the project may contain only printable ASCII without " \ ` and $' >&2
      exit 78
      ;;
  esac
done

# Without a log store, the lines of all services go to the collector's standard output.
LOG_DESTINATION=store
if [ -z "$LOG_STORE_URL" ]; then LOG_DESTINATION=stdout; fi
export LOG_DESTINATION LOG_STORE_AUTHORIZATION

# --no-caps: the container has no capabilities to drop.
exec syslog-ng --foreground --no-caps --control=/run/syslog-ng.ctl --pidfile=/run/syslog-ng.pid
