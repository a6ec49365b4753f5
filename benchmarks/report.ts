/**
 * Rows as a table for a terminal and as a report in Markdown, with what a bar means for one row and for all rows of a kind together.
 */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { availableParallelism, cpus, release, totalmem, type } from "node:os";
import { join } from "node:path";
import { median, smallerIsBetter, type Row } from "./measure.ts";

/** What the `gemm` rows must reach together, beside each row's own bar. */
const gemmGeometricMean = 1;
const gemmMostRows = { share: 0.95, ratio: 0.9 };
const gemmRoof = { f32: 0.85, bf16: 0.78 } as const;

/** median(ours) / median(rival), NaN without a rival. */
export function ratioOf({ ours, rival }: Row): number {
  return median(ours) / median(rival);
}
/** Fraction of what the machine can do, NaN where that was not measured. */
export function roofFractionOf({ ours, roof }: Row): number {
  return roof === undefined ? Number.NaN : median(ours) / median(roof);
}
/** What of the roof a row must reach beside its bar, or null. */
function roofBarOf({ name, roof }: Row): number | null {
  if (roof === undefined || !name.startsWith("gemm.")) return null;
  return name.startsWith("gemm.f32.") ? gemmRoof.f32 : gemmRoof.bf16;
}
/** Whether a row reaches its bar, or null where the rival did not run. */
export function isMet(row: Row): boolean | null {
  if (row.unit === "share") return row.bar === null ? null : median(row.ours) <= row.bar;
  const ratio = ratioOf(row);
  if (row.bar === null || Number.isNaN(ratio)) return null;
  return smallerIsBetter(row.unit) ? ratio <= row.bar : ratio >= row.bar;
}

/** A statement about several rows. */
export interface Judgement {
  readonly what: string;
  readonly value: string;
  readonly bar: string;
  readonly met: boolean;
}

/** What the `gemm` rows among `rows` must reach together. Empty where there are none with a rival. */
export function judgements(rows: readonly Row[]): Judgement[] {
  const gemm = rows.filter((row) => row.name.startsWith("gemm.") && !Number.isNaN(ratioOf(row)));
  const judged: Judgement[] = [];
  if (gemm.length > 0) {
    const ratios = gemm.map(ratioOf);
    const mean = Math.exp(ratios.reduce((sum, ratio) => sum + Math.log(ratio), 0) / ratios.length);
    const share = ratios.filter((ratio) => ratio >= gemmMostRows.ratio).length / ratios.length;
    const least = Math.min(...ratios);
    judged.push(
      {
        what: `gemm, ${gemm.length} rows: geometric mean of the ratios`,
        value: fixed(mean),
        bar: fixed(gemmGeometricMean),
        met: mean >= gemmGeometricMean,
      },
      {
        what: `gemm: rows at ${gemmMostRows.ratio} or more`,
        value: percent(share),
        bar: percent(gemmMostRows.share),
        met: share >= gemmMostRows.share,
      },
      { what: "gemm: least ratio", value: fixed(least), bar: "0.75", met: least >= 0.75 },
    );
  }
  for (const dtype of ["f32", "bf16"] as const) {
    const fractions = rows.filter((row) => row.name.startsWith(`gemm.${dtype}.`) && row.roof !== undefined).map(roofFractionOf);
    if (fractions.length === 0) continue;
    const least = Math.min(...fractions);
    const enough = fractions.filter((fraction) => fraction >= gemmRoof[dtype]).length;
    judged.push({
      what: `gemm.${dtype}, m, n, k >= 512: least fraction of the roof (${enough} of ${fractions.length} rows reach the bar)`,
      value: fixed(least),
      bar: fixed(gemmRoof[dtype]),
      met: least >= gemmRoof[dtype],
    });
  }
  return judged;
}

function fixed(value: number, digits = 2): string {
  return Number.isNaN(value) ? "-" : value.toFixed(digits);
}
function percent(value: number, digits = 0): string {
  return `${(100 * value).toFixed(digits)}%`;
}
/** Shares of a hundredth and more read well with one digit; smaller ones need more. */
function shareOf(value: number): string {
  return percent(value, value < 0.01 ? 3 : 1);
}
function figure(samples: readonly number[], unit: Row["unit"]): string {
  const value = median(samples);
  if (Number.isNaN(value)) return "-";
  if (unit === "share") return shareOf(value);
  return unit === "bytes" ? `${(value / 2 ** 20).toFixed(0)} MiB` : value >= 1000 ? value.toFixed(0) : value.toPrecision(4);
}
function verdict(row: Row): string {
  const met = isMet(row);
  const roofBar = roofBarOf(row);
  const belowRoof = roofBar !== null && roofFractionOf(row) < roofBar;
  if (met === null) return "no rival";
  if (!met) return "MISSED";
  return belowRoof ? "met; roof missed" : "met";
}
/** The cells of a row, in the order of `headings`. */
function cells(row: Row): string[] {
  const { name, ours, rival, unit, bar } = row;
  const digits = unit === "bytes" || unit === "perplexity" ? 3 : 2;
  const limit = unit === "share" ? shareOf(bar ?? Number.NaN) : fixed(bar ?? Number.NaN, digits);
  const wanted = bar === null ? "-" : `${smallerIsBetter(unit) || unit === "share" ? "<= " : ""}${limit}`;
  const unitName = unit === "bytes" ? "" : unit;
  return [
    name,
    figure(ours, unit),
    figure(rival, unit),
    unitName,
    fixed(ratioOf(row), digits),
    wanted,
    verdict(row),
    fixed(roofFractionOf(row)),
  ];
}
const headings = ["name", "ours", "rival", "unit", "ratio", "bar", "", "of roof"];

