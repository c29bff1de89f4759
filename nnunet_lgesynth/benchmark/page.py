"""The page that reports are: one HTML file without outside references, and its parts.

Light and dark follow the reader's system, plots take the page's text colour.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from nnunet_lgesynth.files import write_text

__all__ = ["ACCENT", "INK", "PRIVATE", "breakable", "folded", "number", "picture", "plot",
           "provenance", "section", "table", "verdict", "write_page"]

PRIVATE = "The pictures show patient data: keep this file where the data may be."
INK = "#010203"       # replaced by the page's text colour
ACCENT = "#2f81c7"

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6570;--line:#d5dae0;--page:#fff;--box:#f3f6f9}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--soft:#9aa5b1;--line:#39424c;--page:#14181c;
--box:#1e242a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:72rem;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{overflow-wrap:anywhere;font-size:1.45rem;line-height:1.25;margin:0 0 .2rem}
h2{font-size:1.12rem;margin:2.2rem 0 .5rem}
p{margin:.4rem 0}.soft{color:var(--soft);font-size:.9rem}
.verdict{background:var(--box);border-left:4px solid #2f81c7;padding:.8rem 1rem;margin:1.2rem 0}
.verdict p:first-child{font-weight:600;font-size:1.05rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem .35rem 0;text-align:right;border-bottom:1px solid var(--line);
vertical-align:top;white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:7rem}
th,td.group{font-weight:600}td.group{padding-top:1rem}td.text{white-space:normal;text-align:left;
min-width:20rem}
td small{display:block;color:var(--soft)}
.plots{display:flex;flex-wrap:wrap;gap:1rem}.plots figure{flex:1 1 16rem;max-width:22rem;margin:0}
figure svg,figure img{width:100%;height:auto;display:block}
figure.wide{margin:0 0 1rem}figcaption{color:var(--soft);font-size:.85rem}
details{margin-top:2rem}summary{cursor:pointer;font-weight:600}
pre{background:var(--box);padding:.7rem;overflow-x:auto;font-size:.8rem}
"""


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write the HTML file, whole or not at all; `title` is text, `parts` are HTML."""
    write_text(path, (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"))


def verdict(first: str, *others: str) -> str:
    """A box with a headline and softer sentences below; all are text."""
    return (f'<div class="verdict"><p>{escape(first)}</p>'
            + "".join(f'<p class="soft">{escape(s)}</p>' for s in others) + "</div>")


def section(title: str, content: str, note: str) -> str:
    """A heading, its content, and a soft note; all are HTML."""
    return f'<h2>{title}</h2>{content}<p class="soft">{note}</p>'


def folded(summary: str, content: str) -> str:
    """A part that opens at a click; the summary is text, the content HTML."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def breakable(name: str) -> str:
    """HTML of an arm's name (text), which may be broken after a comma or colon."""
    return re.sub("([:,])", r"\1<wbr>", escape(name))


def table(head: Iterable[str], body: Iterable[str]) -> str:
    """A table of column names (text) and rows (HTML)."""
    heads = "".join(f"<th>{escape(h)}</th>" for h in head)
    return (f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>")


def picture(caption: str, png: bytes) -> str:
    """An embedded PNG with its caption (text)."""
    data = base64.b64encode(png).decode()
    return (f'<figure class="wide"><img alt="{escape(caption)}" src="data:image/png;'
            f'base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>')


def plot(draw: Callable, salt: str, size: tuple[float, float] = (3.3, 3.3),
         projection: str | None = None) -> str:
    """An SVG of `size` inches of what `draw(axes)` draws; `INK` becomes the page's text colour.

    `salt` makes its ids unlike those of the page's other plots; `projection` is the axes'.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "text.color": INK,
                     "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK,
                     "ytick.color": INK, "font.family": "sans-serif"}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot(projection=projection)
        draw(axes)
        if projection is None:
            axes.spines[["top", "right"]].set_visible(False)
        axes.patch.set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    return svg.replace(INK, "currentColor")


def provenance(commands: Sequence[str], versions: dict[str, str], machine: str,
               hashes: dict | None = None) -> str:
    """A folded part that says where the numbers are from."""
    told = ["\n".join(commands), json.dumps(versions, indent=1),
            *[json.dumps(hashes, indent=1)] * bool(hashes)]
    given = "".join(f"<pre>{escape(t)}</pre>" for t in told)
    return folded(f"Commands, versions, {'hashes, ' * bool(hashes)}machine",
                  f"{given}<p>{escape(machine)}</p>")


def number(value: float | None, digits: int = 3) -> str:
    """A rounded number, a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"
