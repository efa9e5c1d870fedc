#!/bin/bash
# Run once by the image, on an empty volume: the service owns a database, and is not the superuser.
set -euo pipefail

psql --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --quiet <<'SQL'
\set password `cat /run/secrets/database_password`
create role app login password :'password';
create database app owner app;
revoke connect on database app from public;
SQL
