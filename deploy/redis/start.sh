#!/bin/sh
# Starts Redis as a cache. The password comes from its file by way of standard input: neither the command line nor
# the environment, which `ps` and `docker inspect` show, ever has it.
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
