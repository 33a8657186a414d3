"""Which part of the package may import which: from a higher floor to a lower one, never back, never in a circle."""

import pytest

from tests import layout

FLOORS = [  # from the lowest; modules of one floor do not import each other's rooms
    {"fvlm", "errors"},
    {"files", "config", "hub"},
    {"records", "batch", "style", "pages"},
    {"data"},
    {"costs"},
    {"analysis"},
    {"device", "data_report"},
    {"model"},
    {"evaluate"},
    {"train", "use"},
    {"study"},
    {"snakemake"},
    {"__main__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def test_every_room_has_its_floor():
    assert {layout.room(module) for module in layout.MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", layout.MODULES)
def test_a_module_imports_only_from_lower_floors_or_its_own_room(module):
    room = layout.room(module)
    for imported in sorted(layout.inside(module)):
        other = layout.room(imported)
        assert other == room or FLOOR[other] < FLOOR[room], f"{module} imports {imported}, which lies on a higher floor"


def test_no_modules_import_each_other_in_a_circle():
    unvisited, path = set(layout.MODULES), []

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in unvisited:
            path.append(module)
            for imported in sorted(layout.inside(module)):
                visit(imported)
            unvisited.discard(path.pop())

    for module in sorted(unvisited):
        visit(module)


@pytest.mark.parametrize(
    ("start", "heavy"),
    [
        ("fvlm.config.resolve", {"torch", "pandas", "scipy", "transformers"}),
        ("fvlm.study.status", {"torch", "pandas", "scipy", "transformers"}),
        ("fvlm.analysis.figures", {"torch", "transformers"}),
    ],
)
def test_what_starts_quickly_reaches_no_heavy_library(start, heavy):
    for module in layout.reached_from({start}):
        assert not heavy & layout.outside(module), module
