#!/usr/bin/env bash
# Makes gen/, for the tests of src/ttrpc, from the .proto files here; or with --check says whether it is made from them
# as they are. See test/lab/cri/generate.sh.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")"

root=../../..
tool=$root/build/protoc
plugin=@bufbuild/protoc-gen-es@2.12.0

mark() {
  local sum
  sum=$(sha256sum "$1")
  echo "// Of $1 with SHA-256 ${sum%% *}, by generate.sh."
}

if [ "${1:-}" = --check ]; then
  for file in *.proto; do
    result=gen/${file%.proto}_pb.js
    grep -qxF "$(mark "$file")" "$result" && continue
    echo "ttrpc: $result is not made from $file as it is; run test/support/ttrpc/generate.sh" >&2
    exit 1
  done
  exit 0
fi

command -v protoc >/dev/null || { echo "ttrpc: there is no protoc; install protobuf-compiler" >&2; exit 1; }
mkdir -p gen "$tool"
npm install --prefix "$tool" --no-save --ignore-scripts --loglevel=error "$plugin" >&2
protoc --plugin="$tool/node_modules/.bin/protoc-gen-es" --es_out=gen --es_opt=target=js+dts,import_extension=js \
  ./*.proto
for file in *.proto; do
  result=gen/${file%.proto}_pb.js
  { mark "$file" && cat "$result"; } >"$result.new"
  mv "$result.new" "$result"
done
