"""What the registry gets: tracked files without those that .comfyignore names."""

import ast
import functools
import subprocess
from pathlib import Path, PurePosixPath

REPO = Path(__file__).resolve().parent.parent.parent


def listed(*arguments):
    """Return the names that `git ls-files` lists, of files that are there."""
    done = subprocess.run(["git", "ls-files", "-z", *arguments], cwd=REPO, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name and (REPO / name).is_file()}


@functools.cache
def packed():
    """Return the paths in the published archive, sorted; git itself reads the patterns, as their syntax is its own."""
    return sorted(listed() - listed("--cached", "--ignored", "--exclude-from=.comfyignore"))


def code():
    return [name for name in packed() if name.endswith(".py")]


@functools.cache
def texts():
    """Return path -> text of everything packed but weights, pictures and fonts."""
    names = [name for name in packed() if not name.endswith((".safetensors", ".jpg", ".png", ".ttf", ".webp"))]
    return {name: (REPO / name).read_text(encoding="utf-8") for name in names}


@functools.cache
def tree_of(name):
    return ast.parse(texts()[name])


def nodes_of(name, *kinds):
    return [node for node in ast.walk(tree_of(name)) if isinstance(node, kinds)]


def imports_of(name):
    """Return (module, files it may be) of every import; of an absolute one the root, without files."""
    for node in nodes_of(name, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], []) for alias in node.names)
        elif not node.level:
            yield node.module.split(".")[0], []
        else:
            folder = PurePosixPath(name).parents[node.level - 1]
            folder = folder.joinpath(*(node.module or "").split("."))
            inside = [folder / f"{alias.name}.py" for alias in node.names]
            files = [folder.with_suffix(".py") if folder.name else folder, folder / "__init__.py", *inside]
            yield f"{'.' * node.level}{node.module or ''}", [path.as_posix() for path in files]
