"""The base model's licence is carried as far as it is known, and never guessed."""

import gguf
import pytest

from idp.export import licence


def test_the_embedded_model_s(compose, tmp_path):
    found = licence.of(compose("model=smollm2_135m_instruct").model, None)
    assert found.name == "apache-2.0" and found.base == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert b"Apache License" in found.texts["LICENSE"]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, "unknown: see the base model"),
        ({"LICENSE": "All rights reserved."}, "see LICENSE"),
        ({"README.md": "---\nlicense: mit\nlanguage: en\n---\n# Mine"}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: gemma\n---\n", "LICENSE.txt": "Terms"}, "gemma"),
        ({"README.md": "license: mit"}, "unknown: see the base model"),
    ],
)
def test_a_local_folder_s(files, name, compose, tmp_path):
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    found = licence.of(compose("model=local", f"model.path={tmp_path}", "model.name=mine").model, tmp_path)
    assert found.name == name and found.base == "mine"
    assert found.texts == {file: text.encode() for file, text in files.items() if file != "README.md"}


def test_a_gguf_file_s(compose, tmp_path):
    for number, stated in enumerate(["llama3", None]):
        writer = gguf.GGUFWriter(tmp_path / f"{number}.gguf", "llama")
        if stated:
            writer.add_license(stated)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        config = compose("model=local", f"model.path={tmp_path / f'{number}.gguf'}").model
        assert licence.of(config, None).name == (stated or licence.UNKNOWN)
