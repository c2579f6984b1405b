#!/bin/sh
# Makes the passwords of compose.yaml, each once, in the folder secrets beside this file, or in the one that the argument
# names. Programs of several accounts read the files, so these are readable to all and the folder to its owner alone.
set -eu
umask 022
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 0700 "$folder"
cd "$folder"
for name in service-token staff-token postgres command-api-postgres projector-postgres query-api-postgres \
    projector-valkey query-api-valkey; do
    test -s "$name" || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$name"
done
# The server learns hashes only. Both users write rows; neither may administer the server.
hash() { printf %s "$(cat "$1")" | sha256sum | cut -d' ' -f1; }
rights='~st:* ~{st:* &st:* -@all +@connection +@read +@write +@scripting +@pubsub +time -@dangerous'
cat >valkey-users <<END
user default off
user query-api on #$(hash query-api-valkey) $rights
user projector on #$(hash projector-valkey) $rights +info +config|get +role
END
