#!/usr/bin/env bash
# Claims a VM, runs the repository's tests in it, copies the result out, releases the VM.
# HEARTH_URL, HEARTH_TOKEN, HEARTH_PROJECT (the project's id); FOLDER: the checkout; TESTS: what runs; RESULT: a file that it writes.
set -euo pipefail

auth=(-H "Authorization: Bearer $HEARTH_TOKEN" -H 'content-type: application/json')
api="$HEARTH_URL/api/v1"

# A key makes the claim safe to repeat: curl tries again where the connection breaks, and gets the same VM.
claim=$(curl -sS --fail-with-body --retry 3 "${auth[@]}" -X POST "$api/projects/$HEARTH_PROJECT/warm-pool/claim" \
    -d "$(jq -n --arg task "curl-$$-$RANDOM" '{taskId: $task, waitMs: 60000}')")
id=$(jq -r .id <<<"$claim")
trap 'curl -sS "${auth[@]}" -X POST "$api/instances/$id/release" >/dev/null' EXIT

ran=$(curl -sS --fail-with-body "${auth[@]}" -X POST "$api/instances/$id/exec" \
    -d "$(jq -n --arg command "$TESTS" --arg cwd "$FOLDER" '{command: $command, cwd: $cwd, timeoutSeconds: 600}')")
jq -r '.stdout, .stderr' <<<"$ran"

curl -sS --fail-with-body "${auth[@]}" -G "$api/instances/$id/files" --data-urlencode "path=$FOLDER/$RESULT" -o "$(basename "$RESULT")"
exit "$(jq -r '.exitCode // 1' <<<"$ran")"
