/**
 * A plan as one HTML file that needs nothing else: tables, the timeline of a step, memory of every pipeline rank, the Pareto plot. SVG and
 * style sheets only, no script, no network; light or dark as the reader's system is. Colours mean the same everywhere and every
 * coloured thing has a text, too.
 */
import { barChart, escapeHtml, scatterPlot, timelineChart } from "./charts.ts";
import { gibibytes } from "./excess.ts";
import { describeDevices, type PlanReport, type PlanSummary, type RunnerUp } from "./plan.ts";
import { describeLayout } from "./search.ts";
import type { TimelineEntry } from "./simulate.ts";
import { memoryParts, type StageMemory } from "./types.ts";

export interface PlanPage {
  readonly title: string;
  readonly report: PlanReport;
  readonly timeline: readonly TimelineEntry[];
  readonly memory: readonly StageMemory[];
  readonly memoryLimits: readonly number[];
  readonly notes: readonly string[];
}

export function planPage({ title, report, timeline, memory, memoryLimits, notes }: PlanPage): string {
  const { plan, cluster } = report;
  const heading = `${title} on ${describeDevices(cluster.devices)}`;
  const bars = memory.map((stage, rank) => ({
    label: `rank ${rank}`,
    values: memoryParts.map((part) => stage[part] / 2 ** 30),
    limit: (memoryLimits[rank] ?? 0) / 2 ** 30,
  }));
  const points = report.pareto.map((p, i) => ({
    x: p.stepTimeMs,
    y: p.peakMemoryBytes / 2 ** 30,
    label: String(i + 1),
    title: describeLayout(p.layout),
  }));
  const others = report.runnersUp.map((p) => ({
    x: p.stepTimeMs,
    y: p.peakMemoryBytes / 2 ** 30,
    label: "",
    title: describeLayout(p.layout),
  }));
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(heading)}</title>
<style>${style}</style>
</head>
<body>
<h1>${escapeHtml(heading)}</h1>
<p class="lead">${escapeHtml(describeLayout(plan.layout))}; ${report.batchSequences} sequences of ${report.sequenceLength} tokens a step, best by ${report.objective}</p>
<dl class="tiles">${tiles(report)}</dl>
<h2>Timeline of a step</h2>
${legend([
  ["forward", "forward"],
  ["backward", "backward"],
  ["weight", "backward, weights"],
  ["send", "message"],
  ["gradients", "exchange of gradients"],
  ["optimizer", "optimizer"],
])}
${timelineChart(timeline, plan.layout.pp)}
<h2>Memory of a device, by pipeline rank</h2>
${legend(memoryParts.map((part, i) => [`m${i}`, part]))}
${barChart(bars, "GiB")}
<h2>Where the step goes</h2>
${table(
  ["", "ms", "share"],
  Object.entries(plan.termsMs).map(([term, ms]) => [term, (ms as number).toFixed(1), percent((ms as number) / plan.stepTimeMs)]),
)}
<h2>Step time and memory</h2>
<p>Numbered: plans that no other beats in both. Small: runners-up by ${report.objective}.</p>
${scatterPlot(points, others, "step, ms", "peak memory, GiB")}
${table(
  summaryHead,
  report.pareto.map((p, i) => summaryCells(String(i + 1), p)),
)}
<h2>Best by each purpose</h2>
${table(summaryHead, [summaryCells("time", report.byTime), summaryCells("memory", report.byMemory), summaryCells("cost", report.byCost)])}
${runnersUpSection(report)}
<h2>What does not fit</h2>
${
  report.infeasible.length === 0
    ? "<p>Every layout that was evaluated fits.</p>"
    : table(
        ["layout", "why"],
        report.infeasible.slice(0, 40).map(({ layout, reason }) => [describeLayout(layout), reason]),
      )
}
${runSection(report)}
${notes.map((note) => `<p class="note">${escapeHtml(note)}</p>`).join("\n")}
<p class="note">${report.search.numLayouts} layouts, ${report.search.numEvaluated} evaluated; none is below ${report.search.lowerBoundMs.toFixed(1)} ms.</p>
</body>
</html>
`;
}

function tiles({ plan, model }: PlanReport): string {
  const proof = plan.optimal ? "split proven the fastest" : `no split below ${plan.lowerBoundMs.toFixed(1)} ms`;
  return [
    ["step", `${plan.stepTimeMs.toFixed(1)} ms`, proof],
    [
      "tokens a second and device",
      plan.tokensPerGpuPerSecond.toFixed(0),
      `${(plan.tokensPerGpuPerSecond * plan.numDevices).toFixed(0)} in all`,
    ],
    ["of the peak", percent(plan.mfu), "model FLOPs"],
    ["bubble", percent(plan.bubbleFraction), "of the ranks' time"],
    ["fullest device", `${gibibytes(plan.peakMemoryBytes)} GiB`, "with workspace"],
    ["parameters", `${(model.parameters / 1e9).toFixed(2)} B`, `${(model.activeParameters / 1e9).toFixed(2)} B active`],
  ]
    .map(
      ([name, value, small]) =>
        `<div><dt>${escapeHtml(name ?? "")}</dt><dd>${escapeHtml(value ?? "")}<small>${escapeHtml(small ?? "")}</small></dd></div>`,
    )
    .join("");
}

const summaryHead = ["", "step ms", "tokens/s/device", "GiB", "devices", "layout", "layers (recomputed)"];
function summaryCells(name: string, { layout, stepTimeMs, tokensPerGpuPerSecond, peakMemoryBytes, numDevices }: PlanSummary): string[] {
  const split = layout.stages.map((n, s) => ((layout.recompute[s] ?? 0) > 0 ? `${n} (${layout.recompute[s]})` : String(n))).join(", ");
  return [
    name,
    stepTimeMs.toFixed(1),
    tokensPerGpuPerSecond.toFixed(0),
    gibibytes(peakMemoryBytes),
    String(numDevices),
    describeLayout(layout),
    split,
  ];
}

function runSection({ run }: PlanReport): string {
  if (run === null) return "";
  const { tokens, steps, days, deviceHours, cost } = run;
  const row = [
    tokens.toExponential(2),
    String(steps),
    days.toFixed(1),
    deviceHours.toFixed(0),
    cost === null ? "no price given" : cost.toFixed(0),
  ];
  return `<h2>The whole run</h2>\n${table(["tokens", "steps", "days", "device hours", "cost"], [row])}`;
}

function runnersUpSection({ objective, runnersUp }: PlanReport): string {
  const differences = (r: RunnerUp): { readonly name: string; readonly sign: number; readonly text: string }[] =>
    objective === "memory"
      ? r.excesses
          .filter(({ bytes }) => Math.abs(bytes) > 2 ** 24)
          .map(({ part, bytes }) => ({ name: part, sign: Math.sign(bytes), text: `${gibibytes(Math.abs(bytes))} GiB` }))
      : r.losses
          .filter(({ ms }) => Math.abs(ms) > 0.5)
          .map(({ term, ms }) => ({ name: term, sign: Math.sign(ms), text: `${Math.abs(ms).toFixed(1)} ms` }));
  const told = (r: RunnerUp, sign: number): string =>
    differences(r)
      .filter((difference) => difference.sign === sign)
      .map(({ name, text }) => `${name} ${text}`)
      .join(", ");
  const head = objective === "memory" ? ["layout", "GiB", "holds more", "holds less"] : ["layout", "step ms", "loses", "gains"];
  const size = (r: RunnerUp): string => (objective === "memory" ? gibibytes(r.peakMemoryBytes) : r.stepTimeMs.toFixed(1));
  const rows = runnersUp.map((r) => [describeLayout(r.layout), size(r), told(r, 1), told(r, -1)]);
  return `<h2>${objective === "memory" ? "What the next ones hold more" : "What the next ones lose"}</h2>\n${table(head, rows)}`;
}

function legend(items: readonly (readonly [string, string])[]): string {
  return `<ul class="legend">${items.map(([name, text]) => `<li><i class="${name}"></i>${escapeHtml(text)}</li>`).join("")}</ul>`;
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const cells = (tag: string, row: readonly string[]): string =>
    row.map((cell) => `<${tag}${/^[\d.,e+%-]+$/.test(cell) ? ' class="n"' : ""}>${escapeHtml(cell)}</${tag}>`).join("");
  return `<div class="scroll"><table><thead><tr>${cells("th", head)}</tr></thead><tbody>${rows.map((row) => `<tr>${cells("td", row)}</tr>`).join("\n")}</tbody></table></div>`;
}

function percent(fraction: number): string {
  return `${(100 * fraction).toFixed(1)}%`;
}

const style = `
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--soft:#57606a;--line:#d0d7de;--forward:#3b78c3;--backward:#c8702a;--weight:#e0ab6e;--send:#8a6fc1;--gradients:#3f8f6b;--optimizer:#9a9a3c;--m0:#3b78c3;--m1:#c8702a;--m2:#3f8f6b;--m3:#b5577f;--m4:#8b8b8b;--limit:#c0392b}
@media (prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e4e8ec;--soft:#9aa4af;--line:#363d46;--forward:#6ea8ec;--backward:#e89a58;--weight:#b98a4f;--send:#ab94e0;--gradients:#62b892;--optimizer:#c4c46a;--m0:#6ea8ec;--m1:#e89a58;--m2:#62b892;--m3:#d984a8;--m4:#8f979f;--limit:#ff7b6b}}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;background:var(--bg);color:var(--fg)}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}.lead,.note{color:var(--soft)}
.tiles{display:flex;flex-wrap:wrap;gap:1rem;margin:1rem 0}.tiles div{border:1px solid var(--line);border-radius:.5rem;padding:.6rem .9rem;min-width:8rem}
.tiles dt{color:var(--soft);font-size:.8rem}.tiles dd{margin:0;font-size:1.3rem}.tiles small{display:block;font-size:.75rem;color:var(--soft)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}th,td{border-bottom:1px solid var(--line);padding:.3rem .7rem;text-align:left;vertical-align:top}th{color:var(--soft);font-weight:600}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
svg{width:100%;height:auto;display:block}svg text{fill:var(--fg);font:11px system-ui,sans-serif}svg .axis{stroke:var(--line);stroke-width:1;fill:none}svg .soft{fill:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;list-style:none;padding:0;margin:.3rem 0;font-size:.8rem}.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.4rem;vertical-align:-1px}
${["forward", "backward", "weight", "send", "gradients", "optimizer", "m0", "m1", "m2", "m3", "m4"].map((name) => `.${name}{fill:var(--${name});background:var(--${name})}`).join("")}
.limit{stroke:var(--limit);stroke-width:2}.front{fill:none;stroke:var(--forward);stroke-width:1.5;stroke-dasharray:4 3}.point{fill:var(--forward)}.other{fill:none;stroke:var(--soft)}
`;
