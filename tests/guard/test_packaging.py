"""The archive that users get from the registry, and the metadata that the registry and the node list read."""

import json
import re
import sys
from pathlib import PurePosixPath

import pytest
import yaml

from .packed import REPO, code, imports_of, listed, packed, texts

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

FOLDERS = {"docs", "locales", "models", "nodes", "subgraphs", "teefusion_core", "web", "workflows"}
FILES = {"__init__.py", "pyproject.toml", "README.md", "README.zh-CN.md", "CHANGELOG.md", "LICENSE"}
KINDS = {"", ".json", ".jpg", ".md", ".png", ".py", ".safetensors", ".toml", ".ttf", ".webp"}
LARGEST, LARGEST_MODELS = 2_650_000, 56_000_000  # bytes before compression: all but the demo model, and its files
COMFYUI_BRINGS = {"torch", "numpy", "PIL", "einops", "safetensors", "tokenizers", "tqdm", "transformers"}
COMFYUI_IS = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview"}
AROUND = COMFYUI_BRINGS | COMFYUI_IS | sys.stdlib_module_names | {"tomllib"}
ENVIRONMENTS = {f"GPU :: {name}" for name in ("NVIDIA CUDA", "AMD ROCm", "Intel Arc", "Apple Metal")}
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
# what scanners of published packs look for, wherever it stands: code, notes, help pages
ALARMS = {
    "evaluates text": re.compile(r"(?<![\w.])(eval|exec|__import__)\s*\("),
    "starts programs": re.compile(r"\bsubprocess\b|\bos\.(system|popen|exec\w+|spawn\w+)\b|\bpty\b"),
    "installs packages": re.compile(r"\b(pip3?|uv|conda|npm) (-\S+ )*(install|uninstall|download)\b|\bensurepip\b"),
    "talks to the network": re.compile(
        r"\b(import|from) (requests|urllib|http|httpx|aiohttp|socket|ssl|ftplib|smtplib|websockets?)\b"
    ),
    "looks like a socket": re.compile(r"\.(bind|send|connect|sendall|listen)\("),
    "opens pickles": re.compile(
        r"\b(import|from) (pickle|marshal|shelve|dill)\b|weights_only=False"
        r"|\btorch(\.serialization)?\.load\b(?!\([^()]*weights_only=True\))"
    ),
    "hides its text": re.compile(r"\bb(16|32|64|85)decode\b|\bfromhex\b|\bcodecs\.decode\b"),
    "deletes by force": re.compile(r"\brm -[rf]{2}"),
}


class TestTheArchive:
    def test_it_has_what_users_need_no_more(self):
        assert {name.split("/")[0] for name in packed() if "/" in name} == FOLDERS
        assert {name for name in packed() if "/" not in name} == FILES
        assert {PurePosixPath(name).suffix for name in packed()} <= KINDS

    @pytest.mark.parametrize("folder", sorted(FOLDERS - {"docs"}))
    def test_folders_are_whole(self, folder):
        there = {name for name in listed() if name.startswith(f"{folder}/")}
        assert there and there <= set(packed())

    def test_pages_and_pictures_are_those_that_the_readme_leads_to(self):
        readme = (REPO / "README.md").read_text(encoding="utf-8")
        linked = {f"docs/{name}" for name in re.findall(r"\]\(docs/([\w./-]+)\)", readme)}
        pages = [(REPO / name).read_text(encoding="utf-8") for name in linked if name.endswith(".md")]
        shown = {f"docs/{name}" for page in pages for name in re.findall(r"!\[[^]]*\]\(([\w-]+\.\w+)\)", page)}
        assert {name for name in packed() if name.startswith("docs/")} == linked | shown

    def test_it_holds_nothing_that_a_policy_may_refuse(self):
        assert [name for name in packed() if (REPO / name).is_symlink() or "__pycache__" in name] == []

    def test_it_is_small(self):
        sizes = {name: (REPO / name).stat().st_size for name in packed()}
        models = sum(size for name, size in sizes.items() if name.startswith("models/"))
        assert models < LARGEST_MODELS and sum(sizes.values()) - models < LARGEST

    @pytest.mark.parametrize("name", code())
    def test_code_imports_what_is_packed_or_what_comfyui_brings(self, name):
        for module, files in imports_of(name):
            assert set(files) & set(packed()) or module in AROUND, (name, module)

    def test_patterns_start_at_the_top(self):
        """A bare `docs/` would take the help pages in `web/docs/` with it."""
        lines = (REPO / ".comfyignore").read_text(encoding="utf-8").splitlines()
        assert all(line.startswith(("/", "#")) for line in lines if line)
        for pattern in (line.strip("/") for line in lines if line.startswith("/")):
            assert (REPO / pattern).exists(), f"{pattern} is ignored, yet not there"


