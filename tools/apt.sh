#!/bin/sh
# Installs Debian packages where that is possible without a password; else says what to install.
set -eu

if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    as_root=impossible
fi

if [ "$as_root" = impossible ] || ! command -v apt-get >/dev/null; then
    echo "Missing on this system: $*" >&2
    echo "Debian and Ubuntu: sudo apt-get install $*" >&2
    echo "Elsewhere: the package of the same purpose. Then run make again." >&2
    exit 1
fi

echo "apt-get: installing $*" >&2
$as_root apt-get update -qq >&2
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
