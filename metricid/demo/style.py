"""How the parts of `markup` look; the colours of the theme carry over, light and dark.

gradio puts every selector into its own container, but of a list of `.dark` selectors only the first: give
each of them a rule of its own.
"""

STYLE = """
:root { --m-quiet: #52525b; }
.dark { --m-quiet: #a1a1aa; }
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.m-title h1 { font-size: 1.4rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.m-title p, .m-hint { color: var(--m-quiet); margin: .25rem 0; }
.m-problem { border-left: 4px solid #c2410c; padding: .5rem .75rem; font-weight: 600; }
.m-note { margin: .25rem 0; color: var(--m-quiet); }
.m-head { margin: 0 0 .75rem; }
.m-threshold { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: flex-start; }
.m-threshold > p:first-child { flex: 1 1 280px; margin: 0; }
.m-chart { flex: 1 1 280px; max-width: 560px; }
.m-chart svg { display: block; width: 100%; height: auto; }
.m-chart svg .m-impostor { fill: #b45309; fill-opacity: .45; }
.m-chart svg .m-genuine { fill: #1d4ed8; fill-opacity: .45; }
.dark .m-chart svg .m-genuine { fill: #60a5fa; }
.dark .m-chart svg .m-impostor { fill: #fb923c; }
.m-chart line { stroke: var(--body-text-color); stroke-width: 2; stroke-dasharray: 5 3; }
.m-ticks { display: flex; justify-content: space-between; }
.m-ticks, .m-legend { margin: 0 !important; font-size: .85rem; }
.m-legend span { display: inline-block; margin-right: 1rem; }
.m-legend span::before { content: ""; display: inline-block; width: .9em; height: .7em; margin-right: .35em; }
.m-legend .m-impostor::before { background: #b45309; opacity: .6; }
.m-legend .m-genuine::before { background: #1d4ed8; opacity: .6; }
.dark .m-legend .m-impostor::before { background: #fb923c; }
.dark .m-legend .m-genuine::before { background: #60a5fa; }
.m-legend .m-line::before { border-top: 2px dashed currentColor; height: .25em; }
.m-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(124px, 1fr)); gap: .6rem;
  list-style: none !important; margin: 0 !important; padding: 0 !important; }
.m-card { position: relative; display: flex; flex-direction: column; gap: .2rem; padding: .4rem;
  margin: 0 !important;
  border: 2px solid var(--border-color-primary); border-radius: 8px;
  background: var(--background-fill-primary);
  min-width: 0; }
.m-card img, .m-photo img { width: 100%; height: 128px; object-fit: contain; margin: 0; }
.m-photo { margin: 0; }
.m-photo img { height: 160px; }
.m-photo figcaption { text-align: center; font-size: .85rem; color: var(--m-quiet); }
.m-none { display: grid; place-items: center; height: 128px; color: var(--m-quiet); }
.m-rank { position: absolute; top: .25rem; left: .25rem; padding: 0 .4rem; border-radius: 6px;
  font-size: .8rem;
  background: var(--background-fill-secondary); }
.m-name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: .85rem; }
.m-score { font-variant-numeric: tabular-nums; font-size: .85rem; }
.m-match { border-color: #15803d; }
.m-match .m-verdict, .m-match .m-big { color: #15803d; font-weight: 600; }
.dark .m-match .m-verdict { color: #4ade80; }
.dark .m-match .m-big { color: #4ade80; }
.m-other .m-verdict { color: var(--m-quiet); }
.m-alike { border-color: #b45309; }
.m-compare { border: 2px solid var(--border-color-primary); border-radius: 8px; padding: .75rem 1rem; }
.m-compare.m-match { border-color: #15803d; }
.m-compare p { margin: .2rem 0; }
.m-big { font-size: 1.2rem; font-weight: 600; }
.m-sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 1rem; }
#presets { gap: .5rem !important; padding: .25rem .75rem 0; flex-wrap: wrap; justify-content: flex-start; }
#presets button { flex: 0 0 auto; border-radius: 6px; }
#threshold-box, #threshold-box > *, #presets, #meaning { background: var(--block-background-fill); }
#pair input { text-overflow: ellipsis; padding-right: 1.5rem; }
input[type=range]::-webkit-slider-thumb { border: 2px solid var(--slider-color); }
input[type=range]::-moz-range-thumb { border: 2px solid var(--slider-color); }
.m-side h4 { margin: 0 0 .4rem; overflow-wrap: anywhere; }
"""
