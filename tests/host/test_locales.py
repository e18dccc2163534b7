"""Texts of the nodes as the host reads them."""

import json
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent


def test_the_english_texts_are_those_of_the_schemas(pack):
    import locales

    texts = locales.node_defs([node.GET_SCHEMA() for node in pack.nodes.values()])
    stored = locales.ENGLISH.read_text(encoding="utf-8")
    assert json.loads(stored) == texts, "run scripts/locales.py"
    assert stored == locales.written(texts)


def test_the_host_finds_both_languages(host, pack, tmp_path, monkeypatch):
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    (tmp_path / "pack").symlink_to(REPO, target_is_directory=True)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda name: [str(tmp_path)])
    found = CustomNodeManager().build_translations()
    assert {language: set(texts) for language, texts in found.items()} == {"en": {"nodeDefs"}, "zh": {"nodeDefs"}}
    for language, texts in found.items():
        assert texts["nodeDefs"].keys() == pack.nodes.keys(), language
