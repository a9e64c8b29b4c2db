#!/bin/sh
# Installs the programs that tests start and this system lacks. A line: program, Debian package.
set -eu
cd "$(dirname "$0")/.."

missing=
while read -r program package; do
    command -v "$program" >/dev/null || missing="$missing $package"
done <<EOF
chromium chromium
prometheus prometheus
promtool prometheus
redis-server redis-server
EOF

if [ -n "$missing" ]; then
    # Two programs may come from one package.
    # shellcheck disable=SC2046,SC2086
    tools/apt.sh $(printf '%s\n' $missing | sort -u)
fi
