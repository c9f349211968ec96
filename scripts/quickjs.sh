#!/usr/bin/env bash
# Puts the QuickJS-ng source that the native executable is compiled from into build/quickjs/src.
#
# Taken from the first of these that has a release pinned in native/quickjs.lock:
#   1. $QUICKJS_SRC, a folder
#   2. /usr/src/quickjs-ng, where Debian's package qjs-src puts it
#   3. the pinned qjs-src package in a Debian mirror, fetched by its checksum
#   4. the qjs-src package of the distribution's newer suites, found by name (Debian revises packages; the source
#      inside stays the same, and its checksum is pinned by itself)
# The mirror is the machine's own, read from its apt sources; SLUICE_DEBIAN_MIRROR=URI names another. The machine's
# apt settings (proxies, credentials) are used; its sources, lists, caches and packages are neither used nor changed.
# Silent and without network when build/quickjs/src is there already. With --check it only says whether the lock file
# is well-formed and what lies in build/quickjs/src, if anything, is pinned.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock=native/quickjs.lock
work=build/quickjs
target=$work/src
# What the executable is compiled from, in the order in which the checksum runs over it.
files=(
  builtin-array-fromasync.h builtin-iterator-zip-keyed.h builtin-iterator-zip.h cutils.h dtoa.c dtoa.h
  libregexp-opcode.h libregexp.c libregexp.h libunicode-table.h libunicode.c libunicode.h list.h
  quickjs-atom.h quickjs-c-atomics.h quickjs-opcode.h quickjs.c quickjs.h
)
tried=()

say() { printf 'quickjs: %s\n' "$*" >&2; }

# The checksum of a source folder; nothing where a file is missing.
checksum() {
  local sum
  sum=$(cd "$1" 2>/dev/null && cat -- "${files[@]}" 2>/dev/null | sha256sum) || return 0
  printf '%s' "${sum%% *}"
}

# The pinned version that a source folder holds; fails where it holds none.
pinned_version() {
  local sum
  sum=$(checksum "$1")
  [ -n "$sum" ] && awk -v sum="$sum" '$1 !~ /^#/ && $2 == sum { print $1; found = 1; exit } END { exit !found }' "$lock"
}

# The pinned versions, for a message.
pinned() { awk '$1 !~ /^#/ && NF && !seen[$1]++ { printf "%s%s", sep, $1; sep = " or " }' "$lock"; }

# Makes a pinned folder the result: copied aside, then renamed, so that the result is whole or not there.
accept() {
  local from=$1 origin=$2 version aside
  version=$(pinned_version "$from") || return 1
  aside=$work/new.$$
  mkdir -p "$aside"
  (cd "$from" && cp -pL -- "${files[@]}" "$OLDPWD/$aside/")
  rm -rf "$target"
  mv -T "$aside" "$target"
  say "QuickJS-ng $version from $origin"
}

# The machine's package archives, one URI a line: classic lines and deb822 stanzas that have the component "main".
archives() {
  if [ -n "${SLUICE_DEBIAN_MIRROR:-}" ]; then
    printf '%s\n' "${SLUICE_DEBIAN_MIRROR%/}"
    return
  fi
  local etc=/etc/apt list=()
  for file in "$etc"/sources.list "$etc"/sources.list.d/{debian,ubuntu}.sources "$etc"/sources.list.d/*.{sources,list}; do
    if [ -r "$file" ]; then list+=("$file"); fi
  done
  [ ${#list[@]} -gt 0 ] || return 0
  # "Enabled: no" and a comment switch a stanza or a line off. A stanza ends at an empty line or with its file.
  awk '
    function flush() { if (uris != "" && on && components ~ /(^| )main( |$)/) print uris; uris = components = ""; on = 1 }
    FNR == 1 { flush() }
    /^[ \t]*#/ { next }
    FILENAME ~ /\.sources$/ {
      if ($0 ~ /^[ \t]*$/) { flush(); next }
      field = tolower($1); line = $0; sub(/^[^:]*:[ \t]*/, "", line); gsub(/[ \t]+/, " ", line)
      if (field == "uris:") uris = line
      if (field == "components:") components = line
      if (field == "enabled:" && tolower(line) ~ /^(no|false|0|off)/) on = 0
      next
    }
    $1 == "deb" {
      line = $0; gsub(/\[[^]]*\]/, "", line); count = split(line, word, " ")
      for (i = 4; i <= count; i++) if (word[i] == "main") print word[2]
    }
    END { flush() }
  ' "${list[@]}" | tr ' ' '\n' | while read -r uri; do
    # Debian's cloud images name a file with the mirrors in it.
    case $uri in
      mirror+file:*) sed 's/#.*//; s/[ \t].*//' "${uri#mirror+file:}" 2>/dev/null || : ;;
      *) printf '%s\n' "$uri" ;;
    esac
  done | sed 's:/*$::' | awk '$0 != "" && !/security/ && !/^cdrom:/ && !seen[$0]++'
}

