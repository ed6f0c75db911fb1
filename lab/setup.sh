# Sourced by ./lab/demo and ./tests/run: makes .venv beside the checkout, once per pyproject.toml.
# usage: . lab/setup.sh; ensure_venv EXTRAS; ensure_packages PACKAGE...

say() { printf '%s\n' "$*" >&2; }

# The system's own Python first: it gets its fixes with the system, and distributions build it with every optimisation.
find_python() {
  local system=
  [ "$(uname -s)" = Linux ] && system=/usr/bin/python3
  for candidate in "${PYTHON:-}" "$system" python3.13 python3.12 python3.11 python3 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
      { can_install || "$candidate" -c 'import ensurepip' 2>/dev/null; }; then
      printf '%s' "$candidate"
      return 0
    fi
  done
  say "Python 3.11 or newer is needed and was not found; set PYTHON=/path/to/python3.11"
  return 1
}

ensure_venv() {
  local extras="$1" python stamp want
  want="$(cksum <pyproject.toml) $extras"
  stamp=.venv/.campus-appliance-$extras
  if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
    return 0
  fi
  python=$(find_python) || return 1
  if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "making the virtual environment .venv ..."
    if ! "$python" -m venv .venv 2>/dev/null; then
      rm -rf .venv
      can_install && ensure_packages python3-venv
      "$python" -m venv .venv || { say "cannot make a virtual environment: install your system's venv package first (Debian: apt-get install python3-venv)"; return 1; }
    fi
  fi
  say "installing the project and its libraries ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}" || return 1
  printf '%s' "$want" >"$stamp"
}

# May this script install Debian packages? Only as root on Debian or a child of it.
can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

# Installs what is missing; answers 1 (and says why) where it may not or cannot.
ensure_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return 0
  if ! can_install; then
    say "not installed: ${missing[*]} (as root on Debian this script installs them: apt-get install ${missing[*]})"
    return 1
  fi
  say "installing ${missing[*]} ..."
  export DEBIAN_FRONTEND=noninteractive
  # a package's service must not start: the lab runs its own on loopback ports
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made=1
  fi
  local result=0
  { apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
    { apt-get update -q >/dev/null 2>&1 && apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null 2>&1; }; } || result=1
  [ -n "$made" ] && rm -f "$policy"
  [ $result = 0 ] || say "apt-get could not install ${missing[*]}"
  return $result
}
