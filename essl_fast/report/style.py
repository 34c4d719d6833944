"""The style sheet of a report: light and dark, for phones and large screens."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f27; --soft: #5d6675; --line: #e1e5eb; --rule: #c9d0da;
  --accent: #2f6fde; --good: #1e8e5a; --warn: #a85b00; --warn-card: #fff4e2;
  --c0: #2f6fde; --c1: #d9542b; --c2: #1e9a68; --c3: #8a4fd0;
  --c4: #b98200; --c5: #c43d7a; --c6: #128a9c; --c7: #6b7280;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151b; --card: #1b2029; --ink: #e7eaf0; --soft: #9aa5b5; --line: #2b323e; --rule: #465061;
    --accent: #7aa7ff; --good: #55c893; --warn: #ffbf66; --warn-card: #33270f;
    --c0: #7aa7ff; --c1: #ff8f66; --c2: #55c893; --c3: #bd93f9;
    --c4: #e6b84c; --c5: #f27fb2; --c6: #58c7d8; --c7: #9aa5b5;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 36px 0 12px; }
h3 { font-size: .95rem; margin: 18px 0 8px; color: var(--soft); font-weight: 600; overflow-wrap: anywhere; }
p { margin: 0 0 10px; }
.sub { color: var(--soft); overflow-wrap: anywhere; }
.card + .sub { margin-top: 8px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; }
.note { background: var(--warn-card); color: var(--warn); border-radius: 10px; padding: 9px 14px; margin: 12px 0;
  overflow-wrap: anywhere; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 20px 0 4px; }
.tile b { display: block; font-size: 1.65rem; line-height: 1.25; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .86rem; }
.tile em { display: block; font-style: normal; font-size: .82rem; color: var(--soft); }
.charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
figure { margin: 0; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 12px 14px 10px; }
.chart figcaption { font-weight: 600; font-size: .9rem; margin-bottom: 6px; }
.chart svg { display: block; width: 100%; height: auto; }
.empty { color: var(--soft); padding: 50px 0; text-align: center; }
svg text { fill: var(--soft); font-size: 11.5px; font-family: inherit; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-width: 1; }
.axis { stroke: var(--rule); stroke-width: 1; }
.mark { stroke: var(--rule); stroke-width: 1; stroke-dasharray: 3 3; }
.series { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.dashed { stroke-width: 1.6; stroke-dasharray: 5 4; }
.touch { fill: transparent; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); } .s3 { stroke: var(--c3); }
.s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); } .s6 { stroke: var(--c6); } .s7 { stroke: var(--c7); }
.dot { fill: var(--card); stroke-width: 1.8; }
.bar { stroke: none; } .bar.s1 { fill: var(--c1); } .bar.s2 { fill: var(--c2); }
.b0 { background: var(--c0); } .b1 { background: var(--c1); } .b2 { background: var(--c2); }
.b3 { background: var(--c3); } .b4 { background: var(--c4); } .b5 { background: var(--c5); }
.b6 { background: var(--c6); } .b7 { background: var(--c7); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 14px; padding: 0; margin: 6px 0 0;
  font-size: .82rem; color: var(--soft); }
.legend li { overflow-wrap: anywhere; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
.key.thin { height: 4px; vertical-align: 3px; }
.stack { display: flex; height: 22px; border-radius: 6px; overflow: hidden; gap: 1px; background: var(--line); }
.piece { display: block; height: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px 6px 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tr:last-child td, tr:last-child th { border-bottom: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.strong { font-weight: 650; }
tr.paper td { color: var(--soft); }
td.wrap { overflow-wrap: anywhere; min-width: 12ch; }
.meter { display: inline-block; width: 96px; height: 8px; border-radius: 4px; background: var(--line);
  overflow: hidden; vertical-align: 1px; margin-left: 10px; }
.meter i { display: block; height: 100%; background: var(--c0); }
.gallery { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(46%, 170px), 1fr)); }
.shot { background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
.shot svg { display: block; width: 100%; height: auto; }
.shot figcaption { padding: 7px 11px 9px; font-size: .82rem; line-height: 1.35; overflow-wrap: anywhere; }
.shot figcaption b { font-size: .95rem; } .shot small { color: var(--soft); display: block; }
.shot audio { display: block; width: 100%; height: 34px; }
.truth { fill: none; stroke: #38f28a; stroke-width: 2.5; }
.edge { fill: none; stroke: #ffffff; stroke-width: 1.8; stroke-linejoin: round; }
.under { fill: none; stroke: #000000; stroke-opacity: .55; stroke-width: 4; stroke-linejoin: round; }
.switch { position: absolute; opacity: 0; pointer-events: none; }
.switches { display: flex; flex-wrap: wrap; gap: 8px; margin: 0 0 12px; }
.switches label { border: 1px solid var(--rule); border-radius: 999px; padding: 3px 13px; font-size: .84rem;
  cursor: pointer; user-select: none; color: var(--soft); }
.heat-on:checked ~ .switches .for-heat, .edge-on:checked ~ .switches .for-edge,
.truth-on:checked ~ .switches .for-truth { background: var(--accent); border-color: var(--accent); color: var(--card); }
.heat-on:focus-visible ~ .switches .for-heat, .edge-on:focus-visible ~ .switches .for-edge,
.truth-on:focus-visible ~ .switches .for-truth { outline: 2px solid var(--ink); outline-offset: 2px; }
.heat-on:not(:checked) ~ .groups .heat, .edge-on:not(:checked) ~ .groups .outline,
.truth-on:not(:checked) ~ .groups .boxes { display: none; }
details { margin-top: 12px; }
summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
details .card { margin-top: 8px; }
ol.gaps { margin: 8px 0 0; padding-left: 22px; }
ol.gaps li { margin-bottom: 6px; }
footer { margin-top: 40px; color: var(--soft); font-size: .82rem; overflow-wrap: anywhere; }
@media (max-width: 560px) {
  main { padding: 18px 12px 40px; }
  h1 { font-size: 1.35rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; }
  .tile b { font-size: 1.3rem; }
  .gallery { gap: 8px; grid-template-columns: 1fr 1fr; }
  .meter { display: none; }
  .wide::before { content: "the table goes on to the right: swipe"; position: sticky; left: 0; display: block;
    font-size: .8rem; color: var(--soft); }
  th, th.n { white-space: normal; }
}
@media print { body { background: #fff; } .card, .chart, .shot { break-inside: avoid; } }
"""
