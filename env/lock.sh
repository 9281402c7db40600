#!/bin/sh
# Resolves env/requirements-{a,b}.in into env/lock-{a,b,a-numpy1}.txt, what `env/setup.sh --with` adds to them
# into env/lock-{a,b}-{mmdet,mmpretrain,track,onnx,geotiff}.txt, and torch's own dependencies into env/lock-torch.txt. Run it after editing those, commit the result. What each locked file must hash to, on
# every platform, is in env/hashes.txt; torch and what it brings are a site's own build, checked by version.
set -eu
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
split() { # LOCK: what `compile` has written there goes on one line each, hashes apart
    sed -e ':join' -e '/\\$/N' -e 's/ *\\\n */ /' -e 'tjoin' "$1" >"$1.joined"
    awk '/^[^#]/ { printf "%s", $1; for (i = 2; i <= NF; i++) if ($i ~ /^--hash=/) printf " %s", $i; print "" }' \
        "$1.joined" >>"$hashed"
    sed -E 's/ --hash=.*//' "$1.joined" >"$1"
    rm "$1.joined"
}
for set in a b; do
    # torch and torchvision are installed first, by pip (requirements-torch.txt). opencv-python needs libGL,
    # the headless build with the same module does not: it stands in. `typing` is for Python 2.
    compile "requirements-$set.in" -c requirements-torch.txt --output-file "lock-$set.txt"
    split "lock-$set.txt"
done
# The same with NumPy 1, for torch before 2.3: what does not depend on it stays as it is in lock-a.txt.
cp lock-a.txt lock-a-numpy1.txt
echo "numpy<2; python_version < '3.13'" | compile requirements-a.in -c - --output-file lock-a-numpy1.txt
split lock-a-numpy1.txt
# What `--with` adds to a set, without what the set itself has.
for set in a b; do
    for extra in mmdet mmpretrain track onnx geotiff; do
        lock=lock-$set-$extra.txt
        compile "requirements-$set-$extra.in" -c requirements-torch.txt -c "lock-$set.txt" --output-file "$lock"
        split "$lock"
        grep -vxFf "lock-$set.txt" "$lock" >"$lock.rest"
        mv "$lock.rest" "$lock"
    done
done
# The tool that installs them. (Hashes that are there already would be taken over.)
rm -f hashes.txt
"$uv" --version | sed -E 's/uv ([0-9.]+).*/uv==\1/' | compile - --output-file hashes.txt
split hashes.txt
LC_ALL=C sort -u "$hashed" >hashes.txt
# What torch itself depends on (sympy, jinja2, …), as a file of constraints: each build brings its own GPU
# libraries, so those are left to pip.
"$uv" pip compile requirements-torch.txt -c lock-a.txt --universal --python-version 3.10 \
    ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
    --no-emit-package torch --no-emit-package torchvision \
    --no-emit-find-links --no-annotate --quiet --custom-compile-command 'env/lock.sh' \
    | grep -Ev '^(nvidia|cuda|triton)' > lock-torch.txt
