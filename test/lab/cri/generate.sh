#!/usr/bin/env bash
# Makes gen/cri_pb.js, with its types beside it, from cri.proto; or with --check says whether it is made from the file
# as it is (by checksum, so that the check needs no tools). Not TypeScript, since the generator writes enums of the kind
# that must be compiled, which our tsconfig.json forbids.
#
# Needs protoc (Debian's package protobuf-compiler), and fetches the generator into build/protoc. Only who changes
# cri.proto needs either: what they make is committed.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")"

root=../../..
tool=$root/build/protoc
# Makes what the @bufbuild/protobuf of package.json reads, and is the last that runs on Node 20.
plugin=@bufbuild/protoc-gen-es@2.12.0
result=gen/cri_pb.js
sum=$(sha256sum cri.proto)
mark="// Of cri.proto with SHA-256 ${sum%% *}, by generate.sh."

if [ "${1:-}" = --check ]; then
  grep -qxF "$mark" "$result" && exit 0
  echo "cri: $result is not made from cri.proto as it is; run test/lab/cri/generate.sh" >&2
  exit 1
fi

command -v protoc >/dev/null || { echo "cri: there is no protoc; install protobuf-compiler" >&2; exit 1; }
mkdir -p gen "$tool"
npm install --prefix "$tool" --no-save --ignore-scripts --loglevel=error "$plugin" >&2
protoc --plugin="$tool/node_modules/.bin/protoc-gen-es" --es_out=gen --es_opt=target=js+dts,import_extension=js \
  cri.proto
{ echo "$mark" && cat "$result"; } >"$result.new"
mv "$result.new" "$result"