def test_scanners_find_nothing():
    found = {(name, alarm) for name, text in texts().items() for alarm, what in ALARMS.items() if what.search(text)}
    assert not found


class TestWhatTheRegistryReads:
    def test_name_and_version_are_valid(self):
        name = PROJECT["project"]["name"]
        assert re.fullmatch(r"[a-z][a-z0-9_-]{0,98}", name) and "comfyui" not in name
        assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["project"]["version"])

    def test_classifiers_are_of_the_kinds_that_it_knows(self):
        """A single `Environment` that it does not know voids them all."""
        classifiers = PROJECT["project"]["classifiers"]
        assert "Operating System :: OS Independent" in classifiers
        for classifier in classifiers:
            kind, _, value = classifier.partition(" :: ")
            assert kind != "Environment" or value in ENVIRONMENTS, classifier

    def test_addresses_with_the_licence(self):
        assert PROJECT["project"]["urls"]["Repository"].startswith("https://github.com/")
        assert (REPO / PROJECT["project"]["license"]["file"]).is_file()
        assert (REPO / PROJECT["project"]["readme"]).is_file()

    def test_nothing_is_installed_beside_it(self):
        assert PROJECT["project"]["dependencies"] == []
        assert not any(re.search("requirements.*txt", name) for name in packed())

    def test_the_oldest_comfyui_is_said_as_it_reads_it(self):
        parts = PROJECT["tool"]["comfy"]["requires-comfyui"].split(",")
        assert all(re.fullmatch(r"(>=|<=|==|>|<|!=|~=)\d+\.\d+\.\d+", part.strip()) for part in parts)

    def test_help_pages_go_by_the_folder_of_the_pack(self):
        """The `web` of pyproject.toml would serve them under the name of the project, where no page is asked for."""
        assert "web" not in PROJECT["tool"]["comfy"]

    def test_icon_with_banner_are_there_if_they_are_named(self):
        for key in {"Icon", "Banner"} & PROJECT["tool"]["comfy"].keys():
            picture = PROJECT["tool"]["comfy"][key].rpartition("/main/")[2]
            assert (REPO / picture).is_file(), key


class TestManager:
    def test_no_programs_run_at_installation(self):
        special = {"install.py", "uninstall.py", "enable.py", "disable.py", "node_list.json"}
        assert not special & set(packed())

    def test_the_entry_of_the_node_list_says_what_the_project_says(self):
        entry = json.loads((REPO / "docs" / "manager_entry.json").read_text(encoding="utf-8"))
        project, comfy, repository = (
            PROJECT["project"], PROJECT["tool"]["comfy"], PROJECT["project"]["urls"]["Repository"],
        )  # fmt: skip
        assert entry == {
            "author": comfy["PublisherId"], "title": comfy["DisplayName"], "id": project["name"],
            "reference": repository, "files": [repository], "install_type": "git-clone",
            "description": project["description"],
        }  # fmt: skip


def test_only_tested_versions_are_published_and_the_secret_goes_to_the_registrys_action():
    path = REPO / ".github" / "workflows" / "publish.yml"
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    assert jobs["publish"]["needs"] == "test" and jobs["test"]["needs"] == "version"
    assert jobs["test"]["uses"] == "./.github/workflows/ci.yml" and "== 'true'" in jobs["test"]["if"]
    action = jobs["publish"]["steps"][-1]
    assert path.read_text(encoding="utf-8").count("secrets.") == 1
    assert action["uses"].startswith("Comfy-Org/publish-node-action@") and "personal_access_token" in action["with"]
