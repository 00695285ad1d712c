"""How the report looks: its words, its style sheet, and what a page starts from."""

TITLE = "Nearest neighbors, one weighted average"
ABOUT = """Every method in this book is one line: the answer at <i>x</i> is an average of the values of other points,
weighted by how near a kernel <i>s</i> finds them. A chapter takes one use of it, runs it from the data to the figures,
and sets what was measured beside what was published. No measured figure was copied in by hand: all were left by the
runs that are named at the foot, and what no run has measured says so."""
EQUATION = """<i>y</i>(<i>x</i>) = Σ<sub><i>j</i></sub> softmax<sub><i>j</i></sub>(<i>s</i>(<i>x</i>,
<i>c</i><sub><i>j</i></sub>)) · <i>v</i><sub><i>j</i></sub>"""

HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{css}</style></head>
<body>
"""

CSS = """
:root { color-scheme: light dark; --paper: #faf9f6; --card: #fff; --ink: #1f1e1b; --soft: #68645c; --line: #e0dcd3;
  --accent: #0a5a94; --bad: #a33f00; --code: #f2f0ea;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Georgia, serif;
  --sans: -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace }
@media (prefers-color-scheme: dark) { :root { --paper: #161513; --card: #1e1d1a; --ink: #ece8df; --soft: #a8a297;
  --line: #37342e; --accent: #86c5f2; --bad: #f3a873; --code: #25231f } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.0625rem/1.6 var(--serif) }
a { color: var(--accent); text-underline-offset: .15em; text-decoration-thickness: .06em }
h1, h2, h3, h4 { line-height: 1.22; margin: 2.2em 0 .5em; text-wrap: balance } h1 { font-size: 2.1rem; margin-top: 0 }
h2 { font-size: 1.45rem } h3, h4 { font-size: 1.15rem }
img { max-width: 100%; height: auto }
.plate { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .6rem }
sub { font-size: .68em; line-height: 0 } .small { font: .84rem/1.5 var(--sans); color: var(--soft) }
.failed { color: var(--bad); font-weight: 600 }
table { border-collapse: collapse; font: .9rem/1.45 var(--sans); font-variant-numeric: tabular-nums }
th, td { padding: .3em 1.2em .3em 0; border: solid var(--line); border-width: 0 0 1px; text-align: right }
th:first-child, td:first-child { text-align: left } th:last-child, td:last-child { padding-right: 0 }
th, td { vertical-align: top } th { font-weight: 600 } thead th { color: var(--soft); font-weight: 500 }
.none { color: var(--soft) } .dataframe { border: 0 }
.front { max-width: 68rem; margin: 0 auto; padding: 4.5rem 1.4rem 3rem }
.front > header { max-width: 43rem; margin-bottom: 3.5rem } .front h1 { font-size: clamp(2rem, 5.5vw, 3rem) }
.equation { font-size: clamp(1.15rem, 4.4vw, 1.5rem); margin: 1.4rem 0; padding-left: 1rem;
  border-left: 3px solid var(--accent) }
article { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 1.2rem 2.6rem; padding: 2.4rem 0;
  border-top: 1px solid var(--line); break-inside: avoid }
article h2 { margin: .15rem 0 .6rem; font-size: 1.6rem } article h2 a { color: inherit; text-decoration: none }
article h2 a:hover { color: var(--accent); text-decoration: underline } article p { margin: 0 0 1rem }
article .small { margin: 0 } article table { width: 100%; margin-bottom: .8rem }
article p.failed { font: 600 .9rem/1.5 var(--sans) }
article .plate { align-self: start } article .plate img { display: block; margin: auto; max-height: 30rem }
article .blank { display: grid; place-items: center; min-height: 9rem; background: none; border-style: dashed }
.front > footer { border-top: 1px solid var(--line); margin-top: 1rem; padding-top: 1.4rem }
footer h3 { font: 600 .84rem/1.5 var(--sans); margin: 0 0 .2rem; color: var(--ink) }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1rem 1.2rem; margin: 0 0 1.4rem }
dd { margin: 0; overflow-wrap: anywhere }
.page { max-width: 47rem; margin: 0 auto; padding: 1.2rem 1.4rem 3rem }
.page > nav { display: flex; gap: .4rem 1.6rem; flex-wrap: wrap; font: .86rem/1.5 var(--sans); padding: .7rem 0 }
nav a { text-decoration: none } nav a:hover { text-decoration: underline } nav .next { margin-left: auto }
.page > .small { border: solid var(--line); border-width: 1px 0; padding: .5rem 0; margin: 0 0 2.4rem }
.page > nav + nav { border-bottom: 1px solid var(--line) } main { overflow-wrap: break-word } main li { margin: .2em 0 }
.anchor-link { display: none }
blockquote { margin: 1.2em 0; padding-left: 1rem; border-left: 3px solid var(--line); color: var(--soft) }
pre, code { font-family: var(--mono); font-size: .82rem; line-height: 1.5 } pre { margin: 0; white-space: pre-wrap }
:not(pre) > code { background: var(--code); border-radius: 3px; padding: .1em .3em; font-size: .86em }
.jp-CodeCell { margin: 1.1rem 0 } .jp-OutputArea-output { overflow-x: auto; margin: .5rem 0 }
.jp-RenderedText pre { padding: .2rem 0 .2rem 1rem; border-left: 3px solid var(--line) }
.jp-RenderedImage, .jp-RenderedSVG { background: #fff; border: 1px solid var(--line); border-radius: 6px;
  padding: .6rem; text-align: center }
.jp-RenderedImage img { display: block; margin: auto }
.jp-RenderedText[data-mime-type$=stderr] { background: #fff; color: #3a3834; border-radius: 6px }
.jp-RenderedText[data-mime-type$=stderr] pre { padding: .5rem 1rem; font-size: .76rem }
summary { font: .76rem/1.5 var(--sans); color: var(--soft); cursor: pointer; width: max-content }
details .highlight { background: var(--code); border-radius: 6px; padding: .7rem .9rem; margin: .3rem 0 .8rem }
.highlight [class^=c] { color: var(--soft); font-style: italic } .highlight [class^=s] { color: var(--bad) }
.highlight [class^=k], .highlight .ow, .highlight .mi, .highlight .mf { color: var(--accent) }
@media (max-width: 46rem) { article { grid-template-columns: minmax(0, 1fr) } .front { padding-top: 2.2rem }
  .front > header { margin-bottom: 2rem } dl { grid-template-columns: minmax(0, 1fr) } dd { margin-bottom: .4rem } }
@media (min-width: 60rem) { .jp-CodeCell { position: relative; min-height: 1.3rem }
  summary { position: absolute; right: 100%; margin-right: 1.1rem } }
@media print { body { background: #fff; font-size: 10pt } .page > nav, details { display: none }
  .front { padding-top: 0 } .front > header { margin-bottom: 1rem } }
"""

PAGE = """
{%- extends 'base.html.j2' -%}
{%- block header -%}{{ resources.opening }}{%- endblock -%}
{%- block body_header -%}<main>{%- endblock -%}
{%- block input_group -%}<details><summary>code</summary>{{ cell.source | highlight_code }}</details>{%- endblock -%}
{%- block body_footer -%}</main>{{ resources.closing }}{%- endblock -%}
{%- block footer -%}{%- endblock -%}
"""
