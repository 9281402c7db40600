#!/bin/sh
# Makes the environment: `env/setup.sh --help`. Needs Debian, or any Linux with Python >= 3.10 and its venv
# module; as root on Debian it installs those itself. Quick when nothing has changed since the last time.
set -eu

usage() {
    cat <<'TEXT'
usage: env/setup.sh [a|b] [--with PACKAGES] [--torch VERSION] [--torch-index PLACE] [--into DIR]
       env/setup.sh --python PYTHON [--torch VERSION] [--torch-index PLACE] [--into DIR]

Without --python: makes the virtual environment of a dependency set, a (official OpenMMLab releases, the
default) in .venv, or b (the maintained forks) in .venv-b. Everything comes from where pip is told to look
(pip.conf, PIP_* variables).

  --with PACKAGES      also mmdet (for Mask2Former and MaskFormer), mmpretrain (for ConvNeXt, PoolFormer and its
                       other backbones), track (W&B, MLflow and ClearML, for --track), onnx (for export.py
                       --onnx), geotiff (rasterio, for large images), or several with commas;
                       kept from then on (--with none: without again)
  --torch VERSION      this PyTorch, 2.1 or newer, instead of the locked one, with the torchvision and the NumPy
                       that belong to it: 2.4, 2.4.1 or 2.4.1+cu121. It is kept until another is named
                       (--torch locked: back to the locked one)
  --torch-index PLACE  look for it there, too: a package index, or a folder of wheels
  --into DIR           make the environment in DIR
  --python PYTHON      take an environment that is there (conda, a module, venv) by its interpreter: says what
                       it lacks for Baton, and installs only that; into it, or where that may not be written
                       into .venv (or DIR) on top of it. PyTorch there is left as it is, unless --torch is given

PYTHON=/path/to/python3 names the interpreter that a new environment is made with.

examples:
  env/setup.sh
  env/setup.sh --with mmdet,mmpretrain
  env/setup.sh --torch 2.4.1
  env/setup.sh --torch 2.6.0+cu118 --torch-index https://wheels.example.org/cu118
  env/setup.sh --python ~/miniconda3/envs/openmmlab/bin/python
TEXT
}

fail() { echo "error: $*" >&2; exit 2; }

root=$(cd "$(dirname "$0")/.." && pwd)
set_name= torch= place= into= given= with=
while [ $# -gt 0 ]; do
    case $1 in
        --*=*) option=${1%%=*} value=${1#*=}; shift; set -- "$option" "$value" "$@" ;;
    esac
    case $1 in
        a|b) [ -z "$set_name" ] || fail "one dependency set at a time, not $set_name and $1"; set_name=$1 ;;
        -h|--help) usage; exit 0 ;;
        --torch|--torch-index|--into|--python|--with)
            [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a value (env/setup.sh --help)"
            case $1 in
                --torch) torch=$2 ;;
                --torch-index) place=$2 ;;
                --into) into=$2 ;;
                --python) given=$2 ;;
                --with) with=$2 ;;
            esac
            shift ;;
        -*) fail "there is no option $1 (env/setup.sh --help)" ;;
        *) fail "unknown dependency set '$1'; there are a and b" ;;
    esac
    shift
done
[ -z "$given" ] || [ "${set_name:-a}" = a ] || fail "--python is for set a: the forks want an environment of their own"
[ -z "$given" ] || [ -z "$with" ] || fail "--with is for an environment that this makes: install $with into $given yourself"
set_name=${set_name:-a}
case $set_name in
    a) venv=${into:-$root/.venv} ;;
    b) venv=${into:-$root/.venv-b} ;;
esac
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    fail "$venv is there and is no virtual environment: name another place with --into"
fi
[ ! -d "$place" ] || place=$(cd "$place" && pwd)

# What beside the set: as asked for, else as last time.
kept=$(cat "$venv/.with" 2>/dev/null) || kept=
[ -n "$given" ] || with=${with:-$kept}
[ "$with" != none ] || with=
extras=$(printf %s "$with" | tr , ' ')
for extra in $extras; do
    case $extra in
        mmdet|mmpretrain|track|onnx|geotiff) ;;
        *) fail "--with $extra: there are mmdet, mmpretrain, track, onnx and geotiff" ;;
    esac
done

# Which torch: as asked for, else as last time, else the locked one.
choice=$venv/.torch
if [ -z "$torch$place" ] && [ -z "$given" ] && [ -e "$choice" ]; then
    torch=$(cut -d' ' -f1 "$choice")
    chosen=$(cat "$choice")
