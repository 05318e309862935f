"""The parts of the package import each other in one direction, as in the diagram in CONTRIBUTING.md."""

import graphlib
import re

import grimp
import pytest
from paths import ROOT

# single files beside the folders: what all may use; the command line, which imports a command when it is called
FILES = {
    "base": {"arguments", "device", "errors", "output", "progress", "resources", "signals", "version"},
    "command": {"", "__main__", "cli", "completion"},
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("s3prl_ofa", cache_dir=None, exclude_type_checking_imports=True)


@pytest.fixture(scope="module")
def arrows() -> set[tuple[str, str]]:
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S)
    return set(re.findall(r"^ *(\S+) --> (\S+)$", diagram, re.M))


def room_of(module: str) -> str:
    """The folder of a module, in superb and sweep the folder below it; or the group of files in FILES."""
    first, second = [*module.split(".")[1:], "", ""][:2]
    if first in ("superb", "sweep") and (ROOT / "s3prl_ofa" / first / second).is_dir() and second:
        return f"{first}/{second}"
    return next((room for room, files in FILES.items() if first in files), first)


def imports(graph: grimp.ImportGraph) -> set[tuple[str, str]]:
    """Every import from one room into another, those inside functions too."""
    pairs = ((module, other) for module in graph.modules for other in graph.find_modules_directly_imported_by(module))
    return {(room_of(module), room_of(other)) for module, other in pairs if room_of(module) != room_of(other)}


def above(arrows: set[tuple[str, str]]) -> dict[str, set[str]]:
    """Each room with all that can be reached from it along the arrows. Raises CycleError if they go round."""
    rooms: dict[str, set[str]] = {}
    for start, end in arrows:
        rooms.setdefault(start, set()).add(end)
        rooms.setdefault(end, set())
    for room in graphlib.TopologicalSorter(rooms).static_order():
        rooms[room] = rooms[room].union(*(rooms[end] for end in rooms[room]))
    return rooms


def test_every_import_follows_the_arrows(graph, arrows):
    """No room imports one above it, and the diagram has no circle."""
    reachable = above(arrows)
    upward = sorted((start, end) for start, end in imports(graph) if end not in reachable[start])
    assert upward == []


def test_every_arrow_is_an_import(graph, arrows):
    """The diagram shows what is there, and nothing that can be told from its other arrows."""
    assert arrows <= imports(graph)
    for arrow in arrows:
        assert arrow[1] not in above(arrows - {arrow}).get(arrow[0], set()), f"{arrow} follows from the others"


def test_no_module_imports_itself_through_others(graph):
    """Within a room, too, files import in one direction."""
    graphlib.TopologicalSorter(
        {module: graph.find_modules_directly_imported_by(module) - {module} for module in graph.modules}
    ).prepare()
