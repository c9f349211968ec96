#!/usr/bin/env bash
# Installs what this machine lacks for a purpose, and nothing else. Silent when it lacks nothing.
#
#   scripts/setup.sh [build|demo|test|lab|bench]...     (default: build)
#
# Debian 12 and later, Ubuntu 22.04 and later, as root. System packages come from the machine's own apt sources. What
# would change the machine more than it needs stays in build/toolchain, which the Makefile puts first in PATH: npm
# where there is none (as a Debian package it brings 370 others, which take three times as long to install as to
# unpack), and Node where the distribution's is too old.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
cd "$(dirname "${BASH_SOURCE[0]}")/.."

toolchain=$PWD/build/toolchain
export PATH=$toolchain/bin:$PATH:/usr/sbin:/sbin
# package.json's "engines", as major and minor.
oldest_node=(18 19)
# For distributions whose Node is older. Debian's and Ubuntu's newer ones are used as they are.
node_version=22.23.3

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  say "$@"
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Whether a Node version, like 18.20.4 or v18.20.4, is new enough.
new_enough() {
  local major minor
  IFS=. read -r major minor _ <<<"${1#v}"
  [ "$major" -gt "${oldest_node[0]}" ] || { [ "$major" -eq "${oldest_node[0]}" ] && [ "$minor" -ge "${oldest_node[1]}" ]; }
}

have_node() { have node && new_enough "$(node --version)"; }

# A static C library, its headers, and a compiler that finds them.
have_static_libc() { have gcc && [ -e "$(gcc -print-file-name=libc.a)" ] && [ -e /usr/include/stdlib.h ]; }

# The containers of the demo and the tests hold busybox and no libraries.
have_static_busybox() { have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }

# What Debian's suites are signed with.
have_debian_keyring() { compgen -G '/usr/share/keyrings/debian-archive-keyring.[gp][pg][gp]' >/dev/null; }

# npm leaves a record of what it installed. It is up to date if npm wrote it after the lock file last changed, or if
# the lock file is the very one that we installed from (a checkout changes times).
modules_fresh() {
  [ node_modules/.package-lock.json -nt package-lock.json ] ||
    [ "$(cat node_modules/.installed-from 2>/dev/null)" = "$(sha256sum package-lock.json)" ]
}

# --- Which packages are missing

missing=()
need() {
  local package=$1
  shift
  if ! "$@"; then missing+=("$package"); fi
}

for purpose in "${@:-build}"; do
  case $purpose in build | demo | test | lab | bench) ;; *) die "no purpose is called $purpose; use build, demo, test, lab or bench" ;; esac
  need gcc have gcc
  need libc6-dev have_static_libc
  need musl-tools have musl-gcc
  need nodejs have node
  if ! modules_fresh; then need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt; fi
  [ "$purpose" != build ] || continue
  if [ "$purpose" = lab ]; then
    need debian-archive-keyring have_debian_keyring
    need mount have mount
    need util-linux have unshare
    continue
  fi
  need runc have runc
  need busybox-static have_static_busybox
  if [ "$purpose" = test ]; then need strace have strace; fi
  if [ "$purpose" = test ] || [ "$purpose" = bench ]; then need valgrind have valgrind; fi
