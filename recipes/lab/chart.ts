/** Line charts as SVG text: means over seeds with their intervals as bands. For reports that show on any page; nothing interactive. */

export interface Series {
  readonly label: string;
  readonly points: readonly { readonly x: number; readonly y: number; readonly half?: number }[];
}
export interface ChartOptions {
  readonly title: string;
  readonly x: string;
  readonly y: string;
  readonly log?: boolean;
}

/** Okabe and Ito's colors, which color-blind readers can tell apart. */
const colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"] as const;
const size = { width: 720, height: 400, left: 64, right: 16, top: 40, bottom: 44 } as const;

/** Round numbers from `low` to `high`, about `count` of them. */
export function ticks(low: number, high: number, count = 6): number[] {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  const first = Math.ceil(low / step) * step;
  return Array.from({ length: Math.floor((high - first) / step + 1e-9) + 1 }, (_, i) => Number((first + i * step).toPrecision(12)));
}

/** The chart as an SVG document. Points that are not finite are left out. */
export function lineChart(series: readonly Series[], { title, x: xLabel, y: yLabel, log = false }: ChartOptions): string {
  const shown = series.map(({ label, points }) => ({ label, points: points.filter(({ y }) => Number.isFinite(y) && (!log || y > 0)) }));
  const scaled = (y: number): number => (log ? Math.log10(y) : y);
  const all = shown.flatMap(({ points }) => points);
  const xs = all.map((p) => p.x);
  const ys = all
    .flatMap(({ y, half = 0 }) => [y - half, y + half])
    .filter((y) => Number.isFinite(y) && (!log || y > 0))
    .map(scaled);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const margin = 0.04 * (Math.max(...ys) - Math.min(...ys) || 1);
  const [y0, y1] = [Math.min(...ys) - margin, Math.max(...ys) + margin];
  const px = (x: number): string => (size.left + ((x - x0) / (x1 - x0 || 1)) * (size.width - size.left - size.right)).toFixed(1);
  const py = (y: number): string =>
    (size.height - size.bottom - ((y - y0) / (y1 - y0)) * (size.height - size.top - size.bottom)).toFixed(1);
  const at = (x: number, y: number): string => `${px(x)},${py(log ? Math.log10(Math.max(y, 10 ** y0)) : y)}`;
  const lines = shown.map(({ label, points }, index) => {
    const color = colors[index % colors.length];
    const upper = points.map(({ x, y, half }) => at(x, y + (Number.isFinite(half) ? (half ?? 0) : 0)));
    const lower = points.map(({ x, y, half }) => at(x, y - (Number.isFinite(half) ? (half ?? 0) : 0))).toReversed();
    return [
      `<polygon points="${[...upper, ...lower].join(" ")}" fill="${color}" opacity="0.15"/>`,
      `<polyline points="${points.map(({ x, y }) => at(x, y)).join(" ")}" fill="none" stroke="${color}" stroke-width="1.8"/>`,
      `<rect x="${size.width - 250}" y="${size.top + 6 + 18 * index}" width="14" height="4" fill="${color}"/>`,
      `<text x="${size.width - 230}" y="${size.top + 13 + 18 * index}">${escaped(label)}</text>`,
    ].join("\n");
  });
  const grid = [
    ...ticks(x0, x1).map((x) => `<text x="${px(x)}" y="${size.height - size.bottom + 18}" text-anchor="middle">${x}</text>`),
    ...ticks(y0, y1).map((y) => {
      const name = log ? (10 ** y).toPrecision(2) : String(y);
      const line = `<line x1="${size.left}" x2="${size.width - size.right}" y1="${py(y)}" y2="${py(y)}" stroke="#ddd"/>`;
      return `${line}<text x="${size.left - 6}" y="${Number(py(y)) + 4}" text-anchor="end">${name}</text>`;
    }),
  ];
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${size.width} ${size.height}" font-family="sans-serif" font-size="12">`,
    `<rect width="${size.width}" height="${size.height}" fill="white"/>`,
    `<text x="${size.left}" y="22" font-size="15">${escaped(title)}</text>`,
    ...grid,
    ...lines,
    `<text x="${(size.left + size.width - size.right) / 2}" y="${size.height - 8}" text-anchor="middle">${escaped(xLabel)}</text>`,
    `<text transform="translate(14 ${size.height / 2}) rotate(-90)" text-anchor="middle">${escaped(yLabel)}</text>`,
    "</svg>",
    "",
  ].join("\n");
}

function escaped(value: string): string {
  return value.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
