#!/usr/bin/env bash
# A scale on a machine that has no network, brings its own JAX, and gives a command minutes only.
#
#   workflow/offline.sh pack [PACKAGE ...]   here: wheels of all that is locked into offline/, but
#                                            for packages that the machine brings (jax jaxlib ...)
#   workflow/offline.sh run SCALE SECONDS    there, in a copy of this folder: sets up, goes on for so
#                                            long, saves. Again and again, until it says "done"
#
# The last call publishes: offline/SCALE.tar.gz, which has published/SCALE/ and results/bench/, is
# what to bring back. The two machines need the same version of Python.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $*" >&2; exit 1; }

pack() {
  mkdir -p offline/wheels
  # The lock without its hashes: pip wants a hash of this project too otherwise.
  grep -E '^[a-z0-9-]+==' requirements.txt | sed 's/ *\\$//' > offline/constraints.txt
  .venv/bin/pip wheel --quiet --disable-pip-version-check --wheel-dir offline/wheels \
    --constraint offline/constraints.txt . 'setuptools>=77'
  rm -rf offline/wheels/relu_sparsity-*.whl build
  for package in "$@"; do
    rm -f "offline/wheels/${package//-/_}"-[0-9]*.whl
  done
  du -sh offline
}

set_up() {
  [ -e .venv/.complete ] && return
  ls offline/wheels/*.whl > /dev/null 2>&1 || fail "offline/wheels: has no wheels; allowed: what" \
    "'workflow/offline.sh pack' made, with the Python of this machine ($(python3 -V))"
  # What the machine brings is seen in the environment; what it lacks is installed.
  python3 -m venv --system-site-packages .venv
  .venv/bin/pip install --quiet --disable-pip-version-check --no-index --no-deps \
    --find-links offline/wheels offline/wheels/*.whl
  .venv/bin/pip install --quiet --disable-pip-version-check --no-index --no-deps \
    --no-build-isolation --editable .
  touch .venv/.complete
}

run() {
  local scale="$1" seconds="$2" status=0
  [ -d "workflow/profiles/$scale" ] || fail "$scale: has no profile; allowed:" \
    "$(cd workflow/profiles && echo ./*/ | tr -d './')"
  [[ "$seconds" =~ ^[0-9]+$ ]] || fail "SECONDS: $seconds; allowed: a whole number"
  set_up
  # What was killed in the middle of a job left its lock.
  .venv/bin/snakemake --profile "workflow/profiles/$scale" --unlock > /dev/null 2>&1 || true
  # SIGINT lets every run save a checkpoint; the same command goes on from there.
  timeout --signal=INT --kill-after=120 "$seconds" \
    .venv/bin/snakemake --profile "workflow/profiles/$scale" --quiet reason || status=$?
  .venv/bin/relu-sparsity status --scale "$scale" | tail -n 1
  if [ "$status" = 0 ]; then
    .venv/bin/relu-sparsity publish --scale "$scale"
    tar -czf "offline/$scale.tar.gz" "published/$scale" $(ls -d results/bench 2> /dev/null)
    echo "done: offline/$scale.tar.gz"
  elif [ "$status" = 124 ] || [ "$status" = 137 ]; then
    echo "not done yet: the same command goes on"
  else
    fail "the workflow failed; see logs/$scale/"
  fi
}

case "${1:-}" in
  pack) shift && pack "$@" ;;
  run) [ $# = 3 ] || fail "allowed: $0 run SCALE SECONDS" && run "$2" "$3" ;;
  *) sed -n 's/^# \{0,1\}//p' "$0" | head -n 12 && exit 2 ;;
esac
