#!/bin/sh
# Makes .venv with everything that serving, tests and checks need. PYTHON picks the interpreter,
# PIP_EXTRA adds arguments to pip.
set -eu
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    wanted=${PYTHON:-python3}
    say "Python 3.11 or newer is needed; $wanted is" \
        "$(command -v "$wanted" >/dev/null && "$wanted" --version 2>&1 || echo not there)."
    say "Install one and name it: make setup PYTHON=/path/to/python3"
    return 1
}

make_venv() {
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        say "$("$python" --version) has no venv module"
        tools/apt.sh "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
}

fill_venv() {
    say "installing into .venv, which takes minutes the first time"
    if [ "$(uname -s)" = Linux ] && [ -z "${PIP_EXTRA:-}" ] && ! command -v nvidia-smi >/dev/null; then
        say "no NVIDIA GPU seen. Where pip finds no CPU build of torch it takes one with gigabytes of" \
            "CUDA; this takes the CPU build:" \
            "make setup PIP_EXTRA='--extra-index-url https://download.pytorch.org/whl/cpu'"
    fi
    # pip warns of every configured index that lacks a package; that line alone is dropped.
    # shellcheck disable=SC2086
    status=$({ {
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
            --constraint constraints.txt ${PIP_EXTRA:-} --editable '.[dev]' 2>&1 || echo $? >&3
    } | sed '/WARNING: Location .* is ignored/d' >&2; } 3>&1)
    return "${status:-0}"
}

if ! { fits .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
    make_venv
fi
fill_venv
touch .venv/installed
