#!/bin/sh
# Makes .clients: an environment of its own for clients of the HTTP API that tests run but whose
# dependencies .venv cannot hold (litellm needs an older openai and huggingface_hub).
set -eu
cd "$(dirname "$0")/.."

python=.venv/bin/python
echo "clients: installing into .clients" >&2
"$python" -m venv --clear .clients
# shellcheck disable=SC2086
.clients/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
    --constraint tools/clients.txt ${PIP_EXTRA:-} litellm
touch .clients/installed
