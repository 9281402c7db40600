#!/bin/sh
# Resolves env/requirements-{a,b}.in into env/lock-{a,b,a-numpy1}.txt, and torch's own dependencies into
# env/lock-torch.txt. Run it after editing those, commit the result.
set -eu
cd "$(dirname "$0")"
uv=../.venv/bin/uv
compile() {
    "$uv" pip compile "$@" --universal --python-version 3.10 \
        ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
        --no-emit-package torch --no-emit-package torchvision --no-emit-package opencv-python --no-emit-package typing \
        --no-emit-find-links --no-annotate --quiet --custom-compile-command 'env/lock.sh'
}
for set in a b; do
    # torch and torchvision are installed first, by pip (requirements-torch.txt). opencv-python needs libGL,
    # the headless build with the same module does not: it stands in. `typing` is for Python 2.
    compile "requirements-$set.in" -c requirements-torch.txt --output-file "lock-$set.txt"
done
# The same with NumPy 1, for torch before 2.3: what does not depend on it stays as it is in lock-a.txt.
cp lock-a.txt lock-a-numpy1.txt
echo "numpy<2; python_version < '3.13'" | compile requirements-a.in -c - --output-file lock-a-numpy1.txt
# What torch itself depends on (sympy, jinja2, …), as a file of constraints: each build brings its own GPU
# libraries, so those are left to pip.
"$uv" pip compile requirements-torch.txt -c lock-a.txt --universal --python-version 3.10 \
    ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
    --no-emit-package torch --no-emit-package torchvision \
    --no-emit-find-links --no-annotate --quiet --custom-compile-command 'env/lock.sh' \
    | grep -Ev '^(nvidia|cuda|triton)' > lock-torch.txt
