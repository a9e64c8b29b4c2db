#!/bin/sh
# What tests need from the system beside Python: a browser. Installs what is missing.
set -eu
cd "$(dirname "$0")/.."

missing=
for program in chromium; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
# shellcheck disable=SC2086
[ -z "$missing" ] || tools/apt.sh $missing
