#!/bin/sh
# Make the databases of MLflow, of its accounts and of Prefect, each with an owner who has no other rights. The image of
# PostgreSQL runs this once, when its volume is new; by hand: with PGHOST, PGUSER and the passwords in the environment.
set -eu
make() {
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set owner="$1" --set password="$2" --dbname postgres <<'EOF'
CREATE ROLE :"owner" LOGIN PASSWORD :'password';
EOF
  owner=$1
  shift 2
  for database in "$@"; do
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set owner="$owner" --set database="$database" \
      --dbname postgres <<'EOF'
CREATE DATABASE :"database" OWNER :"owner";
REVOKE CONNECT ON DATABASE :"database" FROM PUBLIC;
EOF
  done
}
make mlflow "$MLFLOW_DATABASE_PASSWORD" mlflow mlflow_accounts
make prefect "$PREFECT_DATABASE_PASSWORD" prefect
