#!/bin/sh
# Save all databases and both buckets: sh backup.sh FOLDER. Makes FOLDER/TIME and prints it; objects lie in
# FOLDER/objects, each content once for all backups. Servers may go on working meanwhile.
set -eu
umask 077
folder=${1:?a folder for backups}
name=$(date -u +%Y-%m-%dT%H%M%SZ)
mkdir -p "$folder"
unfinished=$(mktemp -d "$folder/.unfinished.XXXXXX")
trap 'rm -rf "$unfinished"' EXIT
# Databases first: whatever they name is in the buckets by then.
for database in mlflow mlflow_accounts prefect; do
  pg_dump --format custom --file "$unfinished/$database.dump" "$database"
done
python "$(dirname "$0")/buckets.py" save "$folder" "$unfinished"
mv "$unfinished" "$folder/$name"
echo "$folder/$name"
