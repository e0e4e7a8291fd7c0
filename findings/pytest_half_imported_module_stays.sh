#!/usr/bin/env bash
# Version: pytest 9.2.0.
# Behaviour: with --import-mode=importlib, --doctest-modules and --doctest-ignore-import-errors, a module whose import
#   raises ImportError is skipped when its doctests are collected, but stays half executed in sys.modules. A test that
#   imports it afterwards gets what was executed before the failing line, and pytest.importorskip does not skip any more.
# Guess: the test meets the ImportError again, as it does without the doctests, since Python removes a module from
#   sys.modules when its import fails.
# Output: "1 passed" for the test alone; "1 failed, 1 skipped" and "DID NOT RAISE ImportError" after the doctests.
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
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
