"""The floors hold: a room imports only what lies below it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLOORS = """numerics reporting io sharding checkpoint diffusion geometry head gaussians
render appearance models metrics tracking avatar data synthesis training create
viewer""".split()
SOURCES = sorted((ROOT / "geodiff_jax").rglob("*.py"))


def imported_modules(source: pathlib.Path) -> set[str]:
    """Every module that the file names in an import, wherever the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_to_lower_floors(source: pathlib.Path):
    parts = source.relative_to(ROOT).with_suffix("").parts
    for name in imported_modules(source):
        assert not name.startswith("experiments"), "the library never sees experiments"
        imported = name.split(".")
        if imported[0] != "geodiff_jax" or parts == ("geodiff_jax", "__init__"):
            continue
        if name == "geodiff_jax.__version__":
            continue
        assert len(imported) > 1, f"{source} imports the whole library"
        assert FLOORS.index(imported[1]) <= FLOORS.index(parts[1]), name


def test_every_room_has_a_floor():
    rooms = {p.relative_to(ROOT).with_suffix("").parts[1] for p in SOURCES}
    assert rooms - {"__init__"} <= set(FLOORS)
