#!/usr/bin/env bash
# A worker in 40 lines of shell, with curl and jq: each job's payload goes to a command on stdin, its stdout is the result.
#
#   pgq serve &
#   QUEUE=shell ./worker.sh 'wc -c'
#   curl localhost:8080/jobs --json '{"queue": "shell", "payload": "hello"}'
set -uo pipefail
url=${PGQUEUE_URL:-http://localhost:8080} queue=${QUEUE:-shell} command=${1:?usage: worker.sh COMMAND}
stopping= beating=
trap 'stopping=1' TERM INT

call() { # call PATH JSON: the answer's body; fails on any error
  curl --silent --fail-with-body --max-time 70 ${PGQUEUE_TOKEN:+-H "Authorization: Bearer $PGQUEUE_TOKEN"} \
    -H 'Content-Type: application/json' -d "$2" "$url$1"
}

beat() { # hold on to the job until we are told to stop
  while sleep 5; do
    call /heartbeats "$(jq -c '{leases: [{job_id, lease_token}], lease: "30s"}' <<<"$1")" >/dev/null
  done
}

while [ -z "$stopping" ]; do
  job=$(call /jobs/lease "$(jq -nc --arg q "$queue" '{queues: [$q], wait: 20, lease: "30s"}')") || { sleep 1; continue; }
  [ -n "$job" ] || continue # 204: nothing came
  beat "$job" & beating=$!
  if result=$(jq -r '.payload | if type == "string" then . else tojson end' <<<"$job" | bash -c "$command" 2>&1); then
    verb=ack body=$(jq -c --arg out "$result" '{lease_token, result: $out}' <<<"$job")
  else
    verb=fail body=$(jq -c --arg out "$result" '{lease_token, error: $out}' <<<"$job")
  fi
  kill "$beating" 2>/dev/null
  for pause in 1 2 4 8; do # the outcome may be told again: the token says whose it is
    call "/jobs/$(jq .job_id <<<"$job")/$verb" "$body" && break
    [ $? -eq 22 ] && break # refused: somebody else has the job now
    sleep "$pause"
  done
  echo
done
