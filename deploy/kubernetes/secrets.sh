#!/usr/bin/env bash
# Prints the Secrets of the base, and of the components for Postgres and Redis, with random values:
#
#   deploy/kubernetes/secrets.sh FOLDER | kubectl apply --server-side --filename -
#
# The folder keeps the values, so that a repeated run prints the same; delete a file, and the next run makes another.
# Certificates are signed by an authority in the folder and valid for a year. In production an issuer such as
# cert-manager makes the Secrets `*-tls` instead, with the names below.
set -euo pipefail
folder=${1:?a folder for the values}
namespace=${2:-stampede}
rights=$(cd "$(dirname "$0")/../redis" && pwd)/rights
umask 077
mkdir -p "$folder"
cd "$folder"

random() {
    [ -s "$1" ] || openssl rand -hex 24 >"$1"
    cat "$1"
}

encoded() {
    base64 -w 0 "$1"
}

# Prints the head of a Secret: its name, its type, and whether what follows is text or encoded.
secret() {
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\ntype: %s\n%s:\n' \
        "$1" "$namespace" "$2" "$3"
}

authority() {
    [ -s authority.crt ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
        -subj "/CN=stampede" -keyout authority.key -out authority.crt 2>/dev/null
}

# Prints the certificate of a service, for the names by which it is reached.
certificate() {
    local service=$1 names=
    shift
    for name in "$@"; do
        for suffix in "" ".$namespace" ".$namespace.svc" ".$namespace.svc.cluster.local"; do
            # A wildcard stands for a label in front of at least two others.
            [ "$suffix" ] || [ "${name#\*}" = "$name" ] || continue
            names="$names,DNS:$name$suffix"
        done
    done
    if [ ! -s "$service.crt" ]; then
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$service" \
            -keyout "$service.key" -out "$service.csr" 2>/dev/null
        openssl x509 -req -in "$service.csr" -CA authority.crt -CAkey authority.key -CAcreateserial -days 365 \
            -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "${names#,}") -out "$service.crt" \
            2>/dev/null
        rm "$service.csr"
    fi
    secret "$service-tls" kubernetes.io/tls data
    printf '  tls.crt: %s\n  tls.key: %s\n  ca.crt: %s\n' \
        "$(encoded "$service.crt")" "$(encoded "$service.key")" "$(encoded authority.crt)"
}

token() {
    secret "$1" Opaque stringData
    printf '  token: %s\n' "$(random "$1")"
}

# Prints the name and the password of a login of Postgres. CloudNativePG follows a change of it.
login() {
    secret "postgres-$1" kubernetes.io/basic-auth stringData
    printf '  username: %s\n  password: %s\n' "$2" "$(random "postgres-$1")"
}

password() {
    secret "redis-$1" Opaque stringData
    printf '  password: %s\n' "$(random "redis-$1")"
}

# Prints a line of the server's file of users, which has only the hash of a password.
user() {
    printf '    user %s on #%s' "$1" "$(random "redis-$1" | tr -d '\n' | sha256sum | cut -d ' ' -f 1)"
    sed -n "s/^\\(all\\|$1\\) / /p" "$rights" | tr -d '\n'
    echo
}

authority
certificate command-api command-api services '*.command-api-peers'
certificate query-api query-api services
certificate projector projector
certificate edge edge
certificate redis redis
token service-token
token staff-token
login stampede stampede
login command-api command_api
login projector projector
login query-api query_api
password projector
password query-api
secret redis-users Opaque stringData
printf '  users.acl: |\n    user default off\n'
user query-api
user projector
