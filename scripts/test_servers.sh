#!/usr/bin/env bash
# Run the conformance and integration tests of the store, the API and the worker on servers of every kind, or of the kinds
# that are given: valkey16 (16 partitions on one server), cluster (six nodes, 16 partitions), sentinel, redis7, redis7-tls.
# One line a kind; what failed is shown after it. PYTEST_ARGS are handed on.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python

# What meets a server of the kind: the rest would only repeat itself.
mapfile -t integration < <(grep -lE 'valkey_url|store_support' tests/integration/test_*.py)
kinds=("$@")
[ ${#kinds[@]} -gt 0 ] || kinds=(cluster sentinel redis7 redis7-tls valkey16)
failed=0
passed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for kind in "${kinds[@]}"; do
  server=$kind partitions=
  if [ "$kind" = valkey16 ]; then server=valkey partitions=16; fi
  started=$SECONDS
  # shellcheck disable=SC2086 # arguments are words
  if PENSTOCK_TEST_SERVER=$server PENSTOCK_TEST_PARTITIONS=$partitions \
    $python -m pytest -n "${TEST_PROCESSES:-2}" -q ${PYTEST_ARGS:-} tests/conformance "${integration[@]}" >"$log" 2>&1; then
    verdict=ok
    passed=$((passed + 1))
  else
    verdict=FAILED
    failed=$((failed + 1))
  fi
  printf '%-10s %-6s %s (%s s)\n' "$kind" "$verdict" "$(tail -n 1 "$log" | sed 's/^=* *//; s/ in .*//')" $((SECONDS - started))
  if [ "$verdict" = FAILED ]; then tail -n 200 "$log"; fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
