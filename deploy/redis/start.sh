#!/bin/sh
# Starts Redis as a cache. The password is read from its file and passed on standard input, so that it never appears in the
# command line or the environment, which `ps` and `docker inspect` show.
set -eu

password=$(sed 's/[\\"]/\\&/g' /run/secrets/redis_password)
test -n "$password"
exec redis-server - <<CONF
requirepass "$password"
bind * -::*
protected-mode yes
save ""
appendonly no
maxmemory 64mb
maxmemory-policy allkeys-lru
CONF
