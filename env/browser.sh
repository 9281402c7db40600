#!/bin/sh
# Installs Chromium (Debian's package), in which tests/local looks at the report, where this user may.
# `make test` calls this; without root or apt-get it says so, and that test skips.
set -eu
for program in chromium chromium-browser google-chrome; do
    if command -v "$program" >/dev/null 2>&1; then exit 0; fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "The report is tested in a real browser; there is none here. As root on Debian: sh env/browser.sh" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends chromium >/dev/null
