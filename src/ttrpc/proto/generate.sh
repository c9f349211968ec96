#!/usr/bin/env bash
# Makes ../gen/ttrpc_pb.js, with its types beside it, from ttrpc.proto; or with --check says whether it is made from the
# file as it is (by checksum, so that the check needs no tools). Not TypeScript, since the generator's may hold enums of
# the kind that must be compiled.
#
# Needs protoc (Debian's package protobuf-compiler), and fetches the generator into build/protoc. Only who changes
# ttrpc.proto needs either: what they make is committed.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")"

root=../../..
tool=$root/build/protoc
# Makes what the @bufbuild/protobuf of package.json reads, and is the last that runs on Node 20.
plugin=@bufbuild/protoc-gen-es@2.12.0
result=../gen/ttrpc_pb.js
sum=$(sha256sum ttrpc.proto)
mark="// Of ttrpc.proto with SHA-256 ${sum%% *}, by generate.sh."

if [ "${1:-}" = --check ]; then
  grep -qxF "$mark" "$result" && exit 0
  echo "ttrpc: $result is not made from ttrpc.proto as it is; run src/ttrpc/proto/generate.sh" >&2
  exit 1
fi

command -v protoc >/dev/null || { echo "ttrpc: there is no protoc; install protobuf-compiler" >&2; exit 1; }
mkdir -p ../gen "$tool"
npm install --prefix "$tool" --no-save --ignore-scripts --loglevel=error "$plugin" >&2
protoc --plugin="$tool/node_modules/.bin/protoc-gen-es" --es_out=../gen --es_opt=target=js+dts,import_extension=js \
  ttrpc.proto
{ echo "$mark" && cat "$result"; } >"$result.new"
mv "$result.new" "$result"
