#!/bin/sh
# Installs, if this user may, what tests/local needs beyond Python: Chromium (to test the report in a real
# browser), zsh (completion), strace (to count a start's file system calls), and the tools that make and mount a
# squashfs image (env/pack.sh).
# `make test` calls this; without root or apt-get it says so, and those tests are skipped.
set -eu
[ $# -eq 0 ] || { sed -n '2,/^set/s/^# //p' "$0"; [ "$1" = --help ] && exit; exit 2; }
lacking=
command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || lacking=chromium
command -v zsh >/dev/null 2>&1 || lacking="$lacking zsh"
command -v strace >/dev/null 2>&1 || lacking="$lacking strace"
command -v mksquashfs >/dev/null 2>&1 || lacking="$lacking squashfs-tools"
command -v squashfuse >/dev/null 2>&1 || lacking="$lacking squashfuse"
command -v fusermount3 >/dev/null 2>&1 || lacking="$lacking fuse3"
[ -n "$lacking" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Some tests want $lacking and skip without; as root on Debian: sh env/test-tools.sh" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# shellcheck disable=SC2086  # a list
apt-get -qq install -y --no-install-recommends $lacking >/dev/null
