"""House rules that a machine can keep: who imports whom, how long things get, what is never done."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "ouroboros_core": ROOT / "ouroboros_core",
    "ouroboros_plugins": ROOT / "plugins" / "ouroboros_plugins",
    "ouroboros_cli": ROOT / "cli" / "ouroboros_cli",
}
FORBIDDEN = {
    "ouroboros_core": {"ouroboros_plugins", "ouroboros_cli", "typer", "rich", "click"},
    "ouroboros_plugins": {"ouroboros_cli", "typer", "rich", "click"},
    "ouroboros_cli": {"ouroboros_plugins"},
}
VAGUE = {"utils", "util", "common", "base", "helpers", "helper", "misc"}
FILE, FUNCTION = 250, 40  # lines
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FILES = [path for package in PACKAGES.values() for path in sorted(package.rglob("*.py"))]

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def imported(tree):
    """The top-level packages that a module imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and named(node.func) in ("import_module", "__import__"):
            yield from (str(arg.value).split(".")[0] for arg in node.args if isinstance(arg, ast.Constant))


def named(function):
    """The last name of what is called."""
    return getattr(function, "attr", getattr(function, "id", ""))


def written_lines(function):
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    return lines - (first.end_lineno - first.lineno + 1) if ast.get_docstring(function) else lines


def public(body):
    """Public functions and classes, and the public methods of those classes."""
    for node in body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef) and not is_protocol(node):
                yield from public(node.body)


def is_protocol(node):
    return any(named(base) == "Protocol" for base in node.bases)


def dangers(tree):
    """Calls that may run code from a file: `torch.load`, pickle, remote code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) == "torch.load":
                yield node.lineno, "torch.load"
            if any(k.arg == "trust_remote_code" and ast.unparse(k.value) == "True" for k in node.keywords):
                yield node.lineno, "trust_remote_code=True"
    yield from ((0, name) for name in imported(tree) if name in {"pickle", "cPickle", "dill", "cloudpickle", "joblib"})


def swallowed(tree):
    """Lines of handlers that do nothing at all."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and all(isinstance(line, ast.Pass) or ast.unparse(line) == "..." for line in node.body)
    ]


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_there_are_files_to_look_at():
    assert all(list(package.rglob("*.py")) for package in PACKAGES.values())


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_point_one_way(package):
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in PACKAGES[package].rglob("*.py")
        for name in FORBIDDEN[package] & set(imported(parsed(path)))
    }
    assert wrong == set()


@every_file
def test_a_file_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE


@every_file
def test_its_functions_are_short(path):
    functions = [node for node in ast.walk(parsed(path)) if isinstance(node, FUNCTIONS)]
    assert {f"{f.name}: {written_lines(f)} lines" for f in functions if written_lines(f) > FUNCTION} == set()


@every_file
def test_its_name_says_what_it_holds(path):
    assert not VAGUE & set(path.relative_to(ROOT).with_suffix("").parts)


@every_file
def test_nothing_it_reads_can_run_code(path):
    assert list(dangers(parsed(path))) == []


@every_file
def test_no_exception_vanishes(path):
    assert swallowed(parsed(path)) == []


@every_file
def test_what_is_public_is_documented(path):
    tree = parsed(path)
    missing = [node.name for node in public(tree.body) if not ast.get_docstring(node)]
    assert missing == []
    assert ast.get_docstring(tree) or not tree.body


# The rules themselves, on planted defects

PLANTED = {
    "import": "import rich.table",
    "from": "from rich import print",
    "inside a function": "def f():\n    from rich.table import Table",
    "by name": "import importlib\nimportlib.import_module('rich.table')",
}


@pytest.mark.parametrize("source", PLANTED.values(), ids=PLANTED)
def test_an_import_is_found_wherever_it_stands(source):
    assert "rich" in set(imported(ast.parse(source)))


@pytest.mark.parametrize("source", ["torch.load('a')", "import pickle", "from_pretrained('a', trust_remote_code=True)"])
def test_a_danger_is_found(source):
    assert list(dangers(ast.parse(source)))


@pytest.mark.parametrize("body", ["pass", "..."])
def test_a_swallowed_exception_is_found(body):
    assert swallowed(ast.parse(f"try:\n    f()\nexcept OSError:\n    {body}")) == [3]


def test_a_docstring_is_not_counted_and_everything_else_is():
    (function,) = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    x = 1\n    return x').body
    assert written_lines(function) == 3


def test_a_missing_docstring_is_found_in_classes_too():
    source = "class A:\n    def f(self):\n        x = 1\n        return x\n    def _g(self): ...\ndef _h(): ..."
    assert [node.name for node in public(ast.parse(source).body) if not ast.get_docstring(node)] == ["A", "f"]
