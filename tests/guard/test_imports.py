"""House rules, read off the source: who may import whom, how long files and functions may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted([REPO / "__init__.py", *(REPO / "nodes").rglob("*.py"), *(REPO / "teefusion_core").rglob("*.py")])
HOST_MODULES = {"comfy", "comfy_extras", "comfy_execution", "folder_paths", "latent_preview", "node_helpers", "server"}
LONGEST_FUNCTION, LONGEST_FILE = 60, 300  # lines
each_file = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))


def layer_of(path):
    """Return which layer a file belongs to."""
    parts = path.relative_to(REPO).parts
    if parts[0] == "teefusion_core" and path.name != "__main__.py":  # the command line is a user's way in, as nodes are
        return "comfy_host" if len(parts) > 1 and parts[1].removesuffix(".py") == "comfy_host" else "core"
    return "nodes"


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path):
    """Return (level, dotted name) of every import, wherever it stands."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, f"{node.module or ''}.{alias.name}".strip(".")) for alias in node.names)


def absolute_target(path, level, name):
    """Return the repository path that a relative import points at."""
    package = path.parent
    for _ in range(level - 1):
        package = package.parent
    return package.joinpath(*name.split("."))


@each_file
def test_only_comfy_host_and_nodes_import_comfyui(path):
    roots = {name.split(".")[0] for level, name in imports_of(path) if level == 0}
    assert layer_of(path) == "comfy_host" or not roots & HOST_MODULES
    assert layer_of(path) != "core" or "comfy_api" not in roots


@each_file
def test_imports_inside_the_pack_are_relative_and_never_of_the_lab(path):
    roots = {name.split(".")[0] for level, name in imports_of(path) if level == 0}
    assert not roots & {"nodes", "teefusion_core", "lab", "scripts", "tests", REPO.name}
    assert not [
        name for level, name in imports_of(path) if level and "lab" in absolute_target(path, level, name).parts[-2:]
    ]


@each_file
def test_imports_point_down(path):
    layer = layer_of(path)
    targets = [absolute_target(path, level, name) for level, name in imports_of(path) if level]
    if layer == "nodes":
        return
    for target in targets:
        assert "nodes" not in target.relative_to(REPO).parts[:1], target
        if layer == "core":
            assert "comfy_host" not in target.parts, target


@each_file
def test_functions_fit_a_screen(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "define_schema":
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


@each_file
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_the_entry_point_offers_nothing_but_itself():
    names = {node.id for node in ast.walk(tree_of(REPO / "__init__.py")) if isinstance(node, ast.Name)}
    assert "NODE_CLASS_MAPPINGS" not in names


def test_importing_the_pack_outside_comfyui_is_silent():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('pack', {str(REPO / '__init__.py')!r})\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['pack'] = module\n"
        "spec.loader.exec_module(module)\n"
        "assert 'torch' not in sys.modules and module.WEB_DIRECTORY == './web'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_pack_has_one_version():
    import teefusion_core

    assert f'version = "{teefusion_core.__version__}"' in (REPO / "pyproject.toml").read_text()
