#!/bin/sh
# An OCI runtime that writes down what it is asked to create, and then becomes another one.
#
# Each create or run makes FOLDER/ID.N.WITNESS with the arguments (one a line) and the bundle's config.json. N counts
# the starts of one container, also of those that do not come as far as the witness beneath.
#
# witness.ts writes FOLDER, WITNESS (before, after or alone) and NEXT, the other runtime, below `set -eu`.
set -eu
bundle=. command= previous= id=
for argument; do
  case $previous in
    --bundle | -b) bundle=$argument previous= && continue ;;
    --root | --log | --log-format | --criu | --rootless | --pid-file | --console-socket | --preserve-fds)
      previous= && continue
      ;;
  esac
  previous=
  case $argument in
    --bundle=* | -b=*) bundle=${argument#*=} ;;
    -*) previous=$argument ;;
    *) if [ -z "$command" ]; then command=$argument; else id=$argument; fi ;;
  esac
done
case $command in
  create | run)
    n=1
    if [ "$WITNESS" = after ]; then
      while [ -e "$FOLDER/$id.$((n + 1)).before" ]; do n=$((n + 1)); done
    else
      while [ -e "$FOLDER/$id.$n.$WITNESS" ]; do n=$((n + 1)); done
    fi
    record=$FOLDER/$id.$n.$WITNESS
    mkdir -m 755 "$record"
    cp "$bundle/config.json" "$record/"
    printf '%s\n' "$@" >"$record/arguments"
    ;;
esac
exec "$NEXT" "$@"