else
    torch=${torch:-locked}
    chosen="$torch $(printf %s "$place" | cksum)"
fi
minor=
if [ "$torch" != locked ]; then
    minor=$(printf '%s\n' "$torch" | sed -nE 's/^2\.([0-9]+)(\.[0-9]+([a-z]+[0-9]+)?(\+[a-z0-9.]+)?)?$/\1/p')
    [ -n "$minor" ] && [ "$minor" -ge 1 ] || fail "--torch $torch: name a version from 2.1 on, such as 2.4.1 or 2.4.1+cu121"
fi

# torch 2.N and torchvision 0.(N+15) were released in pairs up to torch 2.13; a torchvision from 0.29 on is for torch
# 2.14 and later ones, and pip knows which fits. Those before torch 2.3 were built for NumPy 1. The last Python for
# which both were released: https://github.com/pytorch/pytorch/blob/main/RELEASE.md (torchvision came for 3.13 one
# release later).
lock=$root/env/lock-$set_name.txt
newest=99
if [ "${minor:-0}" -lt 14 ]; then torchvision="torchvision==0.$((minor + 15)).*"; else torchvision="torchvision>=0.29"; fi
case $minor in
    1) newest=11 ;;
    2|3|4|5) newest=12 ;;
    6|7|8) newest=13 ;;
esac
if [ -n "$minor" ] && [ "$minor" -lt 3 ]; then
    [ "$set_name" = a ] || fail "set b needs NumPy 2, so torch 2.3 or newer"
    lock=$root/env/lock-a-numpy1.txt
fi
locked=$root/env/requirements-torch.txt
locked_with=$root/env/lock-torch.txt

# PIP_USER, which some sites set, is refused in a virtual environment.
pip() { PIP_USER=0 "$python" -m pip --disable-pip-version-check "$@"; }

install_torch() {
    # By pip: sites point it at the build for their GPUs; from PyPI it is the CUDA build, several GB.
    # What it depends on is locked too, but for the build's own GPU libraries.
    set -- -q
    if [ -d "$place" ]; then set -- "$@" --find-links "$place"
    elif [ -n "$place" ]; then set -- "$@" --extra-index-url "$place"
    fi
    case $torch in
        locked) set -- "$@" -r "$locked" -c "$locked_with" ;;
        *.*.*) set -- "$@" "torch==$torch" "$torchvision" -c "$lock" ;;
        *) set -- "$@" "torch==$torch.*" "$torchvision" -c "$lock" ;;
    esac
    pip install "$@" || fail "pip could not install torch ($torch); what it says is above. --torch-index names another place"
}

