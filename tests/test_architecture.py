"""The layers: adapters -> iresnet_core -> backends -> the framework, read from the source and from a fresh process."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import capabilities
import pytest

import iresnet_core

PACKAGE = Path(iresnet_core.__file__).parent
ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
FRAMEWORKS = {"torch", "tensorflow", "jax", "jaxlib", "cupy", "keras"}
BACKENDS = {"numpy", "cupy", "torch", "tensorflow", "jax", "array_api_strict"}

# Who may import whom, as in docs/design.md. Everything may import what is in EVERYWHERE; backends import errors only.
ALLOWED = {
    "common": set(),
    "operators": {"common"},
    "branches": {"common", "operators"},
    "lipschitz": {"common", "operators"},
    "inverse": {"common", "operators", "branches", "lipschitz"},
    "determinant": {"common", "operators", "branches", "lipschitz"},
    "flows": {"common", "branches", "inverse", "determinant"},
    "files": {"operators", "branches", "flows"},
    "training": {"branches", "determinant", "flows", "files"},
    "classification": {"branches", "files", "training"},
    "validation": {
        "common",
        "operators",
        "branches",
        "lipschitz",
        "inverse",
        "determinant",
        "flows",
        "files",
        "reference",
        "example_data",
    },
    "parallel": {"determinant", "files", "flows", "training"},
    "reproduction": {
        *("common", "operators", "branches", "lipschitz", "inverse", "determinant", "flows", "files"),
        *("training", "classification", "validation", "reference", "example_data"),
    },
    "commands": {
        *("common", "operators", "branches", "lipschitz", "inverse", "determinant", "flows", "files"),
        *("training", "classification", "parallel", "validation", "reproduction", "reference", "example_data"),
    },
    "adapters": {
        *("common", "operators", "branches", "lipschitz", "inverse", "determinant", "flows", "files"),
        *("training", "classification", "reproduction"),
    },
    "reference": {"branches", "operators"},
    "example_data": {"branches", "operators"},
    "cli": {"commands"},
    "__main__": {"cli"},
    "backends": set(),
    "errors": set(),
    "results": set(),
}
EVERYWHERE = {"errors", "results", "backends"}
# The one arrow upwards, inside of a function: a layer that is asked for its Lipschitz constant asks for the bound.
UPWARDS = {("iresnet_core.operators.base", "iresnet_core.lipschitz.lipschitz_bound")}
FOLDERS = sorted(entry.name for entry in PACKAGE.iterdir() if (entry / "__init__.py").is_file())
# Modules that need an extra: they are imported by their own name, late, and not through their folder.
WITH_EXTRA = {"report_plots", "flow_plots", "plots_of_a_run", "dask_arrays", "dask_workers"}

# Where NumPy and SciPy compute, and why. All other modules work on the backend's arrays alone.
HOST_MODULES = {
    "branches.closed_walks": "the walks through the taps are counted on the host",
    "branches.local_traces": "the numbers of neighbouring positions are constants, made on the host",
    "classification": "batches, augmentation and scores are NumPy's",
    "commands": "prints and plots on the host",
    "determinant.coloring": "patterns of sparse matrices are SciPy's, and colours are found entry by entry",
    "determinant.far_side": "eigenvalues of matrices without symmetry, which the standard does not have",
    "determinant.quadrature": "nodes and weights are constants, made on the host",
    "determinant.sample_seed": "the words of counters are constants, made on the host",
    "determinant.sparse_factors": "sparse matrices are SciPy's, and so are their factors",
    "determinant.tails": "tails of the series of the logarithm are numbers, summed on the host",
    "example_data": "the shipped files hold NumPy arrays",
    "files": "files hold NumPy's arrays",
    "lipschitz.probabilistic": "a root of a small polynomial per operator, found in float64 on the host",
    "lipschitz.frequencies": "the phases are constants of the geometry, made on the host",
    "parallel": "chunks are NumPy's, on whatever backend they were computed",
    "reference": "the exact answers are NumPy's and SciPy's",
    "reproduction": "compares and draws on the host",
    "training": "batches, checkpoints and scores are NumPy's",
    "validation": "compares with the exact answers on the host",
}

# The limits of size.
MOST_FILES_AT_THE_ROOT = 8
MOST_LINES = 450
# The functions of iresnet_core.commands are exempt: an option of the command line is a parameter there.
MOST_PARAMETERS = 10

# What the other modules may use of NumPy and SciPy: constants that are made on the host and sent to the backend.
HOST_CONSTANTS = {
    "numpy.arange": "the exponents in a table of powers of two",
    "numpy.ldexp": "the powers, which a GPU's own are not exactly",
    "numpy.ndarray": "the type of such a constant",
    "numpy.polynomial.legendre.leggauss": "the nodes of a quadrature",
    "numpy.random.default_rng": "a start vector that is the same on every backend",
    "scipy.sparse.linalg.aslinearoperator": "what SciPy accepts as a linear operator",
}


def name_of(path):
    """Dotted name of a module file."""
    parts = ("iresnet_core", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(name):
    """Folder that a module is in, or the module's own name at the root of the package."""
    return (*name.split("."), "")[1]