done
if [ ${#missing[@]} -gt 0 ]; then mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u); fi

if [ ${#missing[@]} -eq 0 ] && have_node && modules_fresh; then exit 0; fi

mkdir -p build
exec 9>build/.setup.lock
flock 9

# --- Packages

current=
failed() {
  [ -n "$current" ] || return 0
  tail -n 30 build/setup.log >&2
  say "failed: $current (all of its output is in build/setup.log)"
}
trap failed EXIT

# Runs a command, silent unless it fails, and says how long it took. Its success is not asked for here: within a
# condition, bash would go on after a failed line of a function.
step() {
  local start=$SECONDS
  current=$1
  shift
  say "$current"
  "$@" </dev/null >build/setup.log 2>&1
  current=
  if [ $((SECONDS - start)) -gt 0 ]; then say "  took $((SECONDS - start)) s"; fi
}

# One source of many that does not answer is no reason to stop: if it was needed, the next step says so.
update_lists() { apt-get update -qq || true; }

refreshed=
refresh_lists() {
  if [ -z "$refreshed" ] && [ "$(id -u)" -eq 0 ]; then step "reading the package lists" update_lists; fi
  refreshed=yes
}

if [ ${#missing[@]} -gt 0 ]; then
  install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
  have apt-get || die "missing here: ${missing[*]} (names of Debian packages); install them, then try again"
  [ "$(id -u)" -eq 0 ] || die "missing here: ${missing[*]}; as root, run: apt-get update && ${install[*]}"
  refresh_lists
  step "installing ${missing[*]}" "${install[@]}" -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120
fi

# --- npm

# Debian's npm with all that it depends on, unpacked aside. Node finds its modules through NODE_PATH.
unpack_npm() {
  local aside=$toolchain/npm.new
  rm -rf "$aside"
  mkdir -p "$aside"/archives/partial "$toolchain/bin"
  # A download changes nothing on the machine, so it needs neither root nor the machine's lock.
  apt-get install -y -qq --no-install-recommends --download-only -o Dir::Cache::archives="$aside/archives" \
    -o Debug::NoLocking=true -o APT::Sandbox::User=root npm
  # tar complains of packages that lack one of the places; what is needed and missing shows in the next step.
  find "$aside/archives" -name '*.deb' -print0 | xargs -0 -n 1 -P 2 sh -c '
    dpkg-deb --fsys-tarfile "$2" |
      tar -x -C "$1" --wildcards "./usr/share/node*" "./usr/share/javascript" "./usr/lib/*nodejs" 2>/dev/null || :
  ' sh "$aside"
  # Without one of its own, what lies there would take our package.json's "type": "module" for its own.
  echo '{}' >"$aside/package.json"
  rm -rf "$aside/archives" "$toolchain/npm"
  mv -T "$aside" "$toolchain/npm"
  cat >"$toolchain/bin/npm" <<'NPM'
#!/bin/sh
modules=$(dirname "$(readlink -f "$0")")/../npm/usr/share/nodejs
NODE_PATH=$modules:/usr/share/nodejs exec node "$modules/npm/bin/npm-cli.js" "$@"
NPM
  chmod +x "$toolchain/bin/npm"
  npm --version
}

ensure_npm() {
  # A wrapper whose modules are gone does not count.
  npm --version >/dev/null 2>&1 && return 0
  rm -f "$toolchain/bin/npm"
  have apt-get && have dpkg-deb || die "there is no npm; install Node ${oldest_node[0]}.${oldest_node[1]} or later with npm"
  refresh_lists
  step "unpacking npm" unpack_npm
}

# --- Node

fetch_node() {
  local arch aside=$toolchain/node.new
  case $(uname -m) in
    x86_64) arch=x64 ;;
    aarch64) arch=arm64 ;;
    *) die "no Node for $(uname -m) is known; install one yourself" ;;
  esac
  rm -rf "$aside"
  mkdir -p "$aside" "$toolchain/bin"
  npm install --prefix "$aside" --no-save --no-audit --no-fund --ignore-scripts "node-linux-$arch@$node_version"
  rm -rf "$toolchain/node"
  mv -T "$aside" "$toolchain/node"
  ln -sf "../node/node_modules/node-linux-$arch/bin/node" "$toolchain/bin/node"
}

if ! have_node; then
  ensure_npm
  step "Node here is $(node --version), Sluice needs ${oldest_node[0]}.${oldest_node[1]}: fetching $node_version" fetch_node
  hash -r
fi

# --- Modules

install_modules() {
  # No package that we use needs its install script; what does not run cannot do harm.
  npm ci --ignore-scripts --no-audit --no-fund --prefer-offline --loglevel=error
  sha256sum package-lock.json >node_modules/.installed-from
}

if ! modules_fresh; then
  ensure_npm
  step "installing the modules of package-lock.json" install_modules
fi
rm -f build/setup.log
