import { PassThrough } from "node:stream";
import { describe, expect, test } from "vitest";
import { formatBytes, formatCount, formatTable, Output } from "./output.ts";

/** An output whose streams are kept; `isTTY`: its log is a terminal. */
function captured({ json = false, isTTY = false } = {}): { output: Output; out: () => string; log: () => string } {
  const [out, log] = [new PassThrough(), new PassThrough()];
  // What cli-progress asks of a terminal, beside write.
  const terminal = Object.assign(log, { isTTY, columns: 100, cursorTo: () => true, clearLine: () => true, moveCursor: () => true });
  const text = (stream: PassThrough): string => {
    let all = "";
    for (let chunk = stream.read() as Buffer | null; chunk !== null; chunk = stream.read() as Buffer | null) all += chunk.toString();
    return all;
  };
  const output = new Output({ json, out, log: terminal as unknown as NodeJS.WriteStream });
  return { output, out: () => text(out), log: () => text(log) };
}

describe("streams", () => {
  test("the result is text, or with --json one object in one line, and nothing else is on standard output", () => {
    for (const json of [false, true]) {
      const { output, out, log } = captured({ json });
      output.log("a note");
      output.stream("piece ");
      output.progress("training", 2).update(2);
      output.result({ text: "two\nlines" }, "two\nlines");
      expect(out()).toBe(json ? '{"text":"two\\nlines"}\n' : "piece two\nlines\n");
      expect(log()).toMatch(/^a note\ntraining 2\/2 \n$/);
    }
  });
});

describe("progress", () => {
  test("without a terminal is some ten lines, with the first and the last", () => {
    const { output, log } = captured();
    const progress = output.progress("training", 1000);
    for (let step = 0; step <= 1000; step++) progress.update(step, `loss ${step}`);
    progress.stop();
    const lines = log().trimEnd().split("\n");
    expect(lines[0]).toBe("training 0/1000 loss 0");
    expect(lines.at(-1)).toBe("training 1000/1000 loss 1000");
    expect(lines).toHaveLength(11);
  });
  test("on a terminal is a bar, under which notes stand in lines of their own", () => {
    const { output, log } = captured({ isTTY: true });
    const signals = process.listenerCount("SIGINT");
    const progress = output.progress("training", 4);
    progress.update(2, "loss 3.1");
    output.log("saved");
    // A bar that took the interrupt for itself would keep a command from ending.
    expect(process.listenerCount("SIGINT")).toBe(signals);
    progress.stop();
    progress.stop();
    output.log("done");
    const text = log();
    expect(text).toContain("\nsaved\n");
    expect(text).toMatch(/2\/4 loss 3\.1/);
    expect(text.endsWith("\ndone\n")).toBe(true);
    expect(text.endsWith("\n\ndone\n")).toBe(false);
    // The cursor was never hidden.
    expect(text).not.toContain("\u001b[?25l");
  });
});

describe("formats", () => {
  test("counts and bytes have three digits, without an exponent at the borders of units", () => {
    expect([0, 999, 1000, 1_234_567, 999_999, 146_000_000_000].map(formatCount)).toEqual([
      "0",
      "999",
      "1.00 k",
      "1.23 M",
      "1000 k",
      "146 B",
    ]);
    const bytes = [0, 1023, 1024, 1020 * 1024, 1.5 * 2 ** 30, 2 ** 40].map(formatBytes);
    expect(bytes).toEqual(["0 B", "1023 B", "1.00 KiB", "1020 KiB", "1.50 GiB", "1.00 TiB"]);
  });
  test("a table has aligned columns and no white space at the ends of lines", () => {
    const table = formatTable([
      ["model", "loss"],
      ["mixture of experts", "4.1"],
      ["dense", ""],
    ]);
    expect(table).toBe(["model               loss", "mixture of experts  4.1", "dense"].join("\n"));
    expect(formatTable([])).toBe("");
  });
});
