#!/bin/sh
# Makes .clients: clients of the HTTP API that tests run and .venv cannot hold, because litellm needs
# an older openai and huggingface_hub. PIP_EXTRA adds arguments to pip.
set -eu
cd "$(dirname "$0")/.."

command -v curl >/dev/null || tools/apt.sh curl
echo "clients: installing litellm into .clients, for the tests" >&2
.venv/bin/python -m venv --clear .clients
# pip warns of every configured index that lacks a package; that line alone is dropped.
# shellcheck disable=SC2086
status=$({ {
    .clients/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
        --constraint tools/clients.txt ${PIP_EXTRA:-} litellm 2>&1 || echo $? >&3
} | sed '/WARNING: Location .* is ignored/d' >&2; } 3>&1)
[ "${status:-0}" -eq 0 ] || exit "$status"
touch .clients/installed
