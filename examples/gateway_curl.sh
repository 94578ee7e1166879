#!/bin/sh
# Ask through the gateway with curl: only the address and the key are the gateway's.
#   stillhouse serve gateway.yaml
#   sh examples/gateway_curl.sh http://127.0.0.1:8080/v1 reviews KEY
set -eu
base=${1:-http://127.0.0.1:8080/v1} task=${2:-reviews} key=${3:-none}
ask="{\"model\": \"$task\", \"messages\": [{\"role\": \"user\", \"content\": \"A gem of a film.\"}]"

post() { # PATH BODY [OPTIONS]
  path=$1 body=$2
  shift 2
  curl -sS --fail-with-body "$@" "$base$path" -H "Authorization: Bearer $key" \
    -H 'Content-Type: application/json' -H 'x-stillhouse-user: ann' -d "$body"
}

echo '# the tasks that the key may name'
curl -sS --fail-with-body "$base/models" -H "Authorization: Bearer $key"
echo
echo '# a whole answer; its headers say who gave it'
headers=$(mktemp)
trap 'rm -f "$headers"' EXIT
post /chat/completions "$ask}" -D "$headers"
echo
grep -i '^x-' "$headers" | tr -d '\r'
echo '# a streamed one'
post /chat/completions "$ask, \"stream\": true}" -N
echo '# what the user thought of the first'
request=$(sed -n 's/^x-request-id: *\([^[:space:]]*\).*/\1/ip' "$headers")
post /feedback "{\"request_id\": \"$request\", \"thumbs\": \"up\"}"
echo