# apt with the machine's own settings but its own sources, lists and cache, and without the machine's hooks.
# The optional source line is what this apt may read.
prepare_apt() {
  local root=$PWD/$work/apt
  rm -rf "$root"
  mkdir -p "$root"/{state,lists/partial,cache/archives/partial,out}
  printf '%s\n' "$@" >"$root/sources.list"
  apt-config dump | grep -Eiv '^(APT::Update::(Pre|Post)-Invoke|DPkg::|Dir::(Cache|State))' >"$root/apt.conf"
  cat >>"$root/apt.conf" <<CONF
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "$root/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$root/state";
Dir::State::lists "$root/lists";
Dir::State::status "/dev/null";
Dir::Cache "$root/cache";
Dir::Cache::archives "$root/cache/archives";
Acquire::Languages "none";
Acquire::Retries "2";
APT::Sandbox::User "root";
CONF
  export APT_CONFIG=$root/apt.conf
}

# Unpacks a package and takes the source that is in it.
accept_package() {
  local package=$1 origin=$2
  if ! dpkg-deb -x "$package" "$work/apt/out" 2>>"$work/apt.log"; then
    tried+=("$origin: the package does not unpack")
  elif ! accept "$work/apt/out/usr/src/quickjs-ng" "$origin"; then
    tried+=("$origin: its source is not a pinned one")
  else
    return 0
  fi
  return 1
}

fetch_pinned_package() {
  local uri=$1 version sum path package_sum
  while read -r version sum path package_sum _; do
    case $version in '' | '#'*) continue ;; esac
    [ -n "${package_sum:-}" ] || continue
    prepare_apt
    if /usr/lib/apt/apt-helper download-file "$uri/$path" "$work/apt/qjs-src.deb" "SHA256:$package_sum" \
      >>"$work/apt.log" 2>&1; then
      if accept_package "$work/apt/qjs-src.deb" "$uri/$path"; then return 0; fi
    else
      tried+=("$uri/$path: not there, or not the pinned package")
    fi
  done <"$lock"
  return 1
}

fetch_from_suite() {
  local uri=$1 suite=$2 component=$3 keyring=$4 version package
  prepare_apt "deb [signed-by=$keyring] $uri $suite $component"
  if ! apt-get update -qq --error-on=any >>"$work/apt.log" 2>&1; then
    tried+=("$uri $suite: no such suite, or not signed by $keyring")
    return 1
  fi
  version=$(apt-cache show --no-all-versions qjs-src 2>/dev/null | sed -n 's/^Version: //p')
  if ! awk -v v="$version" '$1 !~ /^#/ && NF && index(v, $1 "-") == 1 { found = 1 } END { exit !found }' "$lock"; then
    tried+=("$uri $suite: has qjs-src ${version:-in no version}, which is not pinned")
    return 1
  fi
  if ! (cd "$work/apt" && apt-get download -qq qjs-src >>../apt.log 2>&1); then
    tried+=("$uri $suite: qjs-src $version does not download")
    return 1
  fi
  package=("$work"/apt/qjs-src_*.deb)
  accept_package "${package[0]}" "qjs-src $version of $uri $suite"
}

