"""Step "scores -> report", the paper: one self-contained HTML page, for phone and desk, light and dark, eye and ear.

Everything that enters is escaped here and nowhere else: :py:class:`Html` is text that is markup already.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import Any

__all__ = ["Html", "cards", "definitions", "details", "figure", "join", "page", "section", "table", "text"]


class Html(str):
    """Markup. Every other string is text and is escaped when it is put into markup."""


# Contrast of every pair of text and ground below is at least 4.5 to 1 (WCAG AA).
_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f4f6f8;--ink:#1b2026;--soft:#4c5763;--line:#d3d9e0;--link:#0b57a4;
--bad:#a3160f;--bad-paper:#fdecea}
@media(prefers-color-scheme:dark){:root{--paper:#12161b;--card:#1c2229;--ink:#e8ecf1;--soft:#aeb9c5;--line:#37414c;
--link:#86bdf5;--bad:#ffb3ab;--bad-paper:#3a1714}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;
overflow-wrap:anywhere}
header,main,footer{max-width:75rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.5rem}
footer{padding:1.5rem 1rem 3rem;color:var(--soft);font-size:.875rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.3rem;line-height:1.25;margin:2.5rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1.08rem;margin:1.75rem 0 .4rem}
p{margin:.4rem 0;max-width:48rem}
a{color:var(--link)}
.lead,.soft,figcaption,caption{color:var(--soft)}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;list-style:none;margin:.75rem 0 0;padding:0}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--paper);padding:.5rem}
.alert{background:var(--bad-paper);border-left:.3rem solid var(--bad);padding:.1rem 1rem 1rem;margin-top:1.5rem}
.alert h2{border:0;margin:0;padding-top:.75rem;color:var(--bad)}.alert .soft,.alert caption{color:var(--ink)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.75rem;margin:1rem 0;padding:0}
.cards div{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}
.cards dt{color:var(--soft);font-size:.875rem}.cards dd{margin:0;font-size:1.5rem;line-height:1.3}
.cards small{display:block;font-size:.8rem;color:var(--soft)}
.facts{display:grid;grid-template-columns:minmax(5rem,max-content) 1fr;gap:.3rem 1.2rem;margin:.5rem 0}
.facts dt{color:var(--soft)}.facts dd{margin:0}
code{font:.875em/1.45 ui-monospace,Menlo,Consolas,monospace}
.scroll{position:relative;overflow-x:auto;max-width:100%;
border:1px solid var(--line);border-radius:.4rem;margin:.5rem 0}
.scroll:focus-visible,button:focus-visible,a:focus-visible,summary:focus-visible{outline:3px solid var(--link);
outline-offset:2px}
table{border-collapse:separate;border-spacing:0;font-size:.9rem;font-variant-numeric:tabular-nums;width:100%;
overflow-wrap:normal}
caption{text-align:left;padding:.5rem .7rem;position:sticky;left:0}
th,td{padding:.35rem .7rem;border-top:1px solid var(--line);text-align:right;white-space:nowrap;vertical-align:top}
thead th{vertical-align:bottom;font-weight:600}
th:first-child,td:first-child{text-align:left}
tbody th{font-weight:500;position:sticky;left:0;background:var(--paper);max-width:14rem;white-space:normal}
tbody tr.strong th,tbody tr.strong td{font-weight:700;background:var(--card)}
.words{text-align:left}td.words{white-space:normal;min-width:10rem;overflow-wrap:anywhere}
td small,th small{color:var(--soft);font-weight:400;font-size:.8rem}
.alert tbody th,.alert td{background:var(--bad-paper)}
th button{all:unset;cursor:pointer;text-decoration:underline dotted;text-underline-offset:.2em}
th[aria-sort=ascending] button::after{content:" \\25B2"}th[aria-sort=descending] button::after{content:" \\25BC"}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:1rem;margin:.75rem 0;
align-items:start}
.plots{grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr))}
figure{margin:0}
figure img{display:block;width:100%;height:auto;max-height:34rem;object-fit:contain;border-radius:.4rem}
.pictures img{background:#000}.plots img{max-height:none;max-width:36rem}
figcaption{font-size:.875rem;padding-top:.3rem}
.legend{display:flex;flex-wrap:wrap;gap:.35rem 1.1rem;list-style:none;padding:0;margin:.5rem 0;font-size:.9rem}
.legend li{display:flex;align-items:center;gap:.4rem}
.legend svg{width:1.5rem;height:1.5rem;flex:none;border-radius:.25rem}
summary{cursor:pointer;color:var(--link);padding:.3rem 0}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.pictures{grid-template-columns:repeat(3,1fr);gap:.75rem}
@media(max-width:36rem){.pictures{grid-template-columns:1fr 1fr;gap:.6rem}h1{font-size:1.45rem}
.pictures figure:last-child:nth-child(odd){grid-column:1/-1}}
@media print{.scroll{overflow:visible;border:0}nav,.skip{display:none}section{break-inside:avoid-page}}
"""

