"""Pages that open from disk: pictures are inside them and nothing is fetched."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

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


def heading(title: str, lines: Sequence[str]) -> str:
    """The title of a page, and in sentences what a reader should take away."""
    return f'<h1>{text(title)}</h1>\n<div class="lead">{paragraphs(lines)}</div>'


def section(title: str, *parts: str) -> str:
    """A part of the page under its title; nothing where there is nothing in it."""
    return "\n".join([f"<h2>{text(title)}</h2>", *filter(None, parts)]) if any(parts) else ""


def paragraphs(lines: Sequence[str]) -> str:
    """A paragraph for each line."""
    return "".join(f"<p>{text(line)}</p>" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    """A list; nothing for no lines."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def quote(content: str) -> str:
    """A text of the data or of the model."""
    return f"<blockquote>{text(content)}</blockquote>"


def pictures(found: Mapping[str, tuple[bytes, str]]) -> str:
    """PNG pictures inside the page, by name, each with its caption."""
    return "\n".join(
        f'<figure id="{text(name)}"><img alt="{text(caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
        for name, (content, caption) in found.items()
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
