/** The panel on a screen that understands what it writes: lines, the cursor up, everything below away. */
import { describe, expect, test } from "vitest";
import { cut, LivePanel, type Terminal } from "./live-panel.ts";

/** A terminal of endless height. */
class Screen implements Terminal {
  readonly columns: number;
  readonly rows: number;
  readonly lines: string[] = [""];
  writes = 0;
  #row = 0;

  constructor(columns = 40, rows = 10) {
    this.columns = columns;
    this.rows = rows;
  }
  write(text: string): void {
    this.writes++;
    // eslint-disable-next-line no-control-regex
    for (const piece of text.match(/\u001B\[\d*[A-Z]|\r|\n|[^\u001B\r\n]+/g) ?? []) {
      if (piece === "\n") {
        this.#row++;
        this.lines[this.#row] ??= "";
      } else if (piece.endsWith("A") && piece.startsWith("\u001b")) this.#row -= Number(piece.slice(2, -1));
      else if (piece === "\u001b[J") this.lines.splice(this.#row, Infinity, "");
      else if (piece !== "\r") this.lines[this.#row] += piece;
    }
  }
  get text(): string {
    return this.lines.join("\n");
  }
}

describe("a live panel", () => {
  test("is drawn in place, and notes stay above it", () => {
    const screen = new Screen();
    const panel = new LivePanel(screen, { intervalMs: 0 });
    panel.update(() => ["step 1", "loss 3"]);
    panel.log("saved");
    panel.update(() => ["step 2", "loss 2", "layer 0"]);
    panel.log("evaluated");
    panel.update(() => ["step 3"]);
    expect(screen.text).toBe("saved\nevaluated\nstep 3\n");
    panel.stop();
    panel.log("done");
    expect(screen.text).toBe("saved\nevaluated\nstep 3\ndone\n");
  });
  test("draws a few times a second at most, and at its end what came last", () => {
    let now = 0;
    const screen = new Screen();
    const panel = new LivePanel(screen, { intervalMs: 200, now: () => now });
    for (let step = 1; step <= 1000; step++) {
      now++;
      panel.update(() => [`step ${step}`]);
    }
    expect(screen.writes).toBe(5);
    panel.stop();
    panel.stop();
    expect(screen.text).toBe("step 1000\n");
  });
  test("cuts lines to the width and to the height, so that it finds back to its first line", () => {
    const screen = new Screen(10, 4);
    const panel = new LivePanel(screen, { intervalMs: 0 });
    for (let i = 0; i < 3; i++) panel.update(() => Array.from({ length: 9 }, (_, line) => `${i}.${line} a long line`));
    expect(screen.lines).toEqual(["2.0 a lon", "2.1 a lon", "2.2 a lon", ""]);
  });
});

test("cutting counts characters, not escape sequences, and ends a color", () => {
  expect(cut("\u001b[31mabc\u001b[0mdef", 2)).toBe("\u001b[31mab\u001b[0m");
  expect(cut("\u001b[31mabc\u001b[0mdef", 5)).toBe("\u001b[31mabc\u001b[0mde");
  expect(cut("▁▂▃", 2)).toBe("▁▂");
  expect(cut("abc", 3)).toBe("abc");
  expect(cut("", 3)).toBe("");
});