def host_module(name):
    """Return the entry of HOST_MODULES that a module falls under, or None."""
    return next((entry for entry in HOST_MODULES if within(name, f"iresnet_core.{entry}")), None)


def imports_in(tree):
    """Yield (target, level) of every import, also inside functions; "from a import b" counts as a and as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level
            for alias in node.names:
                yield f"{node.module or ''}.{alias.name}", node.level


class HostUses(ast.NodeVisitor):
    """Dotted names of NumPy and SciPy that a module uses, such as numpy.random.default_rng."""

    def __init__(self, tree):
        self.found = []
        self.names = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    self.names[bound] = alias.name if alias.asname else bound
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        self.names = {bound: target for bound, target in self.names.items() if within(target, "numpy", "scipy")}
        self.visit(tree)

    def visit_Name(self, node):
        if node.id in self.names:
            self.found.append(self.names[node.id])

    def visit_Attribute(self, node):
        parts = []
        inner = node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id in self.names:
            self.found.append(".".join((self.names[inner.id], *parts)))
        else:
            self.visit(inner)


def within(name, *packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def violations(name, tree):
    """Every forbidden import of one module."""
    mine = folder_of(name)
    core = mine not in ("backends", "adapters")
    found = []
    for target, level in imports_in(tree):
        if level:
            found.append(f"relative import of {target!r}")
        if core and within(target, *FRAMEWORKS):
            found.append(f"the core imports the framework {target}")
        if core and within(target, *(f"iresnet_core.backends.{backend}" for backend in BACKENDS)):
            found.append(f"the core imports one backend, {target}, instead of asking get_backend")
        theirs = folder_of(target)
        if not within(target, "iresnet_core") or theirs in ("", mine) or mine in ("", "__init__"):
            continue
        if any(name == module and within(late, target) for module, late in UPWARDS):
            continue
        if theirs not in ALLOWED.get(mine, set()) | (EVERYWHERE if mine != "backends" else {"errors"}):
            found.append(f"{mine} may not import {theirs} ({target})")
        elif theirs in FOLDERS and theirs != "backends" and mine != "cli":
            inner = (*target.split("."), "", "")[2]
            if (PACKAGE / theirs / f"{inner}.py").is_file() and inner not in WITH_EXTRA:
                found.append(f"{target} belongs to {theirs}: import what {theirs}/__init__.py exports")
    if core and host_module(name) is None:
        foreign = [used for used in HostUses(tree).found if not within(used, *HOST_CONSTANTS)]
        found += [f"{used} is used, but the module is not in HOST_MODULES" for used in foreign]
    return found


def backend_branches(tree):
    """Yield the lines that compare something with the name of a backend."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            compared = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            compared = [node.value]
        else:
            continue
        for side in compared:
            for leaf in ast.walk(side):
                if isinstance(leaf, ast.Constant) and leaf.value in BACKENDS:
                    yield node.lineno if isinstance(node, ast.Compare) else node.value.lineno


