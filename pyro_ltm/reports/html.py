"""Pages that open from disk: pictures are inside them and nothing is fetched."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --line: #d5d5d5; --soft: #f4f4f2; --ink: #1d1d1f; --paper: #ffffff; --dim: #5f6368; }
@media (prefers-color-scheme: dark) {
  :root { --line: #44464a; --soft: #26272b; --ink: #ececec; --paper: #1b1c1f; --dim: #a5a8ad; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 76rem; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
.lead { background: var(--soft); padding: .8rem 1.2rem; border-left: 4px solid #1b6ca8; }
.lead p { margin: .3rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { position: sticky; top: 0; background: var(--soft); }
td.word, th.word { text-align: left; }
td.remark { white-space: normal; min-width: 14rem; text-align: left; color: var(--dim); }
.wide tbody tr:first-child { font-weight: 600; }
figure { margin: 1.6rem 0; } img { max-width: 100%; background: white; border-radius: 4px; }
figcaption, .dim { color: var(--dim); font-size: .9rem; }
blockquote, dd { white-space: pre-line; } dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0 0 0 1.2rem; }
code { font-size: .9em; overflow-wrap: anywhere; }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page from its parts, in HTML; empty ones are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # The page promises to fetch nothing, and the browser holds it to that.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def picture(name: str, content: bytes, caption: str) -> str:
    """A PNG inside the page, with its caption."""
    return (
        f'<figure id="{text(name)}"><img alt="{text(caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 2) -> str:
    """A table: the first `words` columns and the remark are words, the others figures."""
    kinds = ["word" if index < words else "remark" if name == "remark" else "" for index, name in enumerate(columns)]

    def cells(tag: str, texts: Sequence[str]) -> str:
        marked = zip(kinds, texts, strict=True)
        return "".join(f"<{tag}{f' class={kind!r}' if kind else ''}>{text(cell)}</{tag}>" for kind, cell in marked)

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{cells('th', columns)}</tr></thead>\n<tbody>{body}</tbody></table>"


def listing(entries: Mapping[str, str]) -> str:
    """Terms and what they mean."""
    return "<dl>" + "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>\n" for key, value in entries.items()) + "</dl>"


def text(value: str) -> str:
    """Plain text as HTML."""
    return html.escape(value, quote=True)


def to_png(figure: Figure) -> bytes:
    """The picture as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


def write_bytes(content: bytes, path: Path) -> None:
    """For `write_atomically`."""
    path.write_bytes(content)
