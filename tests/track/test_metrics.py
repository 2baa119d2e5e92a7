"""What W&B is told: keys say whose scores they are, gains have intervals, and what was not measured has no key."""

import re

import pytest

from idp.records import metrics
from idp.records.differences import compared, damage

from ..outcomes import hits, record

THREE = {
    "dense": {"arc_easy": hits(90, 120), "webqs": hits(10, 100)},
    "compressed": {"arc_easy": hits(90, 120, 2, 30), "webqs": hits(10, 100)},
    "repaired": {"arc_easy": hits(90, 120, 6, 18), "webqs": hits(10, 100, 1)},
}


@pytest.fixture
def repaired(tmp_path):
    return record(tmp_path, THREE, stand_ins={"webqs": "nq_open"})


def test_a_stand_in_s_score_is_under_its_own_name(repaired):
    values = metrics.summary(repaired)
    assert values["score/nq_open_for_webqs"] == pytest.approx(0.11) and values["score/arc_easy"] == pytest.approx(0.65)
    assert {key for key in values if "webqs" in key and "nq_open_for_webqs" not in key} == set()
    assert values["dense/score/nq_open_for_webqs"] == pytest.approx(0.1)
    assert (values["score/mean_tasks"], values["score/mean_stand_ins"]) == (2, 1)
    assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", key) for key in values)


def test_gains_and_damage_have_intervals(repaired):
    values, gain = metrics.summary(repaired), compared(repaired, "repaired", "compressed")
    assert values["gain/mean"] == pytest.approx(values["score/mean"] - values["compressed/score/mean"])
    assert (values["gain/mean_low"], values["gain/mean_high"]) == (gain["mean"]["low"], gain["mean"]["high"])
    lost = damage(repaired)["tasks"]["arc_easy"]
    assert values["damage/arc_easy"] == pytest.approx(28 / 120)
    assert (values["damage/arc_easy_low"], values["damage/arc_easy_high"]) == (-lost["high"], -lost["low"])
    assert values["gain/nq_open_for_webqs"] == pytest.approx(0.01)
    assert values["damage/brought_back"] == gain["damage_brought_back"]["share"]
    assert values["gain/mean_detectable"] == gain["mean"]["detectable"]
    assert not any("recovery" in key for key in values)


def test_without_a_repair_there_is_no_gain_and_without_baselines_no_damage(tmp_path):
    values = metrics.summary(record(tmp_path, {row: THREE[row] for row in ("dense", "compressed")}, recovery="none"))
    assert values["damage/mean"] == pytest.approx(28 / 240) and "damage/brought_back" not in values
    assert not any(key.startswith("gain/") for key in values)
    values = metrics.summary(record(tmp_path / "alone", {"repaired": THREE["repaired"]}, baselines=False))
    assert not any(key.startswith(("gain/", "damage/")) for key in values)


def test_stages_fidelity_and_groups(repaired):
    about = repaired["idp"]
    about["fidelity"] = {
        row: {
            "texts": {"c4": {"mean_kl": 0.2, "same_top": 0.9, "tokens": 512}},
            "tasks": {"webqs": {"mean_kl": None, "last": {"mean_kl": 0.1}, "flips": {"right_to_wrong": 3}}},
        }
        for row in ("compressed", "repaired")
    }
    about["groups"] = {"social sciences": {row: {"score": 0.5, "tasks": ["arc_easy"]} for row in THREE}}
    about["device_peak_bytes"] = {"recover": {"cuda:0": 7, "cuda:1": 9}}
    values = metrics.summary(repaired)
    assert values["device_peak_bytes/recover"] == 9
    assert (values["seconds/load"], values["peak_memory_bytes/load"]) == (1.5, 123) and "seconds/recover" not in values
    assert (values["fidelity/c4/mean_kl"], values["compressed/fidelity/c4/same_top"]) == (0.2, 0.9)
    task = "fidelity/nq_open_for_webqs"
    assert (values[f"{task}/flips_right_to_wrong"], values[f"{task}/last_mean_kl"]) == (3, 0.1)
    assert f"{task}/mean_kl" not in values
    assert values["group/social_sciences"] == values["dense/group/social_sciences"] == 0.5


def test_the_table_has_differences(repaired):
    columns, rows = metrics.tables(repaired)["results"]
    first, second = (dict(zip(columns, row, strict=True)) for row in rows)
    assert "recovery" not in columns
    assert (first["against"], first["newly_right"], first["newly_broken"]) == ("compressed", 16, 0)
    assert first["difference"] == pytest.approx(16 / 120) and first["low"] < 16 / 120 < first["high"]
    assert (first["documents_broken"], first["documents_brought_back"]) == (30, 12)
    assert (second["stand_in"], second["damage_brought_back"]) == ("nq_open", None)
