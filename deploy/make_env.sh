#!/bin/sh
# Print an .env for compose.yaml and the systemd units, with new passwords: sh make_env.sh HOST > .env
set -eu
host=${1:?the host name in the address and in the certificate, such as mlops.example.org}
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
cat <<EOF
# Passwords of the servers. Keep this file from others: chmod 600.
TEAM_HOST=$host
# A folder with server.crt (the certificate, then those of its issuers) and server.key.
TLS_FOLDER=./tls
MLFLOW_PORT=5000
PREFECT_PORT=4200
S3_PORT=9000

POSTGRES_PASSWORD=$(secret)
MLFLOW_DATABASE_PASSWORD=$(secret)
PREFECT_DATABASE_PASSWORD=$(secret)

# The object store's three users: MLflow's, with its own bucket; DVC's, with another; and one who sees both.
S3_MLFLOW_KEY=mlflow
S3_MLFLOW_SECRET=$(secret)
S3_DVC_KEY=dvc
S3_DVC_SECRET=$(secret)
S3_ADMIN_KEY=admin
S3_ADMIN_SECRET=$(secret)

# The administrator of MLflow, who makes the others' accounts.
MLFLOW_ADMIN_PASSWORD=$(secret)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret)
# The account of the workers, made by make_worker_account.py.
WORKER_MLFLOW_PASSWORD=$(secret)

# Prefect has one name and password for all.
PREFECT_AUTH=team:$(secret)

# The project's repository, from which the workers clone; a read-only token may stand in it.
PNEUMOFLOW_REPOSITORY=
EOF