/** One line about a row that was just measured. */
export function describeRow(row: Row): string {
  const [name = "", ours, rival, unit, ratio, bar, met, roof] = cells(row);
  return `${name.padEnd(30)} ours ${ours}  rival ${rival} ${unit}  ratio ${ratio} (bar ${bar}: ${met})${roof === "-" ? "" : `  ${roof} of the roof`}`;
}

/** A table for a terminal. */
export function textTable(rows: readonly Row[]): string {
  const table = [headings, ...rows.map(cells)];
  const widths = headings.map((_, column) => Math.max(...table.map((line) => (line[column] ?? "").length)));
  const lines = table.map((line) =>
    line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join("  "),
  );
  const together = judgements(rows).map(({ what, value, bar, met }) => `${met ? "met   " : "MISSED"}  ${what}: ${value} (bar ${bar})`);
  return [...lines, "", ...together, ...notes(rows)].join("\n");
}

function notes(rows: readonly Row[]): string[] {
  return rows.flatMap((row) => {
    const others = Object.entries(row.others ?? {}).map(([what, samples]) => `${what} ${figure(samples, row.unit)}`);
    const parts = [...others, ...(row.note === undefined ? [] : [row.note])];
    return parts.length === 0 ? [] : [`${row.name}: ${parts.join("; ")}`];
  });
}

export interface RunFacts {
  readonly theme: string;
  readonly command: string;
  readonly seconds: number;
  /** Versions of the rivals. */
  readonly versions: Readonly<Record<string, string>>;
  /** Our engine, its instruction set and threads. */
  readonly engine: string;
  /** Load average of the last minute when the run began: near 0 on a quiet machine. */
  readonly loadBefore: number;
}

function line(command: string, args: readonly string[]): string {
  try {
    return (
      execFileSync(command, args, { encoding: "utf8", cwd: import.meta.dirname, stdio: ["ignore", "pipe", "ignore"] }).split("\n")[0] ?? ""
    );
  } catch {
    return "unknown";
  }
}

/** Model of the processor as the kernel names it, with the CPU family's number where the name says little. */
function processor(): string {
  const text = (() => {
    try {
      return readFileSync("/proc/cpuinfo", "utf8");
    } catch {
      return "";
    }
  })();
  const field = (name: string): string => new RegExp(`^${name}\\s*:\\s*(.+)$`, "m").exec(text)?.[1] ?? "?";
  return `${cpus()[0]?.model ?? "unknown"} (family ${field("cpu family")}, model ${field("model")}), ${availableParallelism()} threads`;
}

/** The report of a run. */
export function markdownReport(rows: readonly Row[], facts: RunFacts): string {
  const dirty = line("git", ["status", "--porcelain", "--untracked-files=no", "..", ":!results"]) === "" ? "" : " with local changes";
  const { version } = JSON.parse(readFileSync(join(import.meta.dirname, "..", "package.json"), "utf8")) as { version: string };
  const versions = Object.entries({ "moe.ts": version, node: process.version, cc: line("cc", ["--version"]), ...facts.versions });
  const together = judgements(rows).map(({ what, value, bar, met }) => [what, value, bar, met ? "met" : "**MISSED**"]);
  const table = (head: readonly string[], body: readonly (readonly string[])[]): string[] => [
    `| ${head.join(" | ")} |`,
    `| ${head.map(() => "---").join(" | ")} |`,
    ...body.map((row) => `| ${row.join(" | ")} |`),
  ];
  return [
    `# ${facts.theme}: ours and the rivals, one run`,
    "",
    `- command: \`${facts.command}\``,
    `- commit: ${line("git", ["rev-parse", "--short", "HEAD"])}${dirty}; ${new Date().toISOString().slice(0, 10)}, ${facts.seconds.toFixed(0)} s`,
    `- machine: ${processor()}, ${(totalmem() / 2 ** 30).toFixed(0)} GiB; ${type()} ${release()}; load before the run ${facts.loadBefore.toFixed(1)}`,
    `- engine: ${facts.engine}`,
    `- versions: ${versions.map(([name, value]) => `${name} ${value}`).join(", ")}`,
    "",
    "Figures are medians of samples that alternate between the sides; larger is better, except bytes, times and perplexities. What the rows mean: `benchmarks/README.md`.",
    "",
    ...(together.length === 0 ? [] : [...table(["rows together", "value", "bar", ""], together), ""]),
    ...table(
      headings,
      rows.map((row) => cells(row).map((cell) => (cell === "MISSED" ? "**MISSED**" : cell))),
    ),
    "",
    ...notes(rows).map((note) => `- ${note}`),
    "",
  ].join("\n");
}
