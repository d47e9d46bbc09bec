#!/usr/bin/env bash
# Starts this host's part of a job, whenever the host boots. `relu-sparsity tpu run` fills in the
# lines below and gives this script to the slice; nothing needs a connection that stays open.
set -uo pipefail
export RELU_SPARSITY_STORE=@STORE@
export RELU_SPARSITY_SLICE=@NAME@
attempt=@ATTEMPT@
python=@PYTHON@

job="${RELU_SPARSITY_STORE%/}/jobs/$RELU_SPARSITY_SLICE"
work="${RELU_SPARSITY_WORK:-/var/lib/relu-sparsity}/$RELU_SPARSITY_SLICE"
mkdir -p "$work/project" && cd "$work" || exit 1

again() {  # Tries a command until it goes through: networks come up late.
  until "$@"; do sleep 10; done
}

fetch() {
  case "$1" in
    gs://*) gcloud storage cp "$1" "$2" ;;
    *) cp "$1" "$2" ;;
  esac
}

install_packages() {
  python3 -m pip install --quiet --upgrade --target "$work/uv" uv &&
    PYTHONPATH="$work/uv" python3 -m uv venv --quiet --clear --python 3.11 "$work/venv" &&
    PYTHONPATH="$work/uv" python3 -m uv pip install --quiet --python "$work/venv/bin/python" \
      --require-hashes -r "$work/project/requirements-tpu.txt" &&
    touch "$work/venv/.complete"
}

worker="${TPU_WORKER_ID:-}"
if [ -z "$worker" ]; then
  metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes
  worker=$(again curl -sf -H 'Metadata-Flavor: Google' "$metadata/agent-worker-number")
fi
again fetch "$job/bundle.tar.gz" bundle.tar.gz
tar -xzf bundle.tar.gz -C project || exit 1
if [ -z "$python" ]; then
  python="$work/venv/bin/python"
  [ -e "$work/venv/.complete" ] || again install_packages
fi
cd project || exit 1
export PYTHONPATH="$PWD/src"
exec "$python" -m relu_sparsity.cli tpu host --attempt "$attempt" --worker "$worker"
