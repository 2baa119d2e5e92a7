"""A selector and a corpus source from outside the package."""

import sqlite3
from pathlib import Path

import pytest

import idp
from idp.errors import UserError

TINY = ("model=tiny_llama", "budget=smoke", "task=arc_easy", "tracker=none", "compressor=rtn3", "baselines=false")


@pytest.fixture
def database(tmp_path, bridges):
    from idp.text_files import read_documents

    file = tmp_path / "texts.db"
    documents = read_documents(Path(bridges[1].partition("=")[2]), "text")
    with sqlite3.connect(file) as opened:
        opened.execute("create table articles (body text)")
        opened.executemany("insert into articles values (?)", [(document,) for document in [*documents, None]])
    opened.close()
    return file


def test_a_selector(outside, run_here, bridges, tmp_path):
    words = (*outside("by_length"), *TINY, *bridges, "recovery=idp", "recovery.lengths=[2,3,4]")
    words += ("recovery.controls=false", "recovery/selector=by_length", "evaluation.perplexity=[]")
    for tokens, place in ((1, 2), (2000, 0)):
        record = run_here(*words, f"recovery.selector.tokens={tokens}")
        about = record["idp"]
        counts = list(about["selection"]["arc_easy"].values())
        assert counts[place] == sum(counts) > 0 and about["selector"]["kind"] == "by_length"
    assert about["stages"]["recover"]["reused"]  # the same bank serves every selector
    opened = idp.load(tmp_path / "outputs" / "runs" / about["name"])
    assert [answer.prompt for answer in opened.generate(["a", "a" * 50], 1)] == [opened.prompts[0]] * 2
    with pytest.raises(UserError, match="recovery.selector.tokens=0: must be at least 1"):
        run_here(*words, "recovery.selector.tokens=0")


def test_a_corpus_source(outside, run_here, database, bridges):
    """It trains, calibrates and is scored on, by its own name too; its text, not its place, is what it is known by."""
    words = (*outside("sqlite"), *TINY, "corpus=sqlite", "corpus.table=articles", "corpus.text_field=body")
    words += ("recovery=prompt", "recovery.length=3", "evaluation.perplexity=[corpus]")
    record = run_here(*words, f"corpus.path={database}", "corpus.name=bridges")
    about = record["idp"]
    assert about["config"]["corpus"]["source"] == "sqlite" and about["config"]["corpus"]["table"] == "articles"
    same = run_here(*TINY, *bridges, "recovery=prompt", "recovery.length=3", "evaluation.perplexity=[corpus]")["idp"]
    assert same["stages"]["recover"]["key"] == about["stages"]["recover"]["key"] and same["stages"]["recover"]["reused"]
    assert same["perplexity"] == about["perplexity"]
    with pytest.raises(UserError, match=r"corpus.path=.*nowhere.db: there is no such file; name an SQLite database"):
        run_here(*words, "corpus.path=nowhere.db")
    with pytest.raises(UserError, match="corpus: two words is no name of a table or column; give one word"):
        run_here(*words, f"corpus.path={database}", "corpus.table=two words")
    with pytest.raises(UserError, match="no such table: elsewhere"):
        run_here(*words, f"corpus.path={database}", "corpus.table=elsewhere")


def test_a_source_is_known_by_its_name(outside, compose):
    with pytest.raises(UserError, match="corpus.source=sqlite: choose one of embedded, .*, local"):
        compose("corpus=local", "corpus.source=sqlite")
    words = outside("sqlite")
    with pytest.raises(UserError, match=r"corpus.table is not set: give it in the YAML, below `defaults: "):
        compose(*words, "corpus=local", "corpus.source=sqlite")
    with pytest.raises(UserError, match="corpus.source=hub: its options are those of sqlite"):
        compose(*words, "corpus=sqlite", "corpus.source=hub")


def test_a_task_suite(outside, elsewhere, run_here, tmp_path):
    """Its name stands for its tasks, whose definitions and documents it brings; lm-eval's rules score them."""
    import shutil
    from pathlib import Path

    shutil.copytree(Path(__file__).parent / "proverbs_tasks", elsewhere / "proverbs_tasks")
    words = (*outside("proverbs"), *TINY[:2], *TINY[3:], "task=proverbs", "recovery=none", "evaluation.perplexity=[]")
    record = run_here(*words)
    assert set(record["results"]) == {"proverb_endings", "proverb_words"}
    assert {data["source"] for data in record["idp"]["data"].values()} == {"proverbs"}
    assert record["idp"]["data"]["proverb_endings"]["documents"] == 2
    assert record["idp"]["groups"]["sayings"]["compressed"]["tasks"] == ["proverb_endings", "proverb_words"]
    before = record["idp"]["data"]["proverb_endings"]["fingerprint"]
    file = elsewhere / "proverbs_tasks" / "proverb_endings.yaml"
    file.write_text(file.read_text().replace("{{begins}}", "Proverb: {{begins}}"))
    again = run_here(*words)["idp"]["data"]
    assert again["proverb_endings"]["fingerprint"] != before
    assert again["proverb_words"]["fingerprint"] == record["idp"]["data"]["proverb_words"]["fingerprint"]
    with pytest.raises(UserError, match="named proverb_ending; did you mean proverb_endings"):
        run_here(*words, "task.names=[proverb_ending]")
