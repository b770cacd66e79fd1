"""cli: the frame of report.html: style for phone and desktop, light and dark, and the script behind
click-to-enlarge.
"""

STYLE = """
:root { color-scheme: light dark; --line: #d8dce2; --soft: #f3f5f8; --dim: #5b6472; --a: #1f6feb; --b: #c4500a; --c: #1a7f37;
  --good: #1a7f37; --warn: #9a6700; --bad: #c3222b; }
@media (prefers-color-scheme: dark) { :root { --line: #3a404a; --soft: #1d2128; --dim: #9aa4b2; --a: #6cb0ff; --b: #ff9d57;
  --c: #5cd17c; --good: #5cd17c; --warn: #e3b341; --bad: #ff7b72; } body { background: #12151a; color: #e8ebf0; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: clamp(1.4rem, 5vw, 2.1rem); line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1rem 0 .4rem; overflow-wrap: anywhere; }
.lead { font-size: 1.05rem; } .dim { color: var(--dim); font-size: .9rem; }
.cards { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); margin: 1rem 0; }
.card { background: var(--soft); border-radius: .5rem; padding: .6rem .8rem; overflow-wrap: anywhere; }
.card b { display: block; font-size: 1.25rem; }
.grid { display: grid; gap: 4px; grid-template-columns: repeat(4, 1fr); }
@media (min-width: 560px) { .grid { grid-template-columns: repeat(8, 1fr); } }
.grid button { all: unset; cursor: zoom-in; line-height: 0; border-radius: 3px; overflow: hidden; }
.grid button:focus-visible { outline: 3px solid var(--a); }
.grid img { width: 100%; height: auto; }
.pixel { image-rendering: pixelated; }
dialog { border: 0; padding: 0; background: none; max-width: 96vw; max-height: 96vh; cursor: zoom-out; }
dialog img { width: min(94vw, 40rem); max-height: 94vh; object-fit: contain; display: block; }
dialog::backdrop { background: #000c; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; } figcaption { font-size: .9rem; color: var(--dim); }
svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .92rem; } td, th { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-weight: 600; } td { overflow-wrap: anywhere; min-width: 4rem; }
  td:not(.n) { min-width: 8.5rem; } .facts th { white-space: nowrap; }
pre, code { font: .88rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
pre { background: var(--soft); border-radius: .5rem; padding: .8rem; margin: .3rem 0; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--a); }
.verdict { border-left: .35rem solid var(--dim); background: var(--soft); border-radius: .3rem; padding: .6rem .9rem; margin: .5rem 0; }
.fine { border-color: var(--good); } .doubtful { border-color: var(--warn); } .no { border-color: var(--bad); }
@media print { body { max-width: none; } .grid button { cursor: auto; } }
@media (max-width: 560px) { .facts, .facts tbody, .facts tr, .facts th, .facts td { display: block; border: 0; padding: 0; }
  .facts tr { border-bottom: 1px solid var(--line); padding: .3rem 0; } .facts th { color: var(--dim); font-weight: 400; } }
"""

SCRIPT = """
const shown = document.querySelector('dialog');
document.querySelectorAll('.grid button').forEach(button => button.addEventListener('click', () => {
  const image = button.querySelector('img'), large = shown.querySelector('img');
  large.src = image.src; large.alt = image.alt; large.className = image.className; shown.showModal(); }));
shown.addEventListener('click', () => shown.close());
"""


def page(*, title: str, body: str) -> str:
    """The whole document. title: plain text, escaped already; body: HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n<meta '
        'name="viewport" content="width=device-width, '
        f'initial-scale=1">\n<title>{title}</title>\n<link rel="icon" '
        f'href="data:,">\n<style>{STYLE}</style></head>\n<body>\n{body}\n'
        '<dialog aria-label="enlarged image"><img '
        f'alt=""></dialog>\n<script>{SCRIPT}</script>\n</body></html>\n'
    )


def table(
    rows: list[list[str]], *, head: list[str] | None = None, kind: str = "", numbers: int = 0
) -> str:
    """HTML table of cells that are HTML already. numbers: so many columns from the right hold
    numbers; kind: a CSS class.
    """

    def line(cells, tag):
        first = len(cells) - numbers
        return (
            "<tr>"
            + "".join(
                f"<{tag}{' class=n' if i >= first else ''}>{c}</{tag}>" for i, c in enumerate(cells)
            )
            + "</tr>"
        )

    if kind == "facts":
        lines = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in rows)
    else:
        lines = (line(head, "th") if head else "") + "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table class="{kind}"><tbody>{lines}</tbody></table></div>'
