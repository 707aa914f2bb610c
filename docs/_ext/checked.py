"""A check of the built pages: they need no network, each link leads to a place, and each picture has a text.

A fault is a warning, so that it fails the build.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.util import logging

LOADED = {"icon", "stylesheet", "preload", "modulepreload"}
"""Relations of ``<link>`` that a browser loads with the page."""
ADDRESS = re.compile(r"""(?:url\(|@import)\s*["']?([^"')]+)""")


class Page(HTMLParser):
    """The identifiers, links, loaded files and pictures without a text of a page."""

    def __init__(self, text):
        super().__init__()
        self.identifiers, self.links, self.loaded, self.without_text = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.identifiers |= {found.get("id"), found.get("name") if tag == "a" else None}
        self.loaded += ADDRESS.findall(found.get("style") or "")
        if "src" in found:
            self.loaded.append(found["src"])
        if "href" in found and tag in ("a", "link"):
            loads = LOADED & set(found.get("rel", "").split())
            (self.loaded if loads else self.links).append(found["href"])
        if tag == "img" and found.get("alt") in (
            "",
            None,
            found["src"],
        ):  # Sphinx repeats the address
            self.without_text.append(found["src"])


def faults(folder):
    """Yield the faults of the pages in a folder."""
    pages = {path: Page(path.read_text()) for path in sorted(folder.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(folder)
        yield from (
            f"{name}: {src} has no alternative text" for src in page.without_text
        )
        yield from (f"{name} loads {url}" for url in page.loaded if is_remote(url))
        for url in [*page.links, *page.loaded]:
            if not is_remote(url) and not leads_to_a_place(url, path, pages):
                yield f"{name} links to {url}, which does not exist"
    for path in sorted(folder.rglob("*.css")):
        remote = filter(is_remote, ADDRESS.findall(path.read_text()))
        yield from (f"{path.relative_to(folder)} loads {url}" for url in remote)


def is_remote(url):
    return urlsplit(url).netloc != ""


def leads_to_a_place(url, path, pages):
    parts = urlsplit(url)
    if parts.scheme in ("data", "mailto"):
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not parts.fragment:
        return target.exists()
    return target in pages and unquote(parts.fragment) in pages[target].identifiers


def check(app, exception):
    if exception is None and app.builder.format == "html":
        for fault in faults(Path(app.outdir).resolve()):
            logging.getLogger(__name__).warning(fault)


def setup(app):
    app.connect("build-finished", check)
    return {"parallel_read_safe": True}
