#!/bin/sh
# Builds values.ts with each runtime of AssemblyScript, at several levels: all, or those named after
# the folder to write to. With no folder, also writes what it gives under Node, by the bindings that
# the compiler makes, to golden.json. The modules are checked in: the tests need no compiler, but
# build them again where there is one.
#
#     apt-get install nodejs; npm install assemblyscript
set -eu
to=${1:-.}
[ $# = 0 ] || shift
cd "$(dirname "$0")"

for name in ${*:-incremental minimal stub numbers}; do
    case $name in
    incremental) options="-O --exportRuntime" ;;
    minimal) options="-Oz --runtime minimal --exportRuntime" ;;
    stub) options="--runtime stub --exportRuntime" ;;
    numbers) options="-O --runtime stub" ;;
    esac
    npx --no asc values.ts -o "$to/$name.wasm" $options
done
if [ "$to" = . ]; then
    made=$(mktemp -d)
    npx --no asc values.ts -o "$made/values.wasm" --exportRuntime --bindings raw
    node golden.mjs "$made" > golden.json
    rm -r "$made"
fi
