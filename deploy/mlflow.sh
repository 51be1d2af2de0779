#!/bin/sh
# Start MLflow's server with accounts (arguments: those of `mlflow server`), once its databases answer.
set -eu
umask 077
MLFLOW_AUTH_CONFIG_PATH=$(mktemp)
export MLFLOW_AUTH_CONFIG_PATH
# Whoever has an account may read; who has the role `engineers`, which prepare.py makes, may also write.
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<EOF
[mlflow]
default_permission = READ
database_uri = $MLFLOW_ACCOUNTS_URI
admin_username = admin
admin_password = $MLFLOW_ADMIN_PASSWORD
# A password is checked by hundreds of milliseconds of arithmetic: once a minute instead of at each request. A changed
# password may be accepted for as long.
auth_cache_ttl_seconds = 60
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
EOF
exec mlflow server --app-name basic-auth "$@"
