/**
 * What a command says, and where: the result on standard output (one JSON object with `--json`, otherwise text), everything
 * else (progress, logs) on standard error. Nothing here decides what to say.
 */
import { Presets, SingleBar } from "cli-progress";
import { LivePanel } from "./live-panel.ts";

export interface Progress {
  /** `done` of the total, with a short note (loss, tokens/s). */
  update(done: number, note?: string): void;
  stop(): void;
}

export class Output {
  readonly json: boolean;
  readonly #out: NodeJS.WritableStream;
  readonly #log: NodeJS.WriteStream;
  /** Bars under way on the terminal: their line has no end yet. */
  readonly #bars = new Set<SingleBar>();
  #panel: LivePanel | null = null;

  constructor({
    json = false,
    out = process.stdout,
    log = process.stderr,
  }: { json?: boolean; out?: NodeJS.WritableStream; log?: NodeJS.WriteStream } = {}) {
    this.json = json;
    this.#out = out;
    this.#log = log;
  }

  /** The command's result: `value` as one line of JSON with `--json`, otherwise `text`. */
  result(value: unknown, text: string): void {
    this.#out.write(`${this.json ? JSON.stringify(value) : text}\n`);
  }
  /** Text that is part of the result as it comes (generated tokens); nothing with `--json`. */
  stream(text: string): void {
    if (!this.json) this.#out.write(text);
  }
  /** Whether somebody watches on a terminal. */
  get isTerminal(): boolean {
    return this.#log.isTTY;
  }
  /** A line for the person who watches; above the panel, or below a bar, which goes on under it. */
  log(line: string): void {
    if (this.#panel !== null) {
      this.#panel.log(line);
      return;
    }
    this.#log.write(`${this.#bars.size > 0 ? "\n" : ""}${line}\n`);
  }
  /** Lines at the bottom of the terminal, drawn anew in place until `endPanel`. Only where `isTerminal`. */
  panel(render: (columns: number, rows: number) => readonly string[]): void {
    this.#panel ??= new LivePanel(this.#log);
    this.#panel.update(render);
  }
  /** The panel's last content stays where it is, and what comes next stands under it. */
  endPanel(): void {
    this.#panel?.stop();
    this.#panel = null;
  }
  /** A bar on a terminal; a line now and then otherwise. */
  progress(label: string, total: number): Progress {
    if (this.#log.isTTY) {
      const bar = new SingleBar(
        // The cursor stays: a process that is killed could not bring it back.
        { format: `${label} {bar} {value}/{total} {note}`, stream: this.#log, hideCursor: false, clearOnComplete: false },
        Presets.shades_classic,
      );
      bar.start(total, 0, { note: "" });
      this.#bars.add(bar);
      return {
        update: (done, note = "") => {
          bar.update(done, { note });
        },
        stop: () => {
          if (this.#bars.delete(bar)) bar.stop();
        },
      };
    }
    let nextReport = 0;
    return {
      update: (done, note = "") => {
        if (done < nextReport && done !== total) return;
        nextReport = done + Math.max(1, Math.ceil(total / 10));
        this.log(`${label} ${done}/${total} ${note}`);
      },
      stop: () => undefined,
    };
  }
}

/** Three significant digits, and all of those before the point: `toPrecision` would write 1020 as `1.02e+3`. */
function threeDigits(x: number): string {
  return x < 999.5 ? x.toPrecision(3) : x.toFixed(0);
}

/** `1234567` as `1.23 M`. */
export function formatCount(n: number): string {
  for (const [unit, size] of [
    ["T", 1e12],
    ["B", 1e9],
    ["M", 1e6],
    ["k", 1e3],
  ] as const) {
    if (n >= size) return `${threeDigits(n / size)} ${unit}`;
  }
  return String(n);
}

/** Bytes in binary units: `1.50 GiB`. */
export function formatBytes(bytes: number): string {
  for (const [unit, size] of [
    ["TiB", 2 ** 40],
    ["GiB", 2 ** 30],
    ["MiB", 2 ** 20],
    ["KiB", 2 ** 10],
  ] as const) {
    if (bytes >= size) return `${threeDigits(bytes / size)} ${unit}`;
  }
  return `${bytes} B`;
}

/** Columns aligned by padding; numbers are the caller's to format. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => (row[column] ?? "").length)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
