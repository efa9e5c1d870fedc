#!/bin/bash
# Run once by the image, on an empty volume. The service owns its database and is not a superuser.
set -euo pipefail

# psql would treat an unreadable or empty file as an empty password.
test -s /run/secrets/database_password && test -r /run/secrets/database_password
psql --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --quiet <<'SQL'
\set password `cat /run/secrets/database_password`
create role app login password :'password';
create database app owner app;
revoke connect on database app from public;
SQL
