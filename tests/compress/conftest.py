"""Every compressor on a tiny model, each made once per session and shared by the tests."""

import pytest
import torch


@pytest.fixture
def calibration():
    """Token ids [8, 32]."""
    return torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def compress_with(compose, shared):
    """`compress_with(*overrides)`: the compress stage's product for a config, without the stages around it."""
    from idp import models
    from idp.compress import stage
    from idp.corpora.corpus import named_corpus
    from idp.store import Store

    store, texts = Store(shared / "compressed"), {}

    def product(*overrides: str, folder=None):
        config = compose("model=tiny_llama", "budget=smoke", *overrides)
        place = store if folder is None else Store(folder)
        name = (config.compressor.calibration.corpus or "corpus", config.corpus.path)
        if name not in texts:
            texts[name] = named_corpus(name[0], config.corpus, None)
        dense = models.load(config.model, models.find_model(config.model), place)
        empty = models.open_empty(models.model_folder(dense), config.model)
        group_size = stage.check(config.compressor, empty, texts[name])
        return stage.compress(config.compressor, group_size, config.model, dense, texts[name], place)

    return product
