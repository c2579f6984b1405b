#!/bin/sh
# Makes the passwords of compose.yaml, each once, in the folder secrets beside this file, or in the one that the argument
# names. Programs of several accounts read the files, so these are readable to all and the folder to its owner alone.
set -eu
umask 022
folder=${1:-$(dirname "$0")/secrets}
rights=$(cd "$(dirname "$0")/../redis" && pwd)/rights
mkdir -p "$folder"
chmod 0700 "$folder"
cd "$folder"
for name in service-token staff-token postgres command-api-postgres projector-postgres query-api-postgres \
    projector-valkey query-api-valkey; do
    test -s "$name" || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$name"
done
# The server learns hashes only. Both users write rows; neither may administer the server.
user() {
    printf 'user %s on #%s' "$1" "$(tr -d '\n' <"$1-valkey" | sha256sum | cut -d' ' -f1)"
    sed -n "s/^\\(all\\|$1\\) / /p" "$rights" | tr -d '\n'
    echo
}
{
    echo user default off
    user query-api
    user projector
} >valkey-users