def may_lack_its_dependency(path):
    """Whether a module imports what may not be installed: a framework, or an extra."""
    frameworks = within(name_of(path), "iresnet_core.adapters", *(f"iresnet_core.backends.{e}" for e in BACKENDS))
    return frameworks or path.stem in WITH_EXTRA


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_layers(path):
    assert violations(name_of(path), parsed(path)) == []


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("iresnet_core.lipschitz.estimates", "import torch.nn", "framework"),
        ("iresnet_core.lipschitz.estimates", "def f():\n    from jax import numpy", "framework"),
        (
            "iresnet_core.lipschitz.estimates",
            "import numpy as np\ndef f(x): return np.linalg.norm(x)",
            "numpy.linalg.norm is used",
        ),
        ("iresnet_core.lipschitz.estimates", "import numpy as np\nxp = np", "numpy is used"),
        ("iresnet_core.lipschitz.estimates", "import numpy as np\nx = np.zeros(3).sum()", "numpy.zeros is used"),
        (
            "iresnet_core.lipschitz.estimates",
            "def f(x):\n    from scipy import linalg\n    linalg.svd(x)",
            "scipy.linalg.svd is used",
        ),
        ("iresnet_core.lipschitz.estimates", "import scipy.linalg\nscipy.linalg.svd(x)", "scipy.linalg.svd is used"),
        ("iresnet_core.lipschitz.estimates", "from iresnet_core.backends.numpy import NumPyBackend", "one backend"),
        ("iresnet_core.lipschitz.estimates", "from iresnet_core.backends import torch", "one backend"),
        ("iresnet_core.lipschitz.estimates", "from iresnet_core import adapters", "may not import adapters"),
        ("iresnet_core.lipschitz.estimates", "from . import errors", "relative"),
        ("iresnet_core.backends.torch", "from iresnet_core.lipschitz import f", "may not import lipschitz"),
        ("iresnet_core.backends.torch", "from iresnet_core.adapters.torch import f", "may not import adapters"),
        ("iresnet_core.backends.torch", "from iresnet_core.results import LogDet", "may not import results"),
        ("iresnet_core.inverse.dispatch", "from iresnet_core.determinant import logdet", "may not import determinant"),
        ("iresnet_core.operators.dense", "from iresnet_core.lipschitz import lipschitz_bound", "may not import"),
        ("iresnet_core.flows.flow", "from iresnet_core.branches.chain import Chain", "belongs to branches"),
    ],
)
def test_the_check_of_imports_sees_a_violation(name, source, message):
    assert any(message in found for found in violations(name, ast.parse(source)))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("iresnet_core.reference", "import numpy as np, scipy.linalg\nnp.linalg.svd(scipy.linalg.logm(x))"),
        ("iresnet_core.lipschitz.estimates", "from iresnet_core.backends import get_backend"),
        ("iresnet_core.lipschitz.estimates", "import numpy as np\nstart = np.random.default_rng(0).standard_normal(3)"),
        ("iresnet_core.lipschitz.estimates", "from iresnet_core.backends.base import Backend"),
        ("iresnet_core.backends.torch", "import torch, numpy\nfrom iresnet_core.errors import DtypeError"),
        ("iresnet_core.adapters.torch", "import torch\nfrom iresnet_core.lipschitz import f"),
        ("iresnet_core.operators.base", "def f():\n    from iresnet_core.lipschitz import lipschitz_bound"),
    ],
)
def test_the_check_of_imports_lets_the_layers_through(name, source):
    assert violations(name, ast.parse(source)) == []


def test_host_modules_exist():
    assert set(HOST_MODULES) - {host_module(name_of(path)) for path in MODULES} == set()


