#!/usr/bin/env bash
# Makes ../gen/*_pb.js, with their types beside them, from the .proto files here; or with --check says whether they are
# made from the files as they are (by checksum, so that the check needs no tools). Not TypeScript, since the generator
# writes enums of the kind that must be compiled, which our tsconfig.json forbids.
#
# Needs protoc (Debian's package protobuf-compiler), and fetches the generator into build/protoc. Only who changes a
# .proto file needs either: what they make is committed.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")"

tool=../../../build/protoc
# Makes what the @bufbuild/protobuf of package.json reads, and is the last that runs on Node 20.
plugin=@bufbuild/protoc-gen-es@2.12.0

mark() {
  local sum
  sum=$(sha256sum "$1.proto")
  echo "// Of $1.proto with SHA-256 ${sum%% *}, by generate.sh."
}

if [ "${1:-}" = --check ]; then
  for file in *.proto; do
    name=${file%.proto}
    grep -qxF "$(mark "$name")" "../gen/${name}_pb.js" && continue
    echo "kubelet: gen/${name}_pb.js is not made from $file as it is; run src/kubelet/proto/generate.sh" >&2
    exit 1
  done
  exit 0
fi

command -v protoc >/dev/null || { echo "kubelet: there is no protoc; install protobuf-compiler" >&2; exit 1; }
mkdir -p ../gen "$tool"
npm install --prefix "$tool" --no-save --ignore-scripts --loglevel=error "$plugin" >&2
protoc --plugin="$tool/node_modules/.bin/protoc-gen-es" --es_out=../gen \
  --es_opt=target=js+dts,import_extension=js ./*.proto
for file in *.proto; do
  result=../gen/${file%.proto}_pb.js
  { mark "${file%.proto}" && cat "$result"; } >"$result.new"
  mv "$result.new" "$result"
done
