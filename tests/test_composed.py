"""Configs composed one after the other are those that Hydra composes, each by itself."""

import hydra
import pytest

from idp.composed import SEARCH_PATH, Composer, initialized
from idp.registry import register

COMMANDS = [
    (),
    ("seed=3",),
    ("compressor=gptq3", "recovery=idp", "recovery.lengths=[3,4]", "seed=1"),
    ("compressor=gptq3", "recovery=idp", "recovery.lengths=[5]", "compressor.calibration.samples=4"),
    ("recovery.length=7", "recovery=prompt", "recovery/training=weights"),
    ("+experiment=prompt_length", "budget=paper", "recovery.length=5"),
    ("latency=default", "latency.batch_sizes=[1]", "hydra/launcher=basic", "hydra.verbose=true"),
    ("++task.fewshot=2", "+task.note=1", "~latency"),
]


def by_hydra(words):
    register(words)
    with initialized():
        return hydra.compose("config", list(words))


def test_they_are_hydra_s_own_in_any_order():
    composer = Composer()
    register()
    for words in [*COMMANDS, *reversed(COMMANDS)]:
        assert composer.compose(words) == by_hydra(words), words


def test_yamls_of_another_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "other.yaml").write_text("# @package _global_\nseed: 11\n")
    composer = Composer()
    for more in ((), ("recovery=prompt", "recovery.length=9")):
        words = (f"{SEARCH_PATH}['file://{tmp_path}']", "+mine=other", *more)
        assert composer.compose(words) == by_hydra(words) and composer.compose(words).seed == 11


@pytest.mark.parametrize("wrong", ["recovery=nothing", "recovery.nothing=1", "nothing=1", "seed", "~task.documents"])
def test_what_hydra_refuses_is_refused_alike(wrong):
    register()
    with pytest.raises(Exception) as theirs, initialized():
        hydra.compose("config", [wrong])
    with pytest.raises(type(theirs.value)) as ours:
        Composer().compose([wrong])
    assert str(ours.value) == str(theirs.value)
