# Shared by the scripts beside it, to be sourced. Sets `project` (the project's folder) and `venv` (the environment in it);
# `ensure_venv <extra>` makes the environment and installs the project into it, editable, with that extra. What is
# installed already is left alone, without a look at the network: a stamp file remembers what it was installed from.
# TOOLS_VENV names an environment that is used as it is, for a copy of the project that has none. TOOLS_PYTHON, such as
# 3.12, is a version of Python that has an environment of its own beside the other one.

unset CDPATH
project=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P) || exit 1
venv="${TOOLS_VENV:-$project/.venv}"
if [ -n "${TOOLS_PYTHON:-}" ]; then venv="$project/.venv-$TOOLS_PYTHON"; fi

# What an installation depends on. Sources are not part of it: an editable install follows them.
wanted_stamp() {
  printf '%s %s\n' "$(cksum <"$project/pyproject.toml")" "$project"
}

# Prints the extras that contain one.
containing() {
  case "$1" in
    embedded) echo "bench test dev" ;;
    bench | test) echo "dev" ;;
  esac
}

# The import notices an environment whose python was upgraded or removed.
is_installed() {
  local extra wanted
  wanted=$(wanted_stamp)
  for extra in "$1" $(containing "$1"); do
    if [ "$(cat "$venv/.installed-$extra" 2>/dev/null)" = "$wanted" ]; then
      "$venv/bin/python" -c 'import click' 2>/dev/null && return 0
    fi
  done
  return 1
}

# Prints the name of a Python of a version, on PATH or under pyenv, that can make an environment. A name on PATH may be a
# shim that runs nothing, so ask each.
find_version() {
  local name
  for name in "python$1" python3 "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if [ "$("$name" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
      echo "$name"
      return 0
    fi
  done
  echo "error: no python $1 with its module venv on PATH or under pyenv" >&2
  return 1
}

# Prints the name of a python that can make the environment.
find_python() {
  local name version too_old="" without_venv=""
  if [ -n "${TOOLS_PYTHON:-}" ]; then
    find_version "$TOOLS_PYTHON"
    return
  fi
  for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if ! "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      too_old="$too_old $name ($version)"
    elif ! "$name" -c 'import ensurepip, venv' 2>/dev/null; then
      without_venv="$without_venv $name ($version)"
    else
      echo "$name"
      return 0
    fi
  done
  if [ -n "$without_venv" ]; then
    echo "error: python has no venv module:$without_venv; on Debian and Ubuntu: apt-get install python3-venv" >&2
  else
    echo "error: python 3.11 or newer is needed; found on PATH:${too_old:- none}" >&2
  fi
  return 1
}

# An environment that was copied or moved with the project still points to the old folder, so it is made anew.
is_usable() {
  [ "$(cat "$venv/.project" 2>/dev/null || echo "$project")" = "$project" ] &&
    "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

install_extra() {
  local python
  if ! is_usable; then
    python=$(find_python) || return 1
    echo "making $venv" >&2
    rm -rf "$venv" && "$python" -m venv "$venv" || return 1
    printf '%s\n' "$project" >"$venv/.project"
  fi
  echo "installing the project with its extra $1" >&2
  rm -f "$venv"/.installed-*
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$project[$1]" || return 1
  wanted_stamp >"$venv/.installed-$1"
}

# Of several at once the first installs and the others wait. The lock is on a file that is there anyway.
ensure_venv() {
  [ -n "${TOOLS_VENV:-}" ] && [ -z "${TOOLS_PYTHON:-}" ] && return 0
  is_installed "$1" && return 0
  (
    if command -v flock >/dev/null 2>&1; then flock 9; fi
    is_installed "$1" || install_extra "$1"
  ) 9<"$project/pyproject.toml"
}
