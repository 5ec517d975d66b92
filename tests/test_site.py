"""The built documentation: `make docs` builds it in `site/` and then runs these tests."""

from __future__ import annotations

import functools
import html
import http.server
import inspect
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import regnde
import regnde.comparators
import regnde.nn
import regnde.plot

ROOT = Path(__file__).parent.parent
SITE = ROOT / "site"
built = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no site/: `make docs` builds and tests it")
PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


def public_names() -> list[str]:
    """The classes and functions that a user may import."""
    names = []
    for module in (regnde, regnde.nn, regnde.comparators, regnde.plot):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                names.append(f"{module.__name__}.{name}")
    return names


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_is_on_one_page_of_the_api(name: str) -> None:
    pages = [page.read_text() for page in (ROOT / "docs" / "api").glob("*.md")]
    found = [page for page in pages if re.search(rf"^::: {re.escape(name)}$", page, re.MULTILINE)]
    assert len(found) == 1, f"docs/api: '::: {name}' must stand on one page"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    missing = [page for page in PAGES if page not in navigation]
    assert not missing, f"mkdocs.yml: add {missing} to nav"


@built
def test_the_site_loads_nothing_from_elsewhere() -> None:
    for page in SITE.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img)[^>]*src="(https?:[^"]+)|<link[^>]*stylesheet[^>]*href="(https?:[^"]+)', page.read_text()
        )
        assert not loaded, f"{page}: {loaded}"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Serves the site on this machine."""
    handler = functools.partial(_Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@built
@pytest.mark.parametrize("page", PAGES)
def test_no_formula_reaches_a_reader_as_source(page: str, address: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine: formulas are rendered by a browser")
    path = "" if page == "index.md" else page.removesuffix(".md") + "/"
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    command = [browser, *switches, f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, f"{address}/{path}"], capture_output=True, text=True, timeout=300, check=True)
    source = re.sub(r"<annotation.*?</annotation>|<(script|pre|code)\b.*?</\1>", "", done.stdout, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", "", source))
    raw = re.findall(r".{0,40}(?:\\\(|\\\[|\$\$|\\frac|\\sum).{0,40}", text)
    assert not raw, f"{page}: {raw}"
    assert "katex-error" not in source, page
    prose = re.sub(r"^```.*?^```", "", (ROOT / "docs" / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    formulas = re.search(r"\$[^$\n`]+\$", prose)
    assert not formulas or 'class="katex"' in source, f"{page}: its formulas are not rendered"
