"""The house: what may import what. `docs/architecture.md` shows it."""

import ast
from collections import defaultdict
from pathlib import Path

import networkx
import pytest

PACKAGE = Path(__file__).parent.parent / "idp"
# From the ground up. Whatever stands on a floor may import what is below it and, on its own floor, itself.
FLOORS = (
    {"ends", "errors", "memory", "preemption", "progress", "quoting", "stats"},
    {"asked", "beginning", "command", "commands", "extras", "store", "text_files"},
    {"config", "hub", "status"},
    {"plugins"},
    {"fetched", "records", "registry"},
    {"suggestions"},
    {"checks", "models", "tracking", "usage"},
    {"grid"},
    {"composed", "prompting", "tasks"},
    {"corpora", "overrides"},
    {"compress", "evaluate"},
    {"recover"},
    {"finished", "language_model", "recording", "rows"},
    {"routing"},
    {"plan"},
    {"stages"},
    {"export", "pipeline"},
    {"analyze", "dashboard", "inventory", "report", "track"},  # beside one another: none knows the others
    {"api", "bench", "fetch", "pruning", "repairing", "run"},
    {"generate", "lm_eval_model", "store_command", "sweep"},
    {"closing", "completion", "lm_eval"},
    {"cli"},
    {"__main__"},
)
FLOOR_OF = {module: number for number, floor in enumerate(FLOORS) for module in floor}


def modules():
    files = PACKAGE.rglob("*.py")
    return {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def imports(known):
    """Every import of the package's own files, wherever it stands: in a function, for types alone."""
    found = defaultdict(set)
    for module, file in known.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: imports are absolute"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                while name and name not in known:
                    name = name.rpartition(".")[0]
                if name and name != module:
                    found[module].add(name)
    return found


@pytest.fixture(scope="module")
def arrows():
    found = imports(modules())
    assert sum(map(len, found.values())) > 500
    return found


def top_level(module):
    """The package or the file of the top level that a module is in."""
    return module.split(".")[1] if "." in module else "idp"


def test_every_module_has_a_floor():
    assert {top_level(module) for module in modules()} - {"idp"} == set(FLOOR_OF)


def test_no_arrow_points_up(arrows):
    upward = {
        f"{module} imports {target}"
        for module, targets in arrows.items()
        if not module.endswith("__main__") and top_level(module) != "idp"  # commands, and what `import idp` offers
        for target in targets
        if top_level(target) not in ("idp", top_level(module))
        and FLOOR_OF[top_level(target)] >= FLOOR_OF[top_level(module)]
    }
    assert not upward, "\n".join(sorted(upward))


def test_no_file_is_in_a_circle(arrows):
    graph = networkx.DiGraph((module, target) for module, targets in arrows.items() for target in targets)
    graph.remove_node("idp")  # which has the version, and offers what is in `idp.api`
    circles = [sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1]
    assert not circles


MOST_PARAMETERS = 9


def test_no_function_has_ten_parameters():
    wide = []
    for module, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                own = node.args
                given = [*own.posonlyargs, *own.args, *own.kwonlyargs, *filter(None, (own.vararg, own.kwarg))]
                if len(given) > MOST_PARAMETERS:
                    wide.append(f"{module}.{getattr(node, 'name', 'lambda')}: {len(given)}")
    assert not wide, "one typed thing in their place: " + ", ".join(wide)


def test_the_pipeline_is_read_at_a_glance():
    assert len((PACKAGE / "pipeline.py").read_text(encoding="utf-8").splitlines()) < 150
