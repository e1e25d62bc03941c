#!/bin/sh
# Install a wheel in a clean virtual environment outside the checkout and run the Python tests
# against it. Usage: wheel.sh dist/ltde-*.whl
set -eu
wheel=$(realpath "$1")
tests=$(realpath "$(dirname "$0")")
config=$(realpath "$(dirname "$0")/../pyproject.toml")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$wheel[test]"
cp -r "$tests" "$work/tests"
cp "$config" "$work/pyproject.toml"
cd "$work"
"$work/venv/bin/python" -c 'import ltde, sys; assert sys.prefix in ltde.__file__, ltde.__file__'
"$work/venv/bin/python" -m pytest -q -m "not slow and not checkout"
