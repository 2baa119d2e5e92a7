"""`idp bench report record=<run folder>`: time, memory and page size of a report over many records.

The records are copies of one real run in which keys, names and outcomes differ: several compressors, several repairs
of each, every one with its own documents' outcomes. With playwright and a Chromium, the page is opened as well.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idp.command import failures_in_one_line, help_text, parse, word
from idp.finished import find_run
from idp.store import digest

REPAIRS = 10  # of each compressor
FLIPPED = 0.05  # share of documents on which a copy's outcome is another


@dataclass
class Options:
    """The `key=value` words."""

    record: str = word("a run's folder, or its record")
    records: int = word("how many copies (default: 500)", default=500)
    page: int = word("how many for the page's size (default: 50)", default=50)


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    words = list(sys.argv[1:] if words is None else words)
    if {"-h", "--help"} & set(words):
        print(help_text(Options, "Time, memory and page size of a report over many records."))
        return
    with failures_in_one_line():
        options = parse(Options, words)
        folder = _folder(options.record)
        with tempfile.TemporaryDirectory() as place:
            for count in sorted({options.page, options.records}):
                runs = Path(place, f"runs-{count}")
                synthesise(folder, runs, count)
                seconds, processor, peak, size = measure(runs, Path(place, f"report-{count}"))
                print(
                    f"{count} records: {seconds:.1f} s ({processor:.1f} s of processor time), {peak / 1e6:.0f} MB of"
                    f" memory, page of {size / 1e6:.1f} MB",
                    flush=True,
                )
                for line in opened(Path(place, f"report-{count}", "index.html")):
                    print(f"  {line}", flush=True)


def synthesise(run: Path, folder: Path, count: int) -> None:
    """Writes `count` runs that differ from a real one in what made them and in the outcomes of documents.

    Args:
        run: the real run's folder; it has compressed and repaired a model.
        folder: where the copies go.
        count: how many.
    """
    import numpy as np
    import pyarrow as arrow
    from pyarrow import parquet

    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    table = parquet.read_table(run / "samples.parquet")
    final = np.array(table["model"].to_pylist()) == record["idp"]["row"]
    metrics = [name for name in table.column_names if name.startswith("metric:")]
    for number in range(count):
        generator = np.random.default_rng(number)
        place = folder / f"run-{number:04d}"
        place.mkdir(parents=True)
        (place / "record.json").write_text(json.dumps(_varied(record, number)), encoding="utf-8")
        changed = table
        flip = final & (generator.random(len(table)) < FLIPPED)
        for name in metrics:
            values = table[name].to_numpy(zero_copy_only=False).copy()
            binary = flip & ((values == 0) | (values == 1))
            values[binary] = 1 - values[binary]
            column = arrow.array(values, from_pandas=True)
            changed = changed.set_column(changed.column_names.index(name), name, column)
        parquet.write_table(changed, place / "samples.parquet")


def measure(runs: Path, report: Path) -> tuple[float, float, int, int]:
    """Seconds, processor seconds and peak memory (bytes) of a report in a process of its own, and its page's bytes."""
    command = [sys.executable, "-m", "idp.report", str(runs), f"output={report}"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, (report / "index.html").stat().st_size


def opened(page: Path) -> list[str]:
    """What a reader waits for: the page, and a sort, a filter and a choice in it; nothing without a browser."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return []
    if chromium is None:
        return []
    actions = {
        "sort": "document.querySelector('#table button[data-key]').click()",
        "filter": "(box => { box.value = 'lora'; box.dispatchEvent(new Event('input', {bubbles: true})); })"
        "(document.querySelector('#table input[type=search]'))",
        "another axis": "(box => { box.selectedIndex = (box.selectedIndex + 1) % box.options.length;"
        " box.dispatchEvent(new Event('change', {bubbles: true})); })(document.querySelector('#scatter select'))",
    }
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        begun = time.perf_counter()
        tab.goto(page.as_uri(), timeout=120_000)
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
        lines = [f"opened in Chromium: {time.perf_counter() - begun:.2f} s until every control answers"]
        for name, action in actions.items():
            # The second frame begins once what the handlers changed was painted.
            seconds = tab.evaluate(
                f"() => new Promise(done => {{ const begun = performance.now(); {action};"
                " requestAnimationFrame(() => requestAnimationFrame(() => done((performance.now() - begun) / 1000))) })"
            )
            lines.append(f"{name}: {seconds:.2f} s until it is painted")
        browser.close()
    return lines


def _varied(record: dict[str, Any], number: int) -> dict[str, Any]:
    changed = copy.deepcopy(record)
    about = changed["idp"]
    compressor, repair = divmod(number, REPAIRS)
    about["name"] = f"run-{number:04d}"
    about["compressor"] = f"{about['compressor']}-{compressor}"
    about["config"]["seed"] = repair % 2
    about["config"]["recovery"]["training"]["steps"] = 10 * (1 + repair // 2)
    about["parameters"]["added"] *= 1 + repair // 2
    about["stages"]["compress"]["key"] = digest(["compress", compressor])
    about["stages"]["recover"]["key"] = digest(["recover", number])
    return changed


def _folder(place: str) -> Path:
    find_run(place)  # says what is wrong with it
    path = Path(place).expanduser()
    return path if path.is_dir() else path.parent


if __name__ == "__main__":
    main()
