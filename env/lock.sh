#!/bin/sh
# Resolves env/requirements-{a,b}.in into env/lock-{a,b,a-numpy1}.txt, the extras of `env/setup.sh --with` into
# env/lock-{a,b}-{mmdet,mmpretrain,track,onnx,geotiff}.txt, and torch's dependencies into env/lock-torch.txt. Run
# it after editing the requirements and commit the result. The hashes of the locked packages, for all platforms,
# go into env/hashes.txt; torch and its dependencies are a site's own build and are checked by version only.
set -eu
[ $# -eq 0 ] || { sed -n '2,/^set/s/^# //p' "$0"; [ "$1" = --help ] && exit; exit 2; }
cd "$(dirname "$0")"
uv=../.venv/bin/uv
compile() {
    "$uv" pip compile "$@" --universal --python-version 3.10 --generate-hashes \
        ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
        --no-emit-package torch --no-emit-package torchvision --no-emit-package opencv-python --no-emit-package typing \
        --no-emit-find-links --no-annotate --quiet --custom-compile-command 'env/lock.sh'
}
hashed=$(mktemp)
trap 'rm -f "$hashed"' EXIT
split() { # LOCK, as written by `compile`: one line per package; the hashes are moved to $hashed
    sed -e ':join' -e '/\\$/N' -e 's/ *\\\n */ /' -e 'tjoin' "$1" >"$1.joined"
    awk '/^[^#]/ { printf "%s", $1; for (i = 2; i <= NF; i++) if ($i ~ /^--hash=/) printf " %s", $i; print "" }' \
        "$1.joined" >>"$hashed"
    sed -E 's/ --hash=.*//' "$1.joined" >"$1"
    rm "$1.joined"
}
for set in a b; do
    # torch and torchvision are installed first, by pip (requirements-torch.txt). opencv-python needs libGL; the
    # headless build, which has the same module and does not, replaces it. `typing` is for Python 2.
    compile "requirements-$set.in" -c requirements-torch.txt --output-file "lock-$set.txt"
    split "lock-$set.txt"
done
# The same with NumPy 1, for torch before 2.3; all other versions stay as in lock-a.txt where possible.
cp lock-a.txt lock-a-numpy1.txt
echo "numpy<2; python_version < '3.13'" | compile requirements-a.in -c - --output-file lock-a-numpy1.txt
split lock-a-numpy1.txt
# The extras of `--with`, without the packages that the set has already.
for set in a b; do
    for extra in mmdet mmpretrain track onnx geotiff; do
        lock=lock-$set-$extra.txt
        compile "requirements-$set-$extra.in" -c requirements-torch.txt -c "lock-$set.txt" --output-file "$lock"
        split "$lock"
        grep -vxFf "lock-$set.txt" "$lock" >"$lock.rest"
        mv "$lock.rest" "$lock"
    done
done
# uv itself. (`compile` would keep the hashes of an existing file.)
rm -f hashes.txt
"$uv" --version | sed -E 's/uv ([0-9.]+).*/uv==\1/' | compile - --output-file hashes.txt
split hashes.txt
LC_ALL=C sort -u "$hashed" >hashes.txt
# torch's dependencies (sympy, jinja2, …), as a constraints file, without the GPU libraries: each build of torch
# requires its own, so pip chooses them.
"$uv" pip compile requirements-torch.txt -c lock-a.txt --universal --python-version 3.10 \
    ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
    --no-emit-package torch --no-emit-package torchvision \
    --no-emit-find-links --no-annotate --quiet --custom-compile-command 'env/lock.sh' \
    | grep -Ev '^(nvidia|cuda|triton)' > lock-torch.txt
