#!/bin/sh
# Start SeaweedFS's server (arguments: its own) with three users, each with the rights that it needs.
set -eu
umask 077
users=$(mktemp)
cat > "$users" <<EOF
{"identities": [
  {"name": "admin", "credentials": [{"accessKey": "$S3_ADMIN_KEY", "secretKey": "$S3_ADMIN_SECRET"}],
   "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
  {"name": "mlflow", "credentials": [{"accessKey": "$S3_MLFLOW_KEY", "secretKey": "$S3_MLFLOW_SECRET"}],
   "actions": ["Read:mlflow", "Write:mlflow", "List:mlflow", "Tagging:mlflow"]},
  {"name": "dvc", "credentials": [{"accessKey": "$S3_DVC_KEY", "secretKey": "$S3_DVC_SECRET"}],
   "actions": ["Read:dvc", "Write:dvc", "List:dvc", "Tagging:dvc"]}
]}
EOF
exec weed server -s3 -s3.config="$users" "$@"
