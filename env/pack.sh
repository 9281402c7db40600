#!/bin/sh
# Packs an environment as one file: `env/pack.sh --help`.
set -eu

usage() {
    cat <<'TEXT'
usage: env/pack.sh [DIR]

Packs the environment in DIR (.venv of this checkout) as DIR.tar, one uncompressed file beside it, for
`environment: image` in a cluster's profile: each node copies it to its own disk, and its ranks run from
there, so that a start does not look up thousands of files on the shared file system (docs/packed.md).
DIR stays as it is; pack again after every change of it.

examples:
  env/pack.sh
  env/pack.sh ~/miniconda3/envs/openmmlab
TEXT
}

fail() { echo "error: $*" >&2; exit 2; }

root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -le 1 ] || fail "one environment at a time (env/pack.sh --help)"
case ${1:-} in
    -h|--help) usage; exit 0 ;;
    -*) fail "there is no option $1 (env/pack.sh --help)" ;;
esac
environment=${1:-$root/.venv}
environment=$(cd "$environment" 2>/dev/null && pwd) || fail "there is no ${1:-$root/.venv}: env/setup.sh makes it"
[ -x "$environment/bin/python" ] || fail "$environment is no environment: it has no bin/python"
image=$environment.tar

part=$image.$$.part
trap 'rm -f "$part"' EXIT
trap 'exit 130' HUP INT TERM
tar --create --file "$part" --numeric-owner --directory "$environment" . || fail "$environment could not be packed"
sync "$part"
mv "$part" "$image"
echo "$image: $(du -h "$image" | cut -f 1), $(find "$environment" | wc -l) files; \`environment: image\` in a profile uses it"
