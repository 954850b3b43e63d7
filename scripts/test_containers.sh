#!/usr/bin/env bash
# Build the image and run compose.yaml for real; the last line counts. Takes about five minutes, the second time three.
#
# Uses the Docker engine that runs. Where none does, scripts/docker-engine makes one (Debian, root), which is stopped at the end.
# Without either the tests are skipped, or have failed if PENSTOCK_TEST_REQUIRE=all. Arguments choose tests by name.
set -euo pipefail
cd "$(dirname "$0")/.."

give_up() {
  echo "test-containers: $*" >&2
  if [ "${PENSTOCK_TEST_REQUIRE:-}" = all ]; then
    echo "0 passed, 1 failed"
    exit 1
  fi
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
}

python=$(command -v .venv/bin/python || command -v python3 || true)
case $python in
"") give_up "skipped: needs Python 3.11 or newer on PATH" ;;
/*) ;;
*) python=$PWD/$python ;;
esac
image=penstock:test
build=()

if ! docker version >/dev/null 2>&1; then
  [ "$(id -u)" -eq 0 ] || give_up "skipped: no Docker engine answers, and without root none can be made"
  command -v apt-get >/dev/null && [ "$(uname -sm)" = "Linux x86_64" ] ||
    give_up "skipped: no Docker engine answers, and one is made only on Debian on x86-64"
  echo "No Docker engine answers; making one with scripts/docker-engine ..."
  trap 'scripts/docker-engine down' EXIT
  trap 'exit 130' INT TERM
  log=$(mktemp)
  if ! { scripts/docker-engine up && scripts/docker-engine base; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    give_up "skipped: scripts/docker-engine could not make a Docker engine (see above)"
  fi
  rm -f "$log"
  eval "$(scripts/docker-engine env)"
  # The base image that it made, and pip's index by the host's network.
  build=(--network host --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm)
fi
docker compose version >/dev/null 2>&1 || docker-compose version >/dev/null 2>&1 ||
  give_up "skipped: needs Docker Compose v2, or docker-compose 1.29"

echo "Building $image ..."
DOCKER_BUILDKIT=1 docker build --quiet "${build[@]}" --tag $image . || {
  echo "0 passed, 1 failed"
  exit 1
}
"$python" -m scripts.container_tests "$image" "$@"
