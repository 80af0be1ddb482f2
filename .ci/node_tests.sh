#!/usr/bin/env bash
# Runs the tests in tests/deploy/long/node on their own node. Passes its arguments to pytest. The
# tests of the manifests mostly wait, so they run in parallel with the tests of single pods. The test
# that stops the kubelet runs last.
set -euo pipefail
tests=tests/deploy/long/node silent=$tests/test_silent_node.py manifests=$tests/test_deployment.py
run=(.venv/bin/python -m pytest --durations=10)
output=$(mktemp)
"${run[@]}" "$manifests" "$@" >"$output" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null || true; rm -f "$output"' EXIT
code=0
"${run[@]}" "$tests" --ignore="$manifests" --ignore="$silent" "$@" || code=$?
wait "$beside" || code=$?
cat "$output"
"${run[@]}" "$silent" "$@" || code=$?
exit "$code"
