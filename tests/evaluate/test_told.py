"""What is said while models are measured."""

import logging
import re
from types import SimpleNamespace

from idp.evaluate.told import Told


def test_a_line_for_what_is_measured_and_none_for_what_is_reused(caplog):
    tasks = [
        SimpleNamespace(name=name, counted=lambda asked, n=n: min(asked, n)) for name, n in (("a", 1), ("b", 2000))
    ]
    told = Told(SimpleNamespace(tasks=tasks, corpora={"c4": None}, documents=1500), models=2)
    with caplog.at_level(logging.INFO, logger="idp"):
        for model, part, reused in (
            ("control prompt_0", "a", False),
            ("control prompt_0", "b", True),
            ("control prompt_0", "c4", False),
            ("dense", "b", False),
        ):
            told(model, part, SimpleNamespace(reused=reused))
    assert [re.sub(r"\d+\.\d s$", "S", line) for line in caplog.messages] == [
        "measured 1 of 6: control prompt_0 on a, 1 document, S",
        "measured 3 of 6: control prompt_0 on the text c4, S",
        "measured 4 of 6: dense on b, 1,500 documents, S",
    ]
