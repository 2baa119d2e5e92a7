"""Finding and loading models: what is refused, and how the embedded one's tokenizer is mended."""

import shutil

import pytest

from idp import models
from idp.errors import UserError
from idp.store import Identity, Store, write_json


def test_a_hub_model_is_known_by_its_commit(compose, monkeypatch):
    from types import SimpleNamespace

    from huggingface_hub import HfApi

    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="abc123"))
    source = models.find_model(compose("model=opt_125m").model)
    assert source.identity == {"repository": "facebook/opt-125m", "commit": "abc123"}


def test_a_changed_file_makes_another_model(model_folders, compose, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(model_folders("llama"), folder)
    config = compose("model=local", f"model.path={folder}").model
    before = models.find_model(config).identity
    (folder / "generation_config.json").write_text("{}")
    assert models.find_model(config).identity != before


def test_a_file_that_is_no_gguf(compose, tmp_path):
    from idp.store import Store

    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model")
    config = compose("model=local", f"model.path={file}").model
    with pytest.raises(UserError, match="model.gguf: cannot be read as a GGUF model"):
        models.load(config, models.find_model(config), Store(tmp_path / "store"))


def test_a_folder_whose_config_is_of_no_language_model(compose, tmp_path, model_folders):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(model_folders("llama"), folder)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="not a causal language model"):
        models.open_empty(folder, compose("model=local", f"model.path={folder}").model)


def test_dtype_and_device(compose):
    import torch

    assert models.dtype_of(compose("model.dtype=float16").model) is torch.float16
    assert models.dtype_of(compose("model.device=cpu").model) in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="model.device=toaster: use auto, cpu"):
        models.device_of(compose("model.device=toaster").model)


@pytest.mark.slow
def test_the_embedded_model_s_tokenizer_is_mended(compose, tmp_path):
    from idp.store import Store

    config = compose("model=smollm2_135m_instruct").model
    product = models.load(config, models.find_model(config), Store(tmp_path))
    tokenizer = models.open_empty(models.model_folder(product), config).tokenizer
    assert tokenizer.tokenize("12345 hi") == ["1", "2", "3", "4", "5", "Ġhi"]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.bos_token == "<|im_start|>"


def _stored(place, source=None):
    """A dense model in a store, and what refers to it as `_measure_dense` does; earlier versions wrote `source`."""
    store = Store(place)
    dense = store.obtain(Identity("load", None, {}, 1), lambda folder: (folder / "model").mkdir())

    def make(folder):
        if source is None:
            models.write_source(folder, dense.path / "model")
        else:
            write_json(folder / "source.json", {"folder": str(source(dense))})

    return store.obtain(Identity("compress", dense.key, {}, 1), make)


@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied"])
@pytest.mark.parametrize("source", [None, lambda dense: dense.path / "model"], ids=["relative", "absolute, as before"])
def test_a_store_elsewhere_reads_its_own_weights(source, copied, tmp_path):
    made = _stored(tmp_path / "m1", source)
    assert models.model_folder(made).is_relative_to(tmp_path / "m1")
    (shutil.copytree if copied else shutil.move)(tmp_path / "m1", tmp_path / "m2")
    there = Store(tmp_path / "m2").get("compress", made.key)
    assert models.model_folder(there).is_relative_to(tmp_path / "m2")


def test_weights_outside_the_store_stay_where_they_are(tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    made = _stored(tmp_path / "m1", lambda dense: tmp_path / "mine" / "model")
    shutil.move(tmp_path / "m1", tmp_path / "m2")
    there = Store(tmp_path / "m2").get("compress", made.key)
    assert models.model_folder(there) == tmp_path / "mine" / "model"
