/** Pictures of a plan as SVG text: timeline, bars, scatter plot. Colours are classes of the page's style sheet (`page.ts`). */
import type { TimelineEntry } from "./simulate.ts";

const width = 1100;
const left = 64;
const right = 16;

export function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

const classOfKind = {
  forward: "forward",
  backward: "backward",
  backwardInput: "backward",
  backwardWeight: "weight",
  send: "send",
  gradients: "gradients",
  optimizer: "optimizer",
} as const satisfies Record<TimelineEntry["kind"], string>;

/**
 * A row a rank, one path for all operations of a kind. Operations narrower than a tenth of a pixel are widened to it, so a step of many
 * micro-batches looks dense, not empty.
 */
export function timelineChart(timeline: readonly TimelineEntry[], numRanks: number): string {
  const end = timeline.reduce((most, { endSeconds }) => Math.max(most, endSeconds), 0) || 1;
  const row = Math.max(8, Math.min(24, 480 / numRanks));
  const scale = (width - left - right) / end;
  const paths = new Map<string, string[]>();
  for (const { kind, rank, startSeconds, endSeconds } of timeline) {
    const name = classOfKind[kind];
    const thin = kind === "send";
    const y = rank * row + (thin ? 0.75 * row : 1);
    const height = thin ? 0.2 * row : 0.72 * row - 1;
    const path = paths.get(name) ?? [];
    path.push(
      `M${at(left + scale * startSeconds)} ${at(y)}h${at(Math.max(0.1, scale * (endSeconds - startSeconds)))}v${at(height)}H${at(left + scale * startSeconds)}z`,
    );
    paths.set(name, path);
  }
  const labels = Array.from({ length: numRanks }, (_, rank) =>
    numRanks > 24 && rank % 4 > 0 ? "" : `<text x="${left - 8}" y="${at((rank + 0.6) * row)}" text-anchor="end">rank ${rank}</text>`,
  );
  const height = numRanks * row + 24;
  return `<svg viewBox="0 0 ${width} ${at(height)}" role="img" aria-label="Timeline: operations of each pipeline rank over ${(1e3 * end).toFixed(0)} ms">
${labels.join("")}${timeAxis(end, numRanks * row + 4)}
${[...paths].map(([name, path]) => `<path class="${name}" d="${path.join("")}"/>`).join("\n")}
</svg>`;
}

function timeAxis(end: number, y: number): string {
  return ticks(0, 1e3 * end)
    .map((ms) => {
      const x = left + ((width - left - right) * ms) / (1e3 * end);
      return `<path class="axis" d="M${at(x)} 0V${at(y)}"/><text class="soft" x="${at(x)}" y="${at(y + 14)}" text-anchor="middle">${ms} ms</text>`;
    })
    .join("");
}

export interface Bar {
  readonly label: string;
  /** Stacked, in the order of the classes m0, m1, ... */
  readonly values: readonly number[];
  readonly limit: number;
}

export function barChart(bars: readonly Bar[], unit: string): string {
  const most = Math.max(...bars.map(({ values, limit }) => Math.max(limit, sum(values)))) * 1.02;
  const row = Math.max(12, Math.min(26, 560 / bars.length));
  const scale = (width - left - right) / most;
  const rows = bars.map(({ label, values, limit }, i) => {
    let x = left;
    const y = i * row;
    const parts = values.map((value, part) => {
      const rect = `<rect class="m${part}" x="${at(x)}" y="${at(y + 2)}" width="${at(scale * value)}" height="${at(row - 5)}"/>`;
      x += scale * value;
      return rect;
    });
    const total = sum(values).toFixed(1);
    return `<g><title>${escapeHtml(label)}: ${total} of ${limit.toFixed(1)} ${unit}</title>${parts.join("")}
<path class="limit" d="M${at(left + scale * limit)} ${at(y)}v${at(row - 1)}"/>
<text x="${left - 8}" y="${at(y + 0.65 * row)}" text-anchor="end">${escapeHtml(label)}</text><text x="${at(x + 4)}" y="${at(y + 0.65 * row)}">${total}</text></g>`;
  });
  const y = bars.length * row;
  const axis = ticks(0, most).map(
    (value) => `<text class="soft" x="${at(left + scale * value)}" y="${at(y + 14)}" text-anchor="middle">${value} ${unit}</text>`,
  );
  return `<svg viewBox="0 0 ${width} ${at(y + 20)}" role="img" aria-label="Memory by pipeline rank, with the limit of the device">${rows.join("")}${axis.join("")}</svg>`;
}

export interface Point {
  readonly x: number;
  readonly y: number;
  readonly label: string;
  readonly title: string;
}

/** `front` numbered and joined, `others` as small circles. */
export function scatterPlot(front: readonly Point[], others: readonly Point[], xName: string, yName: string): string {
  const height = 320;
  const all = [...front, ...others];
  const [x0, x1] = spread(all.map(({ x }) => x));
  const [y0, y1] = spread(all.map(({ y }) => y));
  const px = (x: number): number => left + ((width - left - right) * (x - x0)) / (x1 - x0);
  const py = (y: number): number => height - 36 - ((height - 56) * (y - y0)) / (y1 - y0);
  const dot = (p: Point, name: string, r: number): string =>
    `<circle class="${name}" cx="${at(px(p.x))}" cy="${at(py(p.y))}" r="${r}"><title>${escapeHtml(p.title)}: ${p.x.toFixed(1)}, ${p.y.toFixed(1)}</title></circle>`;
  const grid = [
    ...ticks(x0, x1).map(
      (x) =>
        `<path class="axis" d="M${at(px(x))} 16V${height - 36}"/><text class="soft" x="${at(px(x))}" y="${height - 20}" text-anchor="middle">${x}</text>`,
    ),
    ...ticks(y0, y1).map(
      (y) =>
        `<path class="axis" d="M${left} ${at(py(y))}H${width - right}"/><text class="soft" x="${left - 8}" y="${at(py(y) + 4)}" text-anchor="end">${y}</text>`,
    ),
  ];
  const names = `<text x="${width - right}" y="${height - 4}" text-anchor="end">${escapeHtml(xName)}</text><text x="4" y="10">${escapeHtml(yName)}</text>`;
  const line = `<path class="front" d="${front.map((p, i) => `${i === 0 ? "M" : "L"}${at(px(p.x))} ${at(py(p.y))}`).join("")}"/>`;
  const labels = front.map((p) => `<text x="${at(px(p.x) + 8)}" y="${at(py(p.y) - 6)}">${escapeHtml(p.label)}</text>`);
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Plans by ${escapeHtml(xName)} and ${escapeHtml(yName)}">${grid.join("")}${names}${line}${others.map((p) => dot(p, "other", 3)).join("")}${front.map((p) => dot(p, "point", 5)).join("")}${labels.join("")}</svg>`;
}

/** About six round numbers from `from` to `to`. */
export function ticks(from: number, to: number): number[] {
  const raw = (to - from) / 6;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw) ?? raw;
  const result: number[] = [];
  for (let i = Math.ceil(from / step); i * step <= to; i++) result.push(Number((i * step).toPrecision(6)));
  return result;
}

/** Range with room around; one value has some, too. */
function spread(values: readonly number[]): [number, number] {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = high > low ? 0.08 * (high - low) : Math.max(1e-6, 0.1 * high);
  return [Math.max(0, low - room), high + room];
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}
function at(value: number): string {
  return String(Math.round(value * 10) / 10);
}
