#!/bin/sh
# Packs an environment as one file: `env/pack.sh --help`.
set -eu

usage() {
    cat <<'TEXT'
usage: env/pack.sh [--squashfs] [DIR]

Packs the environment in DIR (.venv of this checkout) as DIR.tar, one uncompressed file beside it, for
`environment: image` in a cluster's profile: each node unpacks it on its own disk, and its ranks run from
there, so that a start does not look up thousands of files on the shared file system (docs/packed.md).
The Python that a virtual environment was made from goes into it, too, unless it is the system's (in /usr).
DIR stays as it is; pack again after every change of it. There is one image of an environment: a new one
takes the place of one of the other kind.

  --squashfs   as DIR.sqfs, compressed, which nodes copy and mount: one file there instead of thousands.
               Needs mksquashfs 4.5 or newer here (Debian: squashfs-tools), and on the nodes squashfuse
               and fuse3; a node that cannot mount it unpacks it (squashfs-tools)

examples:
  env/pack.sh
  env/pack.sh --squashfs
  env/pack.sh ~/miniconda3/envs/openmmlab
TEXT
}

fail() { echo "error: $*" >&2; exit 2; }

root=$(cd "$(dirname "$0")/.." && pwd)
squashfs=
while :; do
    case ${1:-} in
        -h|--help) usage; exit 0 ;;
        --squashfs) squashfs=yes; shift ;;
        -*) fail "there is no option $1 (env/pack.sh --help)" ;;
        *) break ;;
    esac
done
[ $# -le 1 ] || fail "one environment at a time (env/pack.sh --help)"
[ -z "$squashfs" ] || command -v mksquashfs >/dev/null || fail "--squashfs needs mksquashfs (Debian: squashfs-tools)"
environment=${1:-$root/.venv}
environment=$(cd "$environment" 2>/dev/null && pwd) || fail "there is no ${1:-$root/.venv}: env/setup.sh makes it"
[ -x "$environment/bin/python" ] || fail "$environment is no environment: it has no bin/python"
image=$environment.tar other=$environment.sqfs

part=$image.$$.part
trap 'rm -f "$part" "$part.sqfs"' EXIT
trap 'exit 130' HUP INT TERM
tar --create --file "$part" --numeric-owner --directory "$environment" . || fail "$environment could not be packed"

# The base Python: its prefix, its library there, the interpreter, and whether the environment sees its packages.
# Only what a training may import or compile against.
below=$("$environment/bin/python" -I -S -c '
import os, sys, sysconfig
prefix, config = sys.base_prefix, os.path.join(sys.argv[1], "pyvenv.cfg")
if os.path.isfile(config) and not (os.path.realpath(prefix) + "/").startswith("/usr/"):
    packages = "include-system-site-packages = true" in open(config).read().lower()
    library, program = sysconfig.get_path("stdlib"), os.path.realpath(sys.executable)
    print(prefix, os.path.relpath(library, prefix), program, "python%d.%d" % sys.version_info[:2], packages, sep="\n")
' "$environment") || fail "$environment/bin/python does not start"
if [ -n "$below" ]; then
    { read -r prefix; read -r library; read -r program; read -r python; read -r packages; } <<TEXT
$below
TEXT
    [ "$packages" = True ] && packages= || packages=site-packages
    set --
    for more in "include/$python" lib/libpython*.so*; do
        for found in "$prefix"/$more; do [ ! -e "$found" ] || set -- "$@" "${found#"$prefix"/}"; done
    done
    tar --append --file "$part" --numeric-owner --directory "$prefix" --transform 's,^,./.python/,S' \
        --exclude="$library/test" ${packages:+--exclude="$library/$packages"} --exclude='*.a' --exclude='*.o' \
        "$library" "$@" || fail "$prefix could not be packed"
    tar --append --file "$part" --numeric-owner --directory "$(dirname "$program")" \
        --transform "s,.*,./.python/bin/$python,S" "$(basename "$program")" || fail "$program could not be packed"
fi
count=$(tar --list --file "$part" | wc -l)
if [ -n "$squashfs" ]; then
    image=$other other=$environment.tar
    said=$(mksquashfs - "$part.sqfs" -tar -root-mode 755 -comp zstd -Xcompression-level 3 -no-progress -quiet -exit-on-error \
        <"$part" 2>&1) || fail "mksquashfs: $(echo "$said" | tail -n 1) (it must be 4.5 or newer, with zstd)"
    mv "$part.sqfs" "$part"
fi
sync "$part"
mv "$part" "$image"
rm -f "$other"
echo "$image: $(du -h "$image" | cut -f 1), $count files; \`environment: image\` in a profile uses it"
