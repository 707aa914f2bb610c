"""Tutorials as notebooks: each page whose code runs has a link to a notebook with its text, code and output.

Jupyter knows neither the roles of Sphinx nor the other pages. So roles become their text, links lead to the hosted
pages (or become text, if the pages are not hosted), and pictures are in the notebook.
"""

import base64
import re
from pathlib import Path
from urllib.parse import urljoin

import nbformat

WITHOUT = {"tutorials/many_gpus"}  # runs programs of the repository
ROLE = re.compile(r"\{(\w+)\}`(?:([^`<]+?) <[^`>]+>|(~?)([^`<]+))`")
LABEL_OR_COMMENT = re.compile(r"^(?:\([\w-]+\)=|% .*)\n", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^):]+)\)")


def plain(markdown, address):
    """Return the text that Jupyter shows, and the names of its pictures.

    address
        That of the page, or "".
    """
    pictures = []

    def text_of(role):
        kind, title, shortened, target = role.groups()
        name = target and (target.split(".")[-1] if shortened else target)
        return title or (name if kind == "term" else f"`{name}`")

    def place_of(link):
        picture, text, target = link.groups()
        if picture:
            pictures.append(target)
            return f"![{text}](attachment:{Path(target).name})"
        target = re.sub(r"\.md\b", ".html", target)
        return f"[{text}]({urljoin(address, target)})" if address else text

    text = LABEL_OR_COMMENT.sub("", ROLE.sub(text_of, markdown))
    return LINK.sub(place_of, text), pictures


def convert(notebook, folder, address):
    """Make the executed notebook of a page, whose pictures are relative to ``folder``, one for Jupyter."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source, pictures = plain(cell.source, address)
            cell.attachments = {
                Path(name).name: {
                    "image/png": base64.b64encode((folder / name).read_bytes()).decode()
                }
                for name in pictures
            }
    del notebook.metadata["file_format"], notebook.metadata["source_map"]
    nbformat.validate(notebook)
    return notebook


def offer(app, page, template, context, doctree):
    """Write the notebook beside the page, and a link to it below the title."""
    if app.env.metadata.get(page, {}).get("file_format") != "mystnb" or page in WITHOUT:
        return
    executed = Path(app.env.mystnb_config.output_folder, f"{page}.ipynb")
    address = context["pageurl"] or ""
    notebook = convert(
        nbformat.read(executed, as_version=4), (Path(app.srcdir) / page).parent, address
    )
    target = Path(app.outdir, f"{page}.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    link = f'<p class="notebook"><a href="{target.name}" download>Download this page as a notebook</a></p>'
    context["body"] = context["body"].replace("</h1>", f"</h1>\n{link}", 1)


def setup(app):
    app.connect("html-page-context", offer)
    return {"parallel_read_safe": True}
