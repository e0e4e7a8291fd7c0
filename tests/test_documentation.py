"""Every Python block of README.md and of the docs runs, and prints what the page says it prints."""

import contextlib
import importlib.util
import io
import re
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent>[ \t>]*)(?P<marks>`{3,}|~{3,})(?P<info>.*)$")
OUTPUT = "<!-- output -->"
# In the first line of a page whose blocks need frameworks, or before one block of a page that runs without.
NEEDS = re.compile(r"<!-- needs (?P<modules>[\w ]+) -->")


@dataclass
class Block:
    """A fenced block: the line its text begins at (from 1), info, text, modules it needs, the output it must print."""

    line: int
    info: str
    text: str
    needs: tuple[str, ...] = ()
    expected: str | None = None


class PageError(AssertionError):
    """The page is written such that a block would not be run or compared."""


def blocks(text):
    """Return the Python blocks of a page; refuses those that would silently not be run or not be compared."""
    found = []
    lines = text.splitlines()
    previous = None  # the Python block that only blank lines separate from here
    marked = None  # the Python block that an output comment just referred to
    needs = ()  # of the block that follows
    i = 0
    while i < len(lines):
        line = lines[i]
        fence = FENCE.match(line)
        if fence:
            start = i + 1
            closing = re.compile(rf"^[ \t>]*{re.escape(fence['marks'][0])}{{{len(fence['marks'])},}}\s*$")
            i = start
            while i < len(lines) and not closing.match(lines[i]):
                i += 1
            if i == len(lines):
                raise PageError(f"line {start}: the block is never closed")
            block = Block(start + 1, fence["info"].strip(), textwrap.dedent("\n".join(lines[start:i])) + "\n", needs)
            needs = ()
            if marked is not None:
                if block.info not in ("text", "console"):
                    raise PageError(f"line {start}: {OUTPUT} is followed by a block of {block.info or 'nothing'!r}")
                marked.expected = block.text
                previous = marked = None
            elif re.match(r"\W*py", block.info, re.IGNORECASE):
                if block.info != "python":
                    raise PageError(f"line {start}: write ```python and nothing more; every block runs")
                found.append(block)
                previous = block
            else:
                previous = None
        elif OUTPUT in line:
            if line.strip() != OUTPUT or previous is None:
                raise PageError(f"line {i + 1}: {OUTPUT} has to follow a Python block")
            marked, previous = previous, None
        elif NEEDS.match(line):
            needs = tuple(NEEDS.match(line)["modules"].split()) if i else ()  # the first line speaks of the page
            previous = None
        elif line.strip():
            if needs:
                raise PageError(f"line {i + 1}: what is needed has to be followed by the block that needs it")
            if marked is not None:
                raise PageError(f"line {i + 1}: {OUTPUT} has to be followed by a block")
            previous = None
        i += 1
    if marked is not None:
        raise PageError(f"{OUTPUT} has to be followed by a block")
    return found


def run(page, text):
    """Run the blocks of a page in one namespace and compare what they print."""
    namespace = {"__name__": "__main__"}
    for block in blocks(text):
        if not all(importlib.util.find_spec(module) for module in block.needs):
            continue
        # Padded, so that a traceback names the line of the page.
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block.expected is not None:
            assert printed.getvalue() == block.expected, f"output of the block at line {block.line} of {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_runs(page, tmp_path, monkeypatch, pytestconfig):
    if pytestconfig.getoption("--device"):
        pytest.skip("the pages show what a CPU prints")
    text = page.read_text(encoding="utf-8")
    needs = NEEDS.match(text)
    modules = needs["modules"].split() if needs else []
    for module in modules:
        pytest.importorskip(module, reason=f"{module} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    with warnings.catch_warnings():
        if "lightning" in modules:
            warnings.simplefilter("ignore")  # Lightning warns of workers, loggers and much else
        run(page, text)


def documented():
    """Dotted names that the pages of the reference describe."""
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md")]
    return {name for text in pages for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)}


ADAPTERS = {"iresnet_core.adapters.torch": "torch", "iresnet_core.adapters.keras": "keras"}


@pytest.mark.parametrize("package", ["iresnet_core", "iresnet_core.backends", "iresnet_core.errors", *ADAPTERS])
def test_every_public_name_is_on_a_page_of_the_reference(package):
    # The framework is asked for, not the adapter: where the doctests' collection could not import an adapter, pytest
    # leaves an empty module of its name behind, which imports without an error.
    if package in ADAPTERS:
        pytest.importorskip(ADAPTERS[package])
    names = {f"{package}.{name}" for name in importlib.import_module(package).__all__}
    # An alias of typing.Any needs no page; the page of the errors describes the whole module.
    exempt = {"iresnet_core.backends.Array", "iresnet_core.IResNetError"}
    if package in documented():
        return
    assert names - exempt - documented() == set()


PATH = re.compile(r"`((?:iresnet_core|tests|docs|benchmarks)/[\w./-]*)`")


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_that_a_page_names_exist(page):
    named = set(PATH.findall(page.read_text(encoding="utf-8")))
    assert {path for path in named if not (ROOT / path).exists()} == set()


LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]+))?\)")


def anchors(page):
    """Anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_images_of_a_page_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target, anchor in LINK.findall(re.sub(r"`[^`]*`", "", text)):
        found = page.parent / target if target else page
        assert found.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{page.name} links to {target}#{anchor}"


GOOD = """
# Page

```python
x = 2
print(x)
```

<!-- output -->
```text
2
```

!!! note

    ```python
    if x:
        print(x + 1)
    ```

```bash
exit 1
```
"""


def test_runner_runs_a_page():
    assert [(block.line, block.expected) for block in blocks(GOOD)] == [(5, "2\n"), (17, None)]
    run(Path("page.md"), GOOD)
    run(Path("page.md"), GOOD + "<!-- needs no_such_module -->\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError):
        run(Path("page.md"), GOOD + "<!-- needs math -->\n```python\n1 / 0\n```\n")
    run(Path("page.md"), "# A page without blocks\n")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (GOOD.replace("\n2\n", "\n3\n"), AssertionError),
        (GOOD.replace("\n2\n", "\n2 \n"), AssertionError),
        (GOOD.replace("x + 1", "y"), NameError),
        (GOOD.replace("```python\nx", "```python notest\nx"), PageError),
        (GOOD.replace("```python\nx", "```py\nx"), PageError),
        (GOOD.replace("```python\nx", "``` {.python .ignore}\nx"), PageError),
        (GOOD.replace("```python\nx", "```pycon\nx"), PageError),
        (GOOD.replace("print(x)\n```\n", "print(x)\n```\nwords\n"), PageError),
        (GOOD.replace("<!-- output -->\n", "<!-- output -->\nwords\n"), PageError),
        (GOOD.replace("```text", "```json"), PageError),
        (GOOD + "```python\n", PageError),
        (GOOD + "<!-- output -->\n", PageError),
        (GOOD + "<!-- needs math -->\nwords\n", PageError),
    ],
)
def test_runner_refuses_what_it_would_not_check(text, error):
    assert text != GOOD
    with pytest.raises(error):
        run(Path("page.md"), text)