with_hashes() { # FILE: its requirements, each with what its files must hash to, in $checked
    awk 'FNR == NR { hashes[$1] = substr($0, length($1) + 1); next }
        /^[^#]/ { if (!($1 in hashes)) exit 1; print $0 hashes[$1] }' "$root/env/hashes.txt" "$1" >"$checked" ||
        fail "env/hashes.txt does not have all of $1: run env/lock.sh"
}

install_rest() { # FILE
    # The lock is complete, so nothing is resolved again (--no-deps); opencv-python, which mmengine asks for
    # and which needs libGL, stays out in favour of the headless build of the same module. By uv where it can
    # be had, for it takes a tenth of the time; bytecode now, for jobs may not be able to write it, and
    # importing the stack without takes twice as long.
    uv=$(find_uv) || uv=
    with_hashes "$1"
    if [ -n "$uv" ]; then
        if (
            eval "$("$python" "$root/env/pip_settings.py")"
            "$uv" pip install -q --compile-bytecode --python "$python" --no-deps --require-hashes -r "$checked"
        ); then return; fi
        echo "uv could not install everything; pip goes on" >&2
    fi
    pip install -q --no-deps --require-hashes -r "$checked" || fail "pip could not install $1; what it says is above"
}

find_uv() {
    # Nothing more than it lacks is put into an environment that is somebody's own.
    grep '^uv==' "$root/env/hashes.txt" >"$checked"
    [ -z "$given" ] && pip install -q --require-hashes -r "$checked" >/dev/null 2>&1 &&
        "$python" -c 'import uv; print(uv.find_uv_bin())' 2>/dev/null
}

check() { # MODULES
    # A broken environment should fail here, not in a job.
    "$python" -c "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]
import numpy, torch; torch.from_numpy(numpy.zeros(1))" "$@" ||
        fail "the environment of $python is broken; what it says is above"
}

suits() { # PYTHON
    "$1" -c "import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null
}

lacking= checked=$(mktemp)
trap 'rm -f "$checked" $lacking' EXIT

if [ -n "$given" ]; then
    python=$(command -v "$given") || fail "--python $given: there is no such interpreter"
    case $python in /*) ;; *) python=$PWD/$python ;; esac
    cd "$root"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "--python $given: $("$python" --version 2>&1) is older than 3.10"
    lacking=$(mktemp)
    tell() { "$python" -m jobs.run.environment --problems; }
    if [ "$torch" = locked ] && tell | grep -q '^torch '; then
        fail "--python $given: $(tell | grep '^torch '); --torch VERSION installs one there"
    fi
    "$python" -m jobs.run.environment --wanted > "$lacking"
    if [ "$torch" = locked ] && [ ! -s "$lacking" ]; then
        echo "$python has all that Baton needs"
    else
        tell | sed "s|^|$python: |"
        echo "to be installed: $(sed 's/ *;.*//' "$lacking" | tr '\n' ' ')"
        # Debian's and others' own Python is closed to pip: https://peps.python.org/pep-0668/
        if ! "$python" -c 'import os, sys, sysconfig as s; sys.exit(not os.access(s.get_path("purelib"), os.W_OK) or (sys.prefix == sys.base_prefix and os.path.exists(os.path.join(s.get_path("stdlib"), "EXTERNALLY-MANAGED"))))'; then
            case $python in "$venv"/*) fail "$python may not be written: name another place with --into" ;; esac
            echo "It may not be written: what it lacks goes into $venv, on top of it"
            rm -f "$venv/.complete"
            "$python" -m venv --clear --system-site-packages "$venv"
            # A virtual environment is made on top of the Python below it; this names the one that was meant.
            "$python" -c 'import sys, sysconfig as s
if sys.prefix != sys.base_prefix: print(*("import site; site.addsitedir(%r)" % f for f in sorted({s.get_path("purelib"), s.get_path("platlib")})), sep="\n")' > "$venv/below.pth"
            python=$venv/bin/python
            mv "$venv/below.pth" "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/"
        fi
        [ "$torch" = locked ] || install_torch
        "$python" -m jobs.run.environment --wanted > "$lacking"
        [ ! -s "$lacking" ] || install_rest "$lacking"
        check cv2 mmcv mmengine torch
        left=$(tell)
        [ -z "$left" ] || fail "$python still does not fit: $left"
        echo "$python now has all that Baton needs"
    fi
    echo "for the jobs:      python: $python      in the profile (docs/clusters.md)"
    echo "for the commands:  $python launch/train.py …"
    exit 0
fi

stamp=$venv/.complete
wanted=$(
    cat "$lock" "$locked" "$locked_with" "$root/env/hashes.txt" "$0"
    for extra in $extras; do cat "$root/env/lock-$set_name-$extra.txt"; done
)
wanted=$(printf %s "$wanted" | cksum)" $chosen"
if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

python=
for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
    if suits "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ] && [ "$newest" = 99 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv
    ! suits /usr/bin/python3 || python=/usr/bin/python3
fi
if [ -z "$python" ]; then
    [ "$newest" = 99 ] || fail "torch $torch was built for Python 3.10 to 3.$newest, and none with its venv module was found: name one with PYTHON=/path/to/python3"
    fail "no Python >= 3.10 with its venv module was found. Install python3 and python3-venv, or name one with PYTHON=/path/to/python3"
fi

echo "Setting up dependency set $set_name${with:+ with $with} in $venv with $("$python" --version), torch $torch"
rm -f "$stamp"
# Made anew for another torch, whose GPU libraries would stay otherwise, for another Python, or with less
# beside the set; and where it was killed before pip was there.
before=$(cat "$choice" 2>/dev/null) || before="locked $(printf '' | cksum)"
less=
for extra in $(printf %s "$kept" | tr , ' '); do
    case ",$with," in *",$extra,"*) ;; *) less=$extra ;; esac
done
if [ "$before" != "$chosen" ] || [ -n "$less" ] || ! suits "$venv/bin/python" ||
    ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --clear "$venv"
fi
python=$venv/bin/python
printf '%s\n' "$chosen" > "$choice"
printf '%s\n' "$with" > "$venv/.with"

install_torch
install_rest "$lock"
for extra in $extras; do install_rest "$root/env/lock-$set_name-$extra.txt"; done
if [ "$torch" = locked ]; then check cv2 mmcv mmengine torch; else check cv2 mmcv mmengine torch torchvision; fi
printf '%s\n' "$wanted" > "$stamp"
