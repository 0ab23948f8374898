#!/usr/bin/env bash
# Makes the environment in .venv (once; about a minute), then runs a verb of cnn_jax.
#
#   ./launch.sh                 train LeNet-5 on handwritten digits
#   ./launch.sh VERB ...        train, evaluate, predict, analyze, report, prepare, test: see ./launch.sh --help
#
# PYTHON=python3.12 chooses the interpreter (3.11 to 3.13); ACCELERATOR=cuda or tpu adds that build of JAX;
# EXTRAS="search slurm" adds what searches (Optuna) and Slurm arrays (submitit) need.
set -euo pipefail
here=$PWD
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
venv=$root/.venv

fail() { echo "launch.sh: $*" >&2; exit 1; }

# The first interpreter that runs and is of a supported version. A version manager's shim may exist and yet not run.
find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11 python)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$candidate"; return
    fi
  done
  [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON does not run, or is not Python 3.11, 3.12 or 3.13"
  fail "no Python 3.11, 3.12 or 3.13 found; install one, or name it: PYTHON=/path/to/python3.12 ./launch.sh"
}

locks=("$root/requirements.lock")
case ${ACCELERATOR:-} in
  "") ;;
  cuda|tpu) locks+=("$root/requirements-$ACCELERATOR.lock") ;;
  *) fail "ACCELERATOR=$ACCELERATOR is not known; it is cuda or tpu" ;;
esac

for extra in ${EXTRAS:-}; do
  case $extra in search|slurm) ;; *) fail "EXTRAS=$extra is not known; there are search and slurm" ;; esac
done

# What the environment was made from. Without ACCELERATOR, one that was made with it serves as well.
stamp() { echo "$root"; cat "$@" | sha256sum; }
is_current() {
  [ -x "$venv/bin/python" ] && [ -f "$venv/made-from" ] || return 1
  [ -z "${PYTHON:-}" ] || [ "$("$PYTHON" -V 2>&1)" = "$("$venv/bin/python" -V 2>&1)" ] || return 1
  local lock made; made=$(<"$venv/made-from")
  [ "$made" = "$(stamp "${locks[@]}")" ] && return 0
  [ -z "${ACCELERATOR:-}" ] || return 1
  for lock in "$root"/requirements-*.lock; do
    [ "$made" = "$(stamp "${locks[@]}" "$lock")" ] && return 0
  done
  return 1
}

# Into the environment, by uv or pip.
install() {
  if command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$venv/bin/python" "$@"
  else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  fi
}

make_environment() {
  local python lock requirements=(); python=$(find_python) || exit 1
  for lock in "${locks[@]}"; do requirements+=(-r "$lock"); done
  echo "launch.sh: making $venv with $("$python" -V 2>&1) (once) ..." >&2
  rm -rf "$venv"
  if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --python "$(command -v "$python")" "$venv" || fail "uv could not make $venv"
  else
    "$python" -m venv "$venv" || fail "'$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"
  fi
  install --require-hashes "${requirements[@]}" || fail "could not install ${locks[*]}; is there a network?"
  install --no-deps --no-build-isolation -e "$root" || fail "could not install cnn_jax itself"
  stamp "${locks[@]}" >"$venv/made-from.partial"
  mv "$venv/made-from.partial" "$venv/made-from"
  echo "launch.sh: environment ready in $SECONDS s" >&2
}

# What EXTRAS names, and is not there yet, or not of this lock.
add_extras() {
  local extra
  for extra in ${EXTRAS:-}; do
    cmp -s "$root/requirements-$extra.lock" "$venv/extra-$extra" && continue
    install --require-hashes -r "$root/requirements-$extra.lock" || fail "could not install EXTRAS=$extra; is there a network?"
    cp "$root/requirements-$extra.lock" "$venv/extra-$extra"
  done
}

if ! is_current || [ -n "${EXTRAS:-}" ]; then
  # Two starts at once: the second waits here, then finds the work done.
  exec 9>"$root/.venv.lock"
  if command -v flock >/dev/null 2>&1; then flock 9; fi
  is_current || make_environment
  add_extras
  exec 9>&-
fi
if [ -z "${ACCELERATOR:-}" ] && command -v nvidia-smi >/dev/null 2>&1 && ! [ -d "$(echo "$venv"/lib/python3*/site-packages/jax_plugins)" ]; then
  echo "launch.sh: this machine has an NVIDIA driver; ACCELERATOR=cuda ./launch.sh ... uses it (this run is on the CPU)" >&2
fi

# Asked for, it must be there: without this JAX would pass over what it does not find, and use the CPU.
[ -z "${ACCELERATOR:-}" ] || export JAX_PLATFORMS="${JAX_PLATFORMS:-$ACCELERATOR,cpu}"

# On the CPU the C library, where it is glibc, keeps what a step frees for the next: see cnn_jax/tuning.py.
memory=glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4611686018427387904:glibc.malloc.hugetlb=1
if [ -z "${ACCELERATOR:-}" ] && [ "${CNN_JAX_TUNING:-on}" = on ]; then
  export GLIBC_TUNABLES="$memory${GLIBC_TUNABLES:+:$GLIBC_TUNABLES}"
fi

cd "$here"
exec "$venv/bin/python" -P -m cnn_jax.main "$@"  # -P: what lies in the current directory is not imported
