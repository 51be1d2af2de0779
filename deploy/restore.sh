#!/bin/sh
# Bring databases and buckets back to what they were: sh restore.sh FOLDER/TIME, while MLflow and Prefect are stopped.
# The roles must exist (databases.sh makes them). Objects that are newer than the backup stay in the buckets.
set -eu
backup=${1:?a folder that backup.sh printed}
python "$(dirname "$0")/buckets.py" check "$(dirname "$backup")" "$backup"
for database in mlflow mlflow_accounts prefect; do
  pg_restore --clean --if-exists --single-transaction --dbname "$database" "$backup/$database.dump"
done
python "$(dirname "$0")/buckets.py" restore "$(dirname "$backup")" "$backup"
