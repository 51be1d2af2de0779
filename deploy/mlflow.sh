#!/bin/sh
# Start MLflow's server with accounts (arguments: those of `mlflow server`), once its databases answer.
set -eu
umask 077
MLFLOW_AUTH_CONFIG_PATH=$(mktemp)
export MLFLOW_AUTH_CONFIG_PATH
# Whoever has an account may work in every experiment; readers get READ for it, as docs/team.md says.
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<EOF
[mlflow]
default_permission = EDIT
database_uri = $MLFLOW_ACCOUNTS_URI
admin_username = admin
admin_password = $MLFLOW_ADMIN_PASSWORD
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
EOF
exec mlflow server --app-name basic-auth "$@"
