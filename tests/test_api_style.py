"""One voice: how public functions and classes present themselves."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = [
    path
    for folder in ("geodiff_jax", "experiments")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
SHAPELESS_NAMES = {"utils", "util", "helpers", "common", "core", "misc", "base"}
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef

each_source = pytest.mark.parametrize(
    "source", SOURCES, ids=lambda p: str(p.relative_to(ROOT))
)


def public_functions(source: pathlib.Path) -> list[FUNCTION]:
    """Functions and methods that others may call."""
    tree = ast.parse(source.read_text())
    bodies = [tree.body] + [n.body for n in tree.body if isinstance(n, ast.ClassDef)]
    found = [node for body in bodies for node in body if isinstance(node, FUNCTION)]
    return [node for node in found if not node.name.startswith("_")]


def is_called_by_position(source: pathlib.Path) -> bool:
    """Flax calls its modules so, and ml_collections calls get_config so."""
    return source.relative_to(ROOT).parts[1] in ("models", "configs")


@each_source
def test_module_says_what_it_is(source: pathlib.Path):
    tree = ast.parse(source.read_text())
    assert ast.get_docstring(tree), "a module starts with a docstring"
    assert source.stem not in SHAPELESS_NAMES, "a name says what is inside"


@each_source
def test_public_names_are_documented(source: pathlib.Path):
    tree = ast.parse(source.read_text())
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    for node in classes + public_functions(source):
        assert node.name.startswith("_") or ast.get_docstring(node), node.name


@each_source
def test_functions_say_what_they_return(source: pathlib.Path):
    for function in public_functions(source):
        assert function.returns is not None, function.name


@each_source
def test_key_comes_first_and_is_never_called_rng(source: pathlib.Path):
    for function in public_functions(source):
        names = [a.arg for a in function.args.posonlyargs + function.args.args]
        everything = names + [a.arg for a in function.args.kwonlyargs]
        assert not {"rng", "seed_key", "prng"} & set(everything), function.name
        if "key" in everything:
            own = [name for name in names if name not in ("self", "cls")]
            assert own and own[0] == "key", f"{function.name}: key comes first"


@each_source
def test_options_are_keyword_only(source: pathlib.Path):
    for function in [] if is_called_by_position(source) else public_functions(source):
        assert not function.args.defaults, f"{function.name}: put `*` before options"
