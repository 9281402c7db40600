#!/bin/sh
# Makes .venv-track: .venv with the packages of W&B, MLflow, ClearML, ONNX and rasterio (800 MB) on top, for their tests.
# Quick when nothing has changed. Users install them by env/setup.sh --with track,onnx,geotiff.
set -eu
cd "$(dirname "$0")/.."
venv=.venv-track wanted=$(cat env/lock-a-track.txt env/lock-a-onnx.txt env/lock-a-geotiff.txt env/hashes.txt .venv/.complete "$0" | cksum)
[ ! -e $venv/.complete ] || [ "$(cat $venv/.complete)" != "$wanted" ] || exit 0
echo "Setting up $venv"
.venv/bin/python -m venv --clear $venv
checked=$(mktemp)
trap 'rm -f "$checked"' EXIT
awk 'FNR == NR { hashes[$1] = substr($0, length($1) + 1); next } /^[^#]/ { print $0 hashes[$1] }' \
    env/hashes.txt env/lock-a-track.txt env/lock-a-onnx.txt env/lock-a-geotiff.txt | sort -u >"$checked"
PIP_USER=0 $venv/bin/python -m pip --disable-pip-version-check install -q --no-deps --require-hashes -r "$checked"
# A virtual environment is made on top of the Python below it; this names .venv.
.venv/bin/python -c 'import sysconfig as s
print(*("import site; site.addsitedir(%r)" % f for f in sorted({s.get_path("purelib"), s.get_path("platlib")})), sep="\n")' \
    >"$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
$venv/bin/python -c 'import clearml, mlflow, onnxruntime, rasterio, torch, wandb'
printf '%s\n' "$wanted" >$venv/.complete
