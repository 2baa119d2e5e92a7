"""The documentation: every link leads somewhere, in the repository as on the site, which builds without a warning."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import idp

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOOLS = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python")
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def prose(text):
    """Markdown without its code, in which brackets are no links."""
    text = re.sub(r"^(```+|~~~+).*?^\1[ \t]*$", "", text, flags=re.S | re.M)
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text, flags=re.S)


def links(text):
    text = prose(text)
    return [
        *re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)", text),
        *re.findall(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$", text, flags=re.M),
        *re.findall(r"<(?:a|img)\b[^>]*?\b(?:href|src)=[\"']([^\"']+)", text),
    ]


def anchors(text):
    """What GitHub calls a page's headings."""
    found, seen = set(), {}
    text = re.sub(r"^(```+|~~~+).*?^\1[ \t]*$", "", text, flags=re.S | re.M)
    for heading in re.findall(r"^#{1,6}[ \t]+(.+?)[ \t]*#*$", text, flags=re.M):
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", re.sub(r"(?<!\w)[*_]+|[*_]+(?!\w)", "", words).lower()).replace(" ", "-")
        found.add(name if name not in seen else f"{name}-{seen[name]}")
        seen[name] = seen.get(name, 0) + 1
    return found


def broken(page, root):
    """The page's relative links that lead nowhere, or out of `root`."""
    for link in links(page.read_text()):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.is_relative_to(root.resolve()) or not target.exists():
            yield link
        elif parts.fragment:
            if target.is_dir():
                target /= "README.md"
            if target.suffix != ".md" or parts.fragment not in anchors(target.read_text()):
                yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_the_repository(page):
    assert not list(broken(page, ROOT))


def test_broken_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# What *it* does: `a_b`\n\n```\n# no heading\n```\n\n# Twice\n\n# Twice\n")
    good = (
        "[a](other.md#what-it-does-a_b) [b](other.md#twice-1) [c](#here) [d](https://x.org/y) `[e](gone.md)` ![f](.)\n"
    )
    bad = ["gone.md", "other.md#no-heading", "#there", "../out.md", "other.md#twice-2", "shot.png"]
    page = tmp_path / "page.md"
    page.write_text("# Here\n\n" + good + "".join(f"[x]({link})\n" for link in bad[:-1]) + f'<img src="{bad[-1]}">\n')
    assert list(broken(page, tmp_path)) == bad


class Page(HTMLParser):
    """What a page fetches when it is opened, where it leads, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.links, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if (address := values.get(FETCHED.get(tag, ""))) and values.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if lacking := [tool for tool in TOOLS if not _installed(tool)]:
        pytest.skip(f"the docs extra is not installed (pip install -e '.[docs]'): no {', '.join(lacking)}")
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_the_site_builds_from_every_page(site):
    for page in PAGES:
        path = page.relative_to(ROOT)
        built = path.with_name("index.html") if path.name == "README.md" else path.with_suffix(".html")
        assert (site / built).is_file(), path
    front = (site / "index.html").read_text()
    assert "repairing compressed language models with prompts" in front
    for page in site.rglob("*.html"):
        assert "\n::: " not in page.read_text(), page  # what mkdocstrings should have replaced


def test_the_api_page_is_drawn_from_the_docstrings(site):
    page = (site / "docs" / "api.html").read_text()
    assert "A run's model in memory, ready to generate and to score." in page
    assert {"idp.api.load", "idp.language_model.LanguageModel.generate", "idp.errors.UserError"} <= Page(page).ids


def test_links_of_the_site(site):
    pages = {path.resolve(): Page(path.read_text()) for path in site.rglob("*.html")}
    for path, page in pages.items():
        if path.name == "404.html":  # its addresses begin at the host's root
            continue
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            assert target.is_file(), (path, link)
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, (path, link)


def test_the_site_fetches_nothing_from_other_hosts(site):
    for path in site.rglob("*.html"):
        away = [address for address in Page(path.read_text()).fetched if urlsplit(address).netloc]
        assert not away, (path, away)
    for path in site.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\s]+", path.read_text()), path


@pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the PATH, such as Debian's package")
def test_it_can_be_read_and_searched_from_its_folder_without_a_network(site):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the dev packages")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, fetched, errors = browser.new_page(), [], []
        page.on("request", lambda request: fetched.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))
        page.goto((site / "index.html").as_uri())
        page.locator(".md-search__input").fill("act-order")
        found = page.locator(".md-search-result__link").first
        found.wait_for(state="attached")
        assert "compression.html" in found.get_attribute("href")
        browser.close()
    assert not errors
    assert fetched and all(address.startswith(("file:", "data:", "blob:")) for address in fetched), fetched


def test_the_picture_of_the_house_is_the_house():
    """Each package has a place in the table of modules, and what the table names is there."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page.partition("## What is where")[2].partition("\n## ")[0], flags=re.M)
    named = [word for row in rows for word in re.findall(r"`([^`]+)`", row)]
    places = [ROOT / word if (ROOT / word).exists() else ROOT / "idp" / word for word in named]
    assert [str(place) for place in places if not place.exists()] == []
    packages = {file.parent for file in (ROOT / "idp").glob("*/__init__.py")} - {ROOT / "idp" / "bench"}
    assert packages - set(places) == set(), "not in the table; idp/bench leads to benchmarks/"


def test_the_changelog_has_this_version():
    versions = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert versions[:1] == ["Unreleased"] and idp.__version__ in versions


def test_hooks_before_a_commit_are_pinned_as_everything_else():
    pins = (ROOT / "constraints.txt").read_text().split()
    hooks = re.findall(r"[\w.-]+==[\w.]+", (ROOT / ".pre-commit-config.yaml").read_text())
    assert "ruff" in {hook.split("==")[0] for hook in hooks}
    assert set(hooks) <= set(pins)


def test_tools_of_the_docs_are_pinned():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in extras["docs"]}
    assert names <= {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}


def _installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False
