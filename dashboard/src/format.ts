/** Numbers as people read them. */
export function compact(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e15)) return value.toExponential(Math.max(0, digits - 1)).replace("e+", "e");
  for (const [unit, scale] of [
    ["T", 1e12],
    ["G", 1e9],
    ["M", 1e6],
    ["k", 1e4],
  ] as const)
    if (size >= scale) return `${trimmed(value / (unit === "k" ? 1e3 : scale), digits)}${unit}`;
  return trimmed(value, digits);
}
function trimmed(value: number, digits: number): string {
  const text = Math.abs(value) >= 10 ** digits ? value.toFixed(0) : value.toPrecision(digits);
  return text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
}
export function percent(value: number | null | undefined, digits = 1): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const scaled = 100 * value;
  return `${scaled !== 0 && Math.abs(scaled) < 0.1 ? scaled.toPrecision(2) : scaled.toFixed(digits)}%`;
}
export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  for (const [unit, size] of [
    ["TiB", 2 ** 40],
    ["GiB", 2 ** 30],
    ["MiB", 2 ** 20],
    ["KiB", 2 ** 10],
  ] as const)
    if (Math.abs(value) >= size) return `${trimmed(value / size, 3)} ${unit}`;
  return `${value.toFixed(0)} B`;
}
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 1e-3) return `${trimmed(seconds * 1e6, 3)} µs`;
  if (seconds < 1) return `${trimmed(seconds * 1e3, 3)} ms`;
  if (seconds < 120) return `${trimmed(seconds, 3)} s`;
  return seconds < 7200 ? `${trimmed(seconds / 60, 3)} min` : `${trimmed(seconds / 3600, 3)} h`;
}
/** Multiples of the fair share. */
export function times(value: number | null | undefined): string {
  return value === null || value === undefined || !Number.isFinite(value) ? "–" : `${trimmed(value, 3)}×`;
}
export function whole(value: number | null | undefined): string {
  return value === null || value === undefined || !Number.isFinite(value) ? "–" : Math.round(value).toLocaleString("en-US");
}