@pytest.mark.parametrize(
    "path", [p for p in MODULES if folder_of(name_of(p)) not in ("backends", "adapters")], ids=name_of
)
def test_core_asks_for_no_backend_by_name(path):
    assert list(backend_branches(parsed(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        "if backend.name == 'torch': pass",
        "if 'numpy' != backend.name: pass",
        "x = backend.name in ('jax', 'cupy')",
        "match backend.name:\n    case 'tensorflow': pass",
    ],
)
def test_the_check_of_names_sees_a_branch(source):
    assert list(backend_branches(ast.parse(source))) != []


def fresh_process(code, folder):
    """Run `code` in a new interpreter, away from the checkout; returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["iresnet_core", "iresnet_core.backends", "iresnet_core.adapters"])
def test_import_loads_no_framework(module, tmp_path):
    heavy = sorted(FRAMEWORKS | {"array_api_strict", "typer", "rich", "matplotlib"})
    printed = fresh_process(
        f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])", tmp_path
    )
    assert printed.strip() == "[]"


def test_public_names_resolve():
    assert sorted(iresnet_core.__all__) == sorted(set(iresnet_core.__all__))
    for name in iresnet_core.__all__:
        assert getattr(iresnet_core, name) is not None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_all_names_what_the_module_has(path):
    optional = may_lack_its_dependency(path)
    module = pytest.importorskip(name_of(path), exc_type=ImportError) if optional else None
    module = module or importlib.import_module(name_of(path))
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), f"{name_of(path)}.__all__ names {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_public_name_is_that_of_a_module(path):
    if path.name == "__init__.py":
        # A name of the package that is also a module of it would mean now the one, now the other.
        beside = {entry.stem for entry in path.parent.iterdir()}
        optional = may_lack_its_dependency(path)
        module = pytest.importorskip(name_of(path), exc_type=ImportError) if optional else None
        module = module or importlib.import_module(name_of(path))
        assert beside & set(getattr(module, "__all__", ())) == set()
    functions = {node.name for node in parsed(path).body if isinstance(node, ast.FunctionDef)}
    assert name_of(path).rsplit(".", 1)[-1] not in functions


def test_the_page_on_design_holds_the_same_table():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = page.split("## Folders\n")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line) for line in section.splitlines() if line.startswith("| `")]
    table = {row[1].strip(" `"): set(re.findall(r"`(\w+)`", row[3])) for row in rows}
    assert table == {name: allowed for name, allowed in ALLOWED.items() if name not in ("errors", "results")}


def parameters_of(function):
    """Names of all parameters of a function; `self` and `cls` are no choice of the caller's."""
    listed = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [one.arg for one in listed if one.arg not in ("self", "cls")]


def test_few_files_stand_at_the_root_of_the_package():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FILES_AT_THE_ROOT


def test_no_file_is_too_long():
    roots = {"iresnet_core": PACKAGE, "tests": ROOT / "tests"}
    found = {
        f"{name}/{path.relative_to(root).as_posix()}"
        for name, root in roots.items()
        for path in root.rglob("*.py")
        if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES
    }
    assert found == set()


def test_no_function_has_too_many_parameters():
    found = {
        f"{name_of(path)}.{node.name}"
        for path in MODULES
        if folder_of(name_of(path)) != "commands"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(parameters_of(node)) > MOST_PARAMETERS
    }
    assert found == set()


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py" and p.parent != PACKAGE], ids=name_of)
def test_every_folder_says_in_one_sentence_what_is_in_it(path):
    said = ast.get_docstring(parsed(path)) or ""
    assert said.endswith(".")
    assert ". " not in said
    assert "\n\n" not in said


def test_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("name", ["backends", "adapters"])
def test_links_at_the_root_lead_to_the_subpackages(name):
    link = ROOT / name
    if not os.path.lexists(link) and (ROOT / "PKG-INFO").exists():
        pytest.skip("a source archive has no links at its root")
    if link.is_file() and link.read_text(encoding="utf-8").strip() == f"iresnet_core/{name}":
        pytest.skip("this checkout has no symbolic links: the link is a plain file with its target")
    assert link.is_symlink()
    assert not Path(os.readlink(link)).is_absolute()
    assert link.resolve() == ROOT / "iresnet_core" / name
    assert (link / "__init__.py").is_file()


def test_page_of_capabilities_equals_the_table():
    page = (ROOT / "docs" / "capabilities.md").read_text(encoding="utf-8")
    assert page == capabilities.as_markdown(), "run: python tests/helpers/capabilities.py > docs/capabilities.md"