fetch() {
  local uri suite suites component keyring='' candidate distribution
  if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null || [ ! -x /usr/lib/apt/apt-helper ]; then
    tried+=("apt: this machine has none")
    return 1
  fi
  : >"$work/apt.log"
  mapfile -t uris < <(archives)
  [ ${#uris[@]} -gt 0 ] || tried+=("apt: no package archive in /etc/apt/sources.list or /etc/apt/sources.list.d")
  for uri in "${uris[@]}"; do
    if fetch_pinned_package "$uri"; then return 0; fi
  done

  distribution=$(. /etc/os-release && printf '%s' "${ID:-} ${ID_LIKE:-}")
  case "${SLUICE_DEBIAN_MIRROR:+debian}$distribution" in
    ubuntu*) name=ubuntu component=universe suites=devel ;;
    *) name=debian component=main suites='forky trixie-backports sid trixie' ;;
  esac
  for candidate in /usr/share/keyrings/$name-archive-keyring.{gpg,pgp}; do
    if [ -r "$candidate" ]; then keyring=$candidate; fi
  done
  if [ -z "$keyring" ]; then
    tried+=("apt: no keyring to check suites with; install $name-archive-keyring")
    return 1
  fi
  for uri in "${uris[@]}"; do
    for suite in $suites; do
      if fetch_from_suite "$uri" "$suite" "$component" "$keyring"; then return 0; fi
    done
  done
  return 1
}

check() {
  local malformed
  malformed=$(awk '
    /^#/ { next }
    NF != 4 || $1 !~ /^[0-9]+\.[0-9]+\.[0-9]+$/ || $2 !~ /^[0-9a-f]+$/ || length($2) != 64 || $3 !~ /^pool\/.*\.deb$/ ||
      $4 !~ /^[0-9a-f]+$/ || length($4) != 64 { print FILENAME ":" FNR ": want VERSION SHA256 POOL_PATH SHA256" }
  ' "$lock")
  if [ -n "$malformed" ]; then
    say "$malformed"
    return 1
  fi
  if [ -d "$target" ] && ! pinned_version "$target" >/dev/null; then
    say "$target holds no release pinned in $lock; remove it, or add the release's line"
    return 1
  fi
}

if [ "${1:-}" = --check ]; then
  check
  exit
fi

mkdir -p "$work"
exec 9>"$work/.lock"
flock 9
rm -rf "$work"/new.*

if [ -n "${QUICKJS_SRC:-}" ]; then
  sum=$(checksum "$QUICKJS_SRC")
  if [ -z "$sum" ]; then
    say "QUICKJS_SRC=$QUICKJS_SRC is not a QuickJS-ng source folder: it lacks some of ${files[*]}"
    exit 1
  fi
  [ "$sum" != "$(checksum "$target")" ] || exit 0
  if ! accept "$QUICKJS_SRC" "$QUICKJS_SRC"; then
    say "QUICKJS_SRC=$QUICKJS_SRC is not a release that Sluice is tested with (checksum $sum);" \
      "use one of $(pinned) or, to test another, add its line to $lock"
    exit 1
  fi
  exit 0
fi

if pinned_version "$target" >/dev/null; then exit 0; fi
if [ -d /usr/src/quickjs-ng ]; then
  if accept /usr/src/quickjs-ng /usr/src/quickjs-ng; then exit 0; fi
  tried+=("/usr/src/quickjs-ng: its source is not a pinned one")
fi
if fetch; then
  rm -rf "$work/apt" "$work/apt.log"
  exit 0
fi
say "no QuickJS-ng source was found. Tried:"
printf '  %s\n' "${tried[@]}" >&2
if [ -s "$work/apt.log" ]; then say "what apt said is in $work/apt.log"; fi
say "set SLUICE_DEBIAN_MIRROR to the address of a Debian mirror (one that this machine can reach)," \
  "or QUICKJS_SRC to a folder with the source of QuickJS-ng" \
  "(pinned in $lock: $(pinned))"
exit 1
