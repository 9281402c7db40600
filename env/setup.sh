#!/bin/sh
# Makes the virtual environment of a dependency set: env/setup.sh [a|b]. Set a goes to .venv, b to .venv-b.
# Needs Debian (or any Linux with Python >= 3.10 and its venv module); as root it installs those itself.
# Quick when nothing has changed since the last time.
set -eu
set_name=${1:-a}
root=$(cd "$(dirname "$0")/.." && pwd)
case $set_name in
    a) venv=$root/.venv ;;
    b) venv=$root/.venv-b ;;
    *) echo "error: unknown dependency set '$set_name'; there are a and b" >&2; exit 2 ;;
esac
lock=$root/env/lock-$set_name.txt
torch=$root/env/requirements-torch.txt
torch_lock=$root/env/lock-torch.txt
stamp=$venv/.complete

wanted=$(cat "$lock" "$torch" "$torch_lock" "$0" | cksum)
if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

suits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

python=
for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
    if suits "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv
        python=/usr/bin/python3
    fi
    if [ -z "$python" ] || ! suits "$python"; then
        echo "error: no Python >= 3.10 with its venv module was found." \
             "Install python3 and python3-venv, or name one with PYTHON=/path/to/python3" >&2
        exit 2
    fi
fi

echo "Setting up dependency set $set_name in $venv with $("$python" --version)"
rm -f "$stamp"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
# Killed before pip was there, making it leaves a Python without: then it is made anew.
pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"

# Sites point pip at the torch build for their GPUs, so torch comes by pip; from the index alone it is the
# CUDA build, several GB. What it depends on is locked too, but for the build's own GPU libraries.
pip install -q -r "$torch" -c "$torch_lock"

# The lock is complete, so nothing is resolved again (--no-deps), and holds each file to
# its hash; opencv-python, which mmengine asks for and which needs libGL, stays out in favour of the headless build of the same module.
if pip install -q uv==0.13.9 2>/dev/null; then
    # Bytecode now: jobs may not be able to write it, and importing the stack without takes twice as long.
    "$venv/bin/uv" pip install -q --compile-bytecode --python "$venv/bin/python" --no-deps --require-hashes -r "$lock"
else
    pip install -q --no-deps --require-hashes -r "$lock"
fi
"$venv/bin/python" - <<'PY'
import cv2, mmcv, mmengine, torch  # noqa: F401  a broken environment should fail here, not in a job
PY
echo "$wanted" > "$stamp"
