"""The table for a paper: which rows, columns and names it has, and that a TeX takes it."""

import pytest

from idp.records.collect import collect
from idp.records.latex import Cell, Column, document_table, escape
from idp.report.__main__ import main
from idp.report.paper import Choice, paper_tables
from idp.report.view import views
from tests.report.made import seeds_by_repair
from tests.report.tex import compiled


@pytest.fixture
def study(record, runs):
    """Three seeds of two rows and a LoRA of one run, with damage beyond noise, perplexity and KL."""

    def change(written):
        about = written["idp"]
        about["comparisons"] = [{"unit": "share", "after": "none", "before": "none"}]
        about["perplexity"] = {"wiki_text": 31.25}
        about["perplexity_details"] = {"wiki_text": {"tokens": 4096, "window": 128, "stderr": 0.02}}
        for model, ppl in (("dense", 18.5), ("compressed", 1234.5)):
            if model in about["baselines"]:
                about["baselines"][model]["perplexity"] = {"wiki_text": ppl}
        about["fidelity"] = {about["row"]: {"texts": {"wiki_text": {"mean_kl": 0.25, "stderr": 0.01, "tokens": 4096}}}}
        about["parameters"] |= {"added": 12345 if about["row"] == "repaired" else 0}

    def right(model, task):
        import numpy as np

        count = {"dense": 32, "compressed": 12, "repaired": 22}[model] - 4 * (task == "piqa")
        return np.array([1.0] * count + [0.0] * (40 - count))

    seeds_by_repair(record, lambda seed: 0, change=change, right=right)
    record("lora", recovery={"kind": "lora", "rank": 8}, change=change, right=right)
    return runs


def rows_of(text):
    body = text.partition("\\midrule")[2].partition("\\bottomrule")[0]
    return [
        [cell.strip() for cell in line.strip().removesuffix("\\\\").split(" & ")] for line in body.strip().splitlines()
    ]


def test_columns_rows_and_names_are_chosen(study):
    made = views(collect([study]))
    names = {"gptq3": "GPTQ_3 & co", "lora": "LoRA (100%)", "damage": "Share #1", "piqa": "PIQA"}
    chosen = Choice(
        ("mean", "piqa", "difference:pm", "damage", "params"), ("dense", "gptq3*"), names, "50 % of it", "tab:x"
    )
    text = paper_tables(made, chosen)
    head = text.partition("\\toprule")[2].partition("\\midrule")[0].replace("\\\\", " ")
    for title in ("Model", "Mean (\\%)", "PIQA", "Difference (points)", "Share \\#1", "Added parameters"):
        assert title in head
    assert "\\caption{50 \\% of it}" in text and "\\label{tab:x}" in text and "dcolumn" in text
    rows = rows_of(text)
    assert [row[0] for row in rows] == [
        "dense",
        "GPTQ\\_3 \\& co",
        "GPTQ\\_3 \\& co + LoRA (100\\%)",
        "GPTQ\\_3 \\& co + prompt",
    ]
    assert rows[0][1] == "75.0" and rows[1][1] == "\\mathbf{25}.\\mathbf{0}"
    assert rows[1][3] == "\\mathbf{-50}.\\mathbf{0}" and rows[1][4].startswith("$\\pm ")
    assert rows[0][3:5] == ["\\multicolumn{2}{c}{---}"] * 2
    assert rows[2][5] == "$50$" and rows[2][6].startswith("$[") and rows[2][7] == "$12{,}345$"


def test_what_is_shown_unless_one_chooses(study):
    text = paper_tables(views(collect([study])), Choice())
    head = text.partition("\\toprule")[2].partition("\\midrule")[0].replace("\\\\", " ")
    assert "Damage brought back" in head and "Perplexity" in head and "Added parameters" in head
    assert "In brackets: the 95 \\% interval" in text and "Intervals of single runs hold for their seed only" in text
    assert "1{,}234.50" in text


def test_names_of_another_study_are_said(study, tmp_path, capsys):
    (tmp_path / "names.yaml").write_text("gptq3: GPTQ\ngptq9: x\nmean: Average\n")
    words = [str(study), f"output={tmp_path / 'report'}", "formats=latex", f"names={tmp_path / 'names.yaml'}"]
    main([*words, "rows=dense"])
    assert "note: names: no row, part of a row's name, or column is called gptq9\n" in capsys.readouterr().out
    assert "{Average}" in (tmp_path / "report" / "paper.tex").read_text()


