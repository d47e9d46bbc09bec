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

put() {
  case "$2" in
    gs://*) gcloud storage cp "$1" "$2" ;;
    *) mkdir -p "$(dirname "$2")" && cp "$1" "$2" ;;
  esac
}

refuse() {  # Tells the controller why no other try would help, as host.py does later.
  local message
  message="$(printf '%s' "$1" | tr '\n\t"\\' "  ''" | LC_ALL=C tr -cd '\040-\176')"
  printf '{"worker": %s, "num_hosts": %s, "state": "failed", "time": %s, "restarts": 0,
    "message": "%s"}\n' "$worker" "$num_hosts" "$(date +%s)" "$message" > report.json
  again put report.json "$job/attempt$attempt/host$worker.json"
  exit 1
}

again() {  # Tries a command until it goes through: networks come up late.
  until "$@"; do sleep 10; done
}

fetch() {
  case "$1" in
    gs://*) gcloud storage cp "$1" "$2" ;;
    *) cp "$1" "$2" ;;
  esac
}

require_the_locks_platform() {
  local machine glibc
  machine="$(uname -m)" glibc="$(getconf GNU_LIBC_VERSION | cut -d ' ' -f 2)"
  if [ "$machine" != x86_64 ] || ! printf '2.31\n%s\n' "$glibc" | sort -V -C; then
    refuse "this host is $machine with glibc ${glibc:-of no known version}; allowed: x86_64 with \
glibc 2.31 or newer, for which requirements-tpu.txt is locked. Take another runtime_version in \
slices.yaml, or make lock for this platform"
  fi
}

install_packages() {
  python3 -m pip install --quiet --upgrade --target "$work/uv" uv &&
    PYTHONPATH="$work/uv" python3 -m uv venv --quiet --clear --python 3.11 "$work/venv" &&
    PYTHONPATH="$work/uv" python3 -m uv pip install --quiet --python "$work/venv/bin/python" \
      --require-hashes -r "$work/project/requirements-tpu.txt" &&
    touch "$work/venv/.complete"
}

attribute() {  # What the cloud tells this host of itself, from where JAX asks for it too.
  curl -sf -H 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}

worker=$(again attribute agent-worker-number)
for pause in 1 2 5 10 0; do
  endpoints=$(attribute worker-network-endpoints) && break
  sleep "$pause"
done
commas="${endpoints//[!,]/}"
num_hosts=$((${#commas} + 1))
again fetch "$job/bundle.tar.gz" bundle.tar.gz
tar -xzf bundle.tar.gz -C project || exit 1
if [ -z "$python" ]; then
  python="$work/venv/bin/python"
  if [ ! -e "$work/venv/.complete" ]; then
    require_the_locks_platform
    for pause in 10 30 60 120 0; do
      install_packages 2> install.log && break
      cat install.log >&2
      [ "$pause" = 0 ] && refuse "the packages cannot be installed: $(tail -c 1500 install.log)"
      sleep "$pause"
    done
  fi
fi
cd project || exit 1
export PYTHONPATH="$PWD/src"
exec "$python" -m relu_sparsity.cli tpu host --attempt "$attempt" --worker "$worker" \
  --num-hosts "$num_hosts"
