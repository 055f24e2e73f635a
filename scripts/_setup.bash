# Sourced by the scripts beside it: finds a Python, makes the environment, names both.
#   root           the checkout
#   set_up EXTRA   make or refresh .venv with the package and its EXTRA ("" for none);
#                  sets venv_python, the interpreter to run everything with
# Needs bash and Python 3.11 or newer; everything else is done by _setup.py.

unset CDPATH
# Modules of HPC sites put their own packages here; mixed into a venv they break it.
unset PYTHONPATH
export PYTHONNOUSERSITE=1

_here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
root=$(dirname -- "$_here")

find_python() {
  local candidate found="none found"
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
    found="found $(command -v "$candidate"), $("$candidate" --version 2>&1)"
  done
  echo "Python 3.11 or newer is needed ($found)." >&2
  echo "Load or install one first, e.g. 'module load python' or 'apt-get install python3 python3-venv'." >&2
  return 2
}

set_up() {
  local python
  python=$(find_python)
  "$python" "$_here/_setup.py" "$root" "$1"
  venv_python=$root/.venv/bin/python
}
