#!/bin/sh
# Resolves env/requirements-{a,b}.in into env/lock-{a,b}.txt, and torch's own dependencies into
# env/lock-torch.txt. Run it after editing those, commit the result.
set -eu
cd "$(dirname "$0")"
uv=../.venv/bin/uv
for set in a b; do
    # torch and torchvision are installed first, by pip (requirements-torch.txt). opencv-python needs libGL,
    # the headless build with the same module does not: it stands in. `typing` is for Python 2.
    "$uv" pip compile "requirements-$set.in" -c requirements-torch.txt --universal --python-version 3.10 \
        ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
        --no-emit-package torch --no-emit-package torchvision --no-emit-package opencv-python --no-emit-package typing \
        --no-emit-find-links --no-annotate --quiet --custom-compile-command 'env/lock.sh' \
        --generate-hashes --output-file "lock-$set.txt"
done
# torch comes in as many builds as there are GPUs: it is held to its version, not to a hash. pip installs what
# it depends on along with it, so that is held to versions as well.
# What torch itself depends on (sympy, jinja2, …), as a file of constraints: each build brings its own GPU
# libraries, so those are left to pip.
"$uv" pip compile requirements-torch.txt -c lock-a.txt --universal --python-version 3.10 \
    ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
    --no-emit-package torch --no-emit-package torchvision \
    --no-emit-find-links --no-annotate --quiet --custom-compile-command 'env/lock.sh' \
    | grep -Ev '^(nvidia|cuda|triton)' > lock-torch.txt
