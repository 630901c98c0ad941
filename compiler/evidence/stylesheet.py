"""The report's style: light and dark as the reader's screen is, black on white on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b2330; --dim: #5a6675; --line: #d6dce4; --card: #f5f7fa; --paper: #fff;
  --chosen: #0b5cad; --tried: #8693a3; --bad: #b3261e; --int8: #cfe3ff; --fp16: #e4d9fb; --fp32: #fbe3c0 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --dim: #9aa6b5; --line: #343d49; --card: #1b212a;
  --paper: #12161c; --chosen: #6cb2ff; --tried: #7d8a9a; --bad: #ff8a80; --int8: #1f4470; --fp16: #47366f;
  --fp32: #5f4a1f } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--paper) }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--dim); font-weight: 600 } thead th { position: sticky; top: 0; background: var(--paper) }
.wide { overflow-x: auto } .long { max-height: 24rem; overflow-y: auto; border: 1px solid
  var(--line); border-radius: .4rem; padding: 0 .6rem }
code, .mono { font-family: ui-monospace, monospace } code { font-size: .85em; overflow-wrap: anywhere }
td:last-child { overflow-wrap: anywhere; min-width: 8.5rem } td:not(:last-child), th { white-space: nowrap }
.bad { color: var(--bad); font-weight: 600 } .dim { color: var(--dim) }
figure { margin: .6rem 0 1rem; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; break-inside: avoid }
figcaption { color: var(--dim); font-size: .88rem; margin-top: .5rem }
svg { display: block; max-width: 100%; height: auto } svg text { font: 13px system-ui, sans-serif; fill: var(--ink);
  paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round }
@media (max-width: 45rem) { svg { max-width: none } figure { padding: .6rem } }
svg .cell-text, svg .box-text { stroke: none }
svg .dim { fill: var(--dim); font-size: 12px } svg .small { font-size: 12px }
svg .tiny { fill: var(--dim); font-size: 10px } svg .strong { font-weight: 600 }
svg .mono { font-family: ui-monospace, monospace }
.axis { stroke: var(--dim); fill: none } .grid { stroke: var(--line) } .edge { stroke: var(--tried); fill: none }
.trace { stroke: var(--tried); stroke-opacity: .5; stroke-width: 1.5; fill: none }
.limit { stroke: var(--bad); stroke-dasharray: 6 4; stroke-width: 1.5 }
svg .limit-text { fill: var(--bad); font-size: 12px }
.tried { fill: var(--tried); fill-opacity: .75; stroke: var(--card) }
.chosen { fill: var(--chosen); stroke: var(--card) }
.bad-mark { fill: var(--bad); stroke: var(--card) } .bar { fill: var(--tried) }
.cell { stroke: var(--line) } .int8 { fill: var(--int8) }
.fp16, .bf16 { fill: var(--fp16) } .fp32 { fill: var(--fp32) }
.unknown { fill: none } svg .cell-text { font-size: 12px }
.differs { fill: none; stroke: var(--bad); stroke-width: 2.5 } svg .differs-text { fill: var(--bad); font-weight: 700 }
.box { fill: var(--paper); stroke: var(--tried) } .strong-box { stroke: var(--chosen); stroke-width: 2 }
@media print { :root { color-scheme: light; --ink: #000; --dim: #444; --line: #bbb; --card: #fff; --paper: #fff;
    --chosen: #0b5cad; --tried: #777; --bad: #b3261e; --int8: #dcebff; --fp16: #ece4fc; --fp32: #fdeed6 }
  body { max-width: none; margin: 0; font-size: 11pt }
  .long { max-height: none; overflow: visible; border: 0; padding: 0 }
  .wide { overflow: visible } svg { max-width: 100% } thead th { position: static }
  tr { break-inside: avoid }
  * { print-color-adjust: exact } }
"""
