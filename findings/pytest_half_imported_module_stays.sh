#!/usr/bin/env bash
# pytest 9.2.0, --import-mode=importlib with --doctest-modules --doctest-ignore-import-errors.
#
# A module whose import raises ImportError is collected for doctests, and skipped as asked. One would guess that a test
# which imports the same module afterwards meets the ImportError again, as it does without the doctests: Python removes
# a module from sys.modules when its import fails. Seen: pytest leaves the half-executed module in sys.modules. The
# test's own import then succeeds, and what follows the failing line is missing from the module; pytest.importorskip
# does not skip any more.
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pytest==9.2.0
mkdir -p "$work/project/package" "$work/project/tests"
cd "$work/project"
echo 'import a_module_that_is_not_installed
VALUE = 1' >package/__init__.py
echo 'import importlib, pytest

def test_the_package_cannot_be_imported():
    with pytest.raises(ImportError):
        importlib.import_module("package")' >tests/test_import.py
options=(-q -p no:cacheprovider --import-mode=importlib --doctest-modules --doctest-ignore-import-errors)
export PYTHONPATH="$PWD" PYTHONDONTWRITEBYTECODE=1

alone=0 after=0
"$work/venv/bin/pytest" "${options[@]}" tests >alone.txt 2>&1 || alone=$?
"$work/venv/bin/pytest" "${options[@]}" package tests >after.txt 2>&1 || after=$?
tail -n 1 alone.txt
tail -n 1 after.txt
grep -o 'DID NOT RAISE.*' after.txt | head -n 1
[[ $alone == 0 && $after == 1 ]] && grep -q 'DID NOT RAISE' after.txt
