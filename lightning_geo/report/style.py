"""The report's look: on a light screen, on a dark one, and on paper."""

from __future__ import annotations

__all__ = ["HEAD", "PATTERNS"]

_STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--paper:#fff;--card:#f6f8fa;--c0:#0a62a8;--c1:#c2570c;
--c2:#1a7f5a;
--c3:#8a3ffc;--c4:#a8071a;--c5:#57606a}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa4af;--line:#30363d;--paper:#0d1117;
--card:#161b22;
--c0:#58a6ff;--c1:#f0883e;--c2:#3fb98a;--c3:#b58cff;--c4:#ff7b72;--c5:#9aa4af}}
body{margin:0 auto;padding:24px 28px 60px;max-width:1180px;color:var(--ink);background:var(--paper);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:26px;margin:0 0 12px}h2{font-size:20px;margin:34px 0 8px;border-bottom:1px solid var(--line)}
h3{font-size:16px;margin:16px 0 4px}p{margin:4px 0}ul{margin:6px 0;padding-left:22px}li{margin:5px 0;
max-width:95ch}
.two{columns:2 27em}.two li{break-inside:avoid;margin:2px 0}
.note{color:var(--soft);font-size:13px}.wide{overflow-x:auto;margin:8px 0}
table{border-collapse:collapse;font-size:13.5px;overflow-wrap:normal}
td,th{padding:3px 12px 3px 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:600}.n td:not(:first-child),.n th:not(:first-child){text-align:right}
td{font-variant-numeric:tabular-nums}
section{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:6px 16px 12px;
margin:12px 0}
section h3{margin-top:6px}
.pictures{display:flex;flex-wrap:wrap;gap:14px 22px;margin-top:8px;align-items:flex-start}
svg{max-width:100%;height:auto;overflow:visible}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}svg .t{font-weight:600;font-size:12px;
fill:var(--ink)}
svg .e{text-anchor:end}svg .m{text-anchor:middle}.px{image-rendering:pixelated}
.axis{fill:none;stroke:var(--line)}.band{fill:var(--c0);opacity:.18}.bar{fill:var(--c0)}
.dot{fill:#fff;stroke:#000;stroke-width:1}
.l0,.l1,.l2,.l3,.l4,.l5{fill:none;stroke-width:2}.l0{stroke:var(--c0)}.l1{stroke:var(--c1);
stroke-dasharray:7 3}
.l2{stroke:var(--c2);stroke-dasharray:2 3}.l3{stroke:var(--c3);stroke-dasharray:9 3 2 3}
.l4{stroke:var(--c4)}
.l5{stroke:var(--c5);stroke-dasharray:4 4}
@media print{:root{--ink:#000;--soft:#444;--line:#bbb;--paper:#fff;--card:#fff;--c0:#0a62a8;--c1:#c2570c;
--c2:#1a7f5a;
--c3:#8a3ffc;--c4:#a8071a;--c5:#57606a}body{max-width:none;padding:0;font-size:11pt}
section,svg,tr{break-inside:avoid}h2,h3{break-after:avoid}*{print-color-adjust:exact}}
"""

#: What stands in the page's head: the policy forbids to load anything and to run any script.
HEAD = (
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
    'img-src data:"><meta name="color-scheme" content="light dark">'
    f"<style>{_STYLE}</style>"
)

#: What pictures refer to.
PATTERNS = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs><pattern id="absent" '
    'width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="2" height="6" fill="#888" opacity=".45"/></pattern></defs></svg>'
)