# Without it the tables stand as they are written: worst first.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const order = (a, b) => {
        const x = key(a), y = key(b);
        if (x === "" || y === "") return (x === "") - (y === "");  // what has no value stays last
        const result = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, {numeric: true}) : x - y;
        return down ? -result : result;
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
"""

# The page can load nothing from outside, whatever a value in a file says.
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>$title</h1>
<p class="lead">$lead</p>
<nav aria-label="Contents"><ul>
$contents
</ul></nav>
</header>
<main id="content">
$body
</main>
<footer>$foot</footer>
<script>$script</script>
</body>
</html>
""")


def text(value: object) -> Html:
    """Anything as markup: escaped, unless it is :py:class:`Html` already."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object], separator: str = "\n") -> Html:
    """Parts one after the other."""
    return Html(separator.join(text(part) for part in parts))


def page(title: str, lead: str, sections: Sequence[tuple[str, str, Html]], foot: str) -> str:
    """A whole page.

    Args:
        title: of the page, its only first heading.
        lead: one sentence below it.
        sections: id, heading and markup of each section, in order; empty ones are left out.
        foot: at the end.

    Returns:
        HTML that refers to nothing outside itself.
    """
    shown = [one for one in sections if one[2]]
    return _PAGE.substitute(
        title=text(title),
        lead=text(lead),
        style=_STYLE,
        script=_SCRIPT,
        contents=join(Html(f'<li><a href="#{text(name)}">{text(heading)}</a></li>') for name, heading, _ in shown),
        body=join(section(name, heading, body) for name, heading, body in shown),
        foot=text(foot),
    )


def section(name: str, heading: str, body: Html) -> Html:
    """A section with its second-level heading; the one named "failed" stands out."""
    style = ' class="alert"' if name == "failed" else ""
    return Html(f'<section id="{text(name)}"{style}>\n<h2>{text(heading)}</h2>\n{body}\n</section>')


def table(
    caption: str,
    headings: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    strong: Sequence[int] = (),
    sortable: bool = False,
    words: Sequence[int] = (),
) -> Html:
    """A table in a box of its own that scrolls sideways.

    Args:
        caption: what the table holds.
        headings: of the columns.
        rows: cells; the first one of each heads the row. A pair is what is shown and the value to sort by.
        strong: numbers of the rows that stand out.
        sortable: whether a reader may sort it.
        words: numbers of the columns that hold sentences.
    """
    kinds = [' class="words"' if column in words else "" for column in range(len(headings))]
    head = join(
        (Html(f'<th scope="col"{kind}>{text(one)}</th>') for one, kind in zip(headings, kinds, strict=True)), ""
    )
    lines = []
    for number, cells in enumerate(rows):
        style = ' class="strong"' if number in strong else ""
        first, *others = (_cell(cell) for cell in cells)
        line = [f'<th scope="row"{first[1]}>{first[0]}</th>']
        for kind, (shown, value) in zip(kinds[1:], others, strict=True):
            line.append(f"<td{kind}{value}>{shown}</td>")
        lines.append(Html(f"<tr{style}>{''.join(line)}</tr>"))
    kind = ' class="sortable"' if sortable else ""
    # a box that scrolls must be reached by keyboard, and have a name
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}"><table{kind}>\n'
        f"<caption>{text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{join(lines)}\n</tbody>\n"
        "</table></div>"
    )


def figure(title: str, alt: str, content: bytes | str) -> Html:
    """A picture with its caption and its description.

    Args:
        title: caption.
        alt: what is to be seen, for who cannot see it.
        content: bytes of a PNG, or the text of an SVG.
    """
    kind, data = ("png", content) if isinstance(content, bytes) else ("svg+xml", content.encode())
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = f'<img alt="{text(alt)}" decoding="async" src="{source}">'
    return Html(f"<figure>{image}<figcaption>{text(title)}</figcaption></figure>")


def definitions(facts: Mapping[str, Any]) -> Html:
    """Names and what they stand for."""
    return Html(
        '<dl class="facts">'
        + join(Html(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>") for name, value in facts.items())
        + "</dl>"
    )


def cards(numbers: Sequence[tuple[str, str, str]]) -> Html:
    """Numbers to be seen first: name, number and a remark each."""
    shown = (
        Html(f"<div><dt>{text(name)}</dt><dd>{text(number)}<small>{text(remark)}</small></dd></div>")
        for name, number, remark in numbers
    )
    return Html(f'<dl class="cards">{join(shown)}</dl>')


def details(summary: str, body: Html) -> Html:
    """Something that a reader may open."""
    return Html(f"<details><summary>{text(summary)}</summary>\n{body}\n</details>")


def _cell(cell: object) -> tuple[Html, str]:
    if isinstance(cell, tuple):
        return text(cell[0]), f' data-value="{text(cell[1])}"'
    return text(cell), ""
