"""Corpora: parts that never overlap, deterministic blocks, and the refusal of evaluated text."""

import dataclasses
import gzip
import itertools
import json

import pytest
from omegaconf import OmegaConf

from idp import hub, text_files
from idp.config import Corpus, conf_dir
from idp.corpora.corpus import PARTS, Text, blocks, named_corpus, open_corpus, part, refuse_evaluated
from idp.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)


def shipped(name, /, **changes):
    loaded = OmegaConf.load(conf_dir() / "corpus" / f"{name}.yaml")
    return dataclasses.replace(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Corpus), loaded)), **changes)


def text_of(documents, **fields):
    fields = {"test_documents": None, **fields}
    return Text(name="made", documents=documents, fingerprint="", made_from=(), **fields)


class Letters:
    """A tokenizer with one token per character, and 0 between documents."""

    eos_token_id = 0

    def __call__(self, texts, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


THOUSAND = [f"document number {number}" for number in range(1000)]


@pytest.mark.parametrize("name", ["embedded", "c4", "wikitext2", "local", "questions"])
def test_every_field_is_set(name):
    corpus = shipped(name)
    assert all(getattr(corpus, field.name) != "???" for field in dataclasses.fields(corpus)) and corpus.name == name


def test_parts_cover_the_documents_once_whatever_their_order():
    text = text_of(THOUSAND)
    parts = [part(text, name) for name in PARTS]
    assert sorted(itertools.chain(*parts)) == sorted(THOUSAND)
    assert 650 < len(parts[0]) < 750 and all(60 < len(found) < 140 for found in parts[1:])
    shuffled = text_of(THOUSAND[::-1] + THOUSAND[:300] + ["", "  "])
    assert [part(shuffled, name) for name in PARTS] == [part(text, name) for name in PARTS]
    fewer = set(part(text_of(THOUSAND[::2]), "train"))
    assert fewer < set(parts[0]), "a document's part must not depend on the others"


@pytest.mark.parametrize("test_documents", [None, ["a test split"]])
def test_a_validation_split_is_heldout_and_where_there_is_no_test_split_perplexity_too(test_documents):
    own = [f"own {number}" for number in range(50)] + [THOUSAND[3]]
    text = text_of(THOUSAND, heldout_documents=own, test_documents=test_documents)
    train, calibration, heldout, perplexity = (part(text, name) for name in PARTS)
    assert sorted([*train, *calibration, THOUSAND[3]]) == sorted(THOUSAND)
    assert 840 < len(train) < 910
    if test_documents:
        assert perplexity == test_documents and sorted(heldout) == sorted(own)
    else:
        assert sorted(heldout + perplexity) == sorted(own) and len(heldout) > 10 < len(perplexity)


def test_blocks_are_the_parts_tokens_in_order():
    text = text_of(THOUSAND)
    whole = blocks(text, "train", Letters(), 32, None, seed=1)
    letters = "".join(chr(token) if token else "|" for token in whole.flatten().tolist())
    *documents, _ = letters.split("|")
    assert documents == [document for document in documents if document in set(part(text, "train"))]
    assert len(documents) == len(set(documents)) > 600
    assert documents != part(text, "train")[: len(documents)], "shuffled"
    assert len(whole) == (sum(map(len, part(text, "train"))) + len(part(text, "train")) - 1) // 32
    assert blocks(text, "train", Letters(), 32, 10**6, seed=1, at_most=True).equal(whole)
    assert blocks(text, "train", Letters(), 32, 5, seed=1, at_most=True).equal(whole[:5])
    some = blocks(text, "train", Letters(), 32, 5, seed=1)
    assert some.shape == (5, 32) and some.equal(whole[:5])
    assert blocks(text, "train", Letters(), 32, 5, seed=1).equal(some)
    assert not blocks(text, "train", Letters(), 32, 5, seed=2).equal(some)


def test_the_test_split_stays_contiguous():
    text = dataclasses.replace(text_of([]), test_documents=["abcdefgh"])
    assert blocks(text, "perplexity", Letters(), 4, None, seed=9).tolist() == [[97, 98, 99, 100], [101, 102, 103, 104]]


def test_too_little_text_says_how_much():
    text = text_of(["abc"], place="somewhere")
    name = next(name for name in PARTS if part(text, name))
    with pytest.raises(UserError, match=f"corpus made: part {name} holds 3 tokens, 2 blocks of 4 need 8: .*somewhere"):
        blocks(text, name, Letters(), 4, 2, seed=0)
    other = next(name for name in PARTS[:3] if not part(text, name))
    with pytest.raises(UserError, match="holds 0 tokens, 1 blocks of 4 need 4"):
        blocks(text, other, Letters(), 4, None, seed=0)
    with pytest.raises(UserError, match="holds 0 tokens, 1 blocks of 4 need 4"):
        blocks(text, other, Letters(), 4, 7, seed=0, at_most=True)


def test_the_embedded_corpus():
    text = open_corpus(shipped("embedded"), None)
    assert len(text.documents) == len(set(text.documents)) == 4646
    assert sum(map(len, text.documents)) > 3_400_000
    assert any("little white kitten named Cotton" in document for document in text.documents)
    assert not any("\n\n\n" in document or "  " in document for document in text.documents)
    assert text.fingerprint == open_corpus(shipped("embedded"), None).fingerprint
    assert text.fingerprint != open_corpus(shipped("embedded", documents=4645), None).fingerprint


def test_a_corpus_made_from_an_evaluated_task_is_refused():
    from idp.config import Task
    from idp.tasks.tasks import find_tasks

    tasks = find_tasks(Task(names=["piqa", "sciq", "boolq"], data_dir=None, fewshot=None, documents=None))
    piqa, sciq, _ = tasks
    text = open_corpus(shipped("embedded"), None)
    refuse_evaluated(text, [piqa, sciq])
    with pytest.raises(UserError, match="made from boolq"):
        refuse_evaluated(text, tasks)
    unlabelled = dataclasses.replace(text, made_from=())
    with pytest.raises(UserError, match="holds 100% of the sampled documents of boolq"):
        refuse_evaluated(unlabelled, tasks)
    assert "sciq" in named_error(dataclasses.replace(text, made_from=("sciq",)), tasks)


def named_error(text, tasks):
    with pytest.raises(UserError) as error:
        refuse_evaluated(text, tasks)
    return str(error.value)


class Sampled:
    """As much of a TaskSource as the refusal needs."""

    name = runs = "quiz"

    def __init__(self, documents):
        self.documents = documents

    def sample(self, count):
        return self.documents[:count]


def test_content_is_found_across_line_breaks_and_up_to_two_percent_is_let_pass():
    sentences = [f"the {number}th sentence is about sixty characters long, give or take some" for number in range(100)]
    task = Sampled([{"answer": "short", "passage": sentence} for sentence in sentences])
    pages = [f"Before.{'x' * 20} \n{sentence.replace(' ', chr(10))}; after" for sentence in sentences]
    refuse_evaluated(text_of(pages[:2] + THOUSAND), [task])
    with pytest.raises(UserError, match="holds 3% of the sampled documents of quiz"):
        refuse_evaluated(text_of(pages[:3] + THOUSAND), [task])
    refuse_evaluated(text_of(pages), [Sampled([{"passage": "too short to tell"}] * 100)])


def test_local_files_of_every_kind(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.txt").write_text("one\nstill one\n\n\ntwo\r\n \r\nthree")
    rows = [{"body": "one\nstill one"}, {"body": "two"}, {"body": "three"}]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = [
        open_corpus(shipped("local", path=str(tmp_path / name), text_field="body"), None)
        for name in ("a.txt", "a.jsonl.gz", "a.parquet")
    ]
    for text in read:
        assert [document.strip() for document in text.documents] == ["one\nstill one", "two", "three"]
    assert read[1].fingerprint == read[2].fingerprint
    with pytest.raises(UserError, match=r"a.jsonl.gz line 1: has no text; corpus.text_field"):
        open_corpus(shipped("local", path=str(tmp_path / "a.jsonl.gz")), None)
    with pytest.raises(UserError, match=r"a.parquet: no column text .it has body."):
        open_corpus(shipped("local", path=str(tmp_path / "a.parquet")), None)
    pyarrow.parquet.write_table(pyarrow.table({"body": [1, 2]}), tmp_path / "n.parquet")
    with pytest.raises(UserError, match=r"n.parquet: column body is int64, not text"):
        open_corpus(shipped("local", path=str(tmp_path / "n.parquet"), text_field="body"), None)
    (tmp_path / "s.jsonl").write_text('{"text": "one"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(UserError, match=r"s.jsonl line 2: text holds half of a surrogate pair"):
        open_corpus(shipped("local", path=str(tmp_path / "s.jsonl")), None)
    with pytest.raises(UserError, match=r"no such file"):
        open_corpus(shipped("local", path=str(tmp_path / "b.txt")), None)
    with pytest.raises(UserError, match=r"corpus.path is not set"):
        open_corpus(shipped("local"), None)


ONE = ["", " = One = \n", "", " First . \n", " Second . \n", "", " = = Part = = \n", "", " Third . \n", ""]
ROWS = [*ONE, " = Two = \n", "", " Fourth . \n"]


@pytest.mark.parametrize("blank_lines", [True, False])
def test_wikitext_is_joined_as_the_hubs_rows(blank_lines):
    lines = [row or " \n" for row in ROWS] if blank_lines else [row for row in ROWS if row]
    rows = text_files.wikitext_rows("".join(lines))
    assert rows == ROWS
    articles = text_files.wikitext_articles(rows)
    assert len(articles) == 2 and "\n\n".join(articles) == "\n\n".join(ROWS)
    assert text_files.wikitext_rows("a plain\ntext") == []


def test_a_folder_replaces_the_hub_and_a_test_split_is_never_trained_on(tmp_path):
    with gzip.open(tmp_path / "wikitext2_raw_test.txt.gz", "wt") as file:
        file.write("".join(row for row in ROWS if row).replace("\n", "\r\n"))
    (tmp_path / "text").mkdir()
    (tmp_path / "wikitext2_raw_test.txt.gz").rename(tmp_path / "text" / "wikitext2_raw_test.txt.gz")
    text = named_corpus("wikitext2", shipped("embedded"), str(tmp_path))
    assert text.test_documents == ["\n\n".join(ROWS)]
    with pytest.raises(UserError, match=r"part train holds 0 tokens.*a test split only"):
        blocks(text, "train", Letters(), 4, 1, seed=0)
    (tmp_path / "text" / "c4.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in THOUSAND))
    assert named_corpus("c4", shipped("embedded"), str(tmp_path)).documents == THOUSAND
    capped = open_corpus(shipped("c4", documents=10), str(tmp_path))
    assert capped.documents == THOUSAND[:10]


def test_names(tmp_path):
    own = shipped("local", name="mine", path=str(tmp_path / "mine.txt"))
    (tmp_path / "mine.txt").write_text("mine\n\nmore")
    (tmp_path / "other.txt").write_text("other")
    assert named_corpus("corpus", own, None).documents == ["mine", "more"]
    assert named_corpus("mine", own, None).documents == ["mine", "more"]
    assert named_corpus(str(tmp_path / "other.txt"), own, None).documents == ["other"]
    with pytest.raises(
        UserError,
        match=r"no corpus nothing: use corpus .*c4, embedded, embedded_\w+, generated, local, questions, wikitext2",
    ):
        named_corpus("nothing", own, None)
    with pytest.raises(UserError, match=r"hub's allenai/c4 cannot be read .*text/c4.jsonl.gz"):
        named_corpus("c4", own, None)


def test_hub_splits_become_parts(monkeypatch):
    rows = {"train": ["a", "b", "c"], "validation": ["b", "v"], "test": ROWS}
    asked = []

    def load_dataset(path, **options):
        asked.append((path, options["name"], options["split"]))
        return ({"text": text} for text in rows[options["split"]])

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    text = open_corpus(shipped("wikitext2"), None)
    assert {split for _, _, split in asked} == {"train", "validation", "test"}
    assert text.test_documents == ["\n\n".join(ROWS)]
    assert sorted(part(text, "heldout")) == ["b", "v"]
    assert sorted(part(text, "train") + part(text, "calibration")) == ["a", "c"]