def test_a_tex_takes_it_all(study, tmp_path, capsys):
    names = "{gptq3: 'GPTQ_3 50% & #1 $x$ {a} \\\\ ~^ <b> | -- \\u2265 \\u4e2d', prompt: '[soft] prompt'}"
    words = [str(study), f"output={tmp_path / 'report'}", "formats=latex"]
    main(
        [
            *words,
            f"names={names}",
            "columns=[mean:pm,tasks,groups,difference,dense:pm,damage,detectable,perplexity:interval]",
        ]
    )
    text = (tmp_path / "report" / "paper.tex").read_text()
    compiled(text, tmp_path / "chosen")
    main(words)
    log = compiled((tmp_path / "report" / "paper.tex").read_text(), tmp_path / "usual")
    assert "undefined references" not in log
    compiled((tmp_path / "report" / "table.tex").read_text(), tmp_path / "all")


def test_a_tex_takes_numbers_and_names_of_every_kind(tmp_path):
    columns = [
        Column("n", "N_1"),
        *(Column(f"c{d}{b}", f"{d} {b}", d, 1, True, b) for d in (0, 2) for b in ("interval", "pm", "none")),
    ]
    values = [
        (1.0, 0.5, 1.5),
        (-1234.5, -2000.0, 17.25),
        (0.0, -0.001, 0.0),
        (float("inf"), 1.0, float("inf")),
        (3.0, None, None),
    ]
    rows = [
        {"n": Cell(name), **{column.key: Cell("", *value, bold=number % 2 == 0) for column in columns[1:]}}
        for number, (name, value) in enumerate(zip(["[a]", "*b", "c--d", "\\e", ""], values, strict=True))
    ]
    text = document_table(columns, [*rows, {}], caption="50% of #1 & _all_ {}", label="tab:repairs")
    log = compiled(text, tmp_path)
    assert "undefined references" not in log and "-0.00 " not in text
    with pytest.raises(ValueError, match="label"):
        document_table(columns, rows, label="a}b")
    assert escape("a_b%&#${}~^\\<>|±") == (
        r"a\_b\%\&\#\$\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}\textgreater{}\textbar{}$\pm$"
    )


@pytest.mark.parametrize("name", ["gptq3", "sparsegpt_2of4_gptq4-g128 + lowrank_intactkv " * 3])
def test_no_table_is_wider_than_the_text(name, tmp_path):
    columns = [Column("name", "Model"), Column("mean", "Mean (%)", 1, bounds="interval")]
    rows = [{"name": Cell(name), "mean": Cell("", 50.0, 40.0, 60.0)}]
    assert "Overfull" not in compiled(document_table(columns, rows, label="tab:repairs"), tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["columns=[mean,diference]"], "columns=diference: there is no such column; did you mean difference"),
        (["rows=gptq4"], "rows=gptq4: no such row; did you mean gptq3"),
        (["names=gone.yaml"], "names=gone.yaml: No such file or directory"),
        (["names={a: [b]}"], "names=.*give a mapping"),
        (["label=a b"], "label=a b: use letters"),
        (["bounds=all"], "bounds=all: use one of interval, pm, none"),
        (["columns=mean", "formats=csv"], "columns=: of paper.tex, which is not written; add latex"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(words, message, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    formats = [] if any(word.startswith("formats") for word in words) else ["formats=latex"]
    with pytest.raises(SystemExit, match=message) as caught:
        main([str(study), "output=report", *formats, *words])
    assert "\n" not in str(caught.value) and not (tmp_path / "report").exists()


def test_a_task_of_one_setting_alone_is_a_column_there(study, vary):
    vary("other")  # a real run of another model, on arc_easy alone
    text = paper_tables(views(collect([study])), Choice(("mean", "piqa")))
    first, second = text.split("\\end{table}")[:2]
    assert "piqa" in first and "piqa" not in second and "tab:repairs-1" in first and "tab:repairs-2" in second
