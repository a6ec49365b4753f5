import { appendFileSync, mkdtempSync, realpathSync, renameSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { LineTail } from "./line-tail.ts";

let folder = "";
beforeEach(() => {
  folder = realpathSync(mkdtempSync(join(tmpdir(), "moe-tail-")));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});
const path = (): string => join(folder, "a.jsonl");
const texts = (tail: LineTail, bytes = 1 << 20): string[] => tail.read(bytes).lines.map(({ text }) => text);

describe("the tail of a file", () => {
  test("gives whole lines as they come, and holds back one that has no end yet", () => {
    const tail = new LineTail(folder, "a.jsonl");
    expect(texts(tail)).toEqual([]);
    writeFileSync(path(), "one\ntw");
    expect(texts(tail)).toEqual(["one"]);
    expect(texts(tail)).toEqual([]);
    appendFileSync(path(), "o\n\nthree");
    expect(texts(tail)).toEqual(["two", ""]);
    appendFileSync(path(), "\n");
    expect(texts(tail)).toEqual(["three"]);
  });

  test("gives the same lines, with where they are, however the file grows and is cut into readings", () => {
    fc.assert(
      fc.property(
        fc.array(fc.string({ unit: fc.constantFrom("a", "ü", "中", " ", "{") }), { maxLength: 12 }),
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 7 }),
        (lines, written, read) => {
          rmSync(path(), { force: true });
          const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(""));
          const tail = new LineTail(folder, "a.jsonl");
          const found: string[] = [];
          const take = (): void => {
            for (let more = true; more;) {
              const reading = tail.read(read);
              for (const line of reading.lines) {
                found.push(line.text);
                expect(bytes.toString("utf8", line.offset, line.offset + line.length)).toBe(line.text);
                expect(tail.reread(line)).toBe(line.text);
              }
              ({ more } = reading);
            }
          };
          for (let at = 0; at < bytes.length; at += written) {
            appendFileSync(path(), bytes.subarray(at, at + written));
            take();
          }
          expect(found).toEqual(lines);
        },
      ),
      { numRuns: 60 },
    );
  });

  test("begins anew when the file is another one or was cut, and says so", () => {
    const tail = new LineTail(folder, "a.jsonl");
    writeFileSync(path(), "one\ntwo\n");
    const [line] = tail.read(100).lines;
    writeFileSync(join(folder, "b"), "other\n");
    renameSync(join(folder, "b"), path());
    expect(line === undefined ? "" : tail.reread(line)).toBeNull();
    expect(tail.read(100)).toMatchObject({ restarted: true, lines: [{ text: "other", offset: 0 }] });
    truncateSync(path(), 0);
    expect(tail.read(100)).toMatchObject({ restarted: true, lines: [] });
    rmSync(path());
    expect(tail.read(100)).toMatchObject({ restarted: true, lines: [] });
    expect(tail.read(100)).toMatchObject({ restarted: false, lines: [] });
  });

  test("passes over a line that is too long, counts it, and goes on behind it", () => {
    const tail = new LineTail(folder, "a.jsonl", { maxLineBytes: 10 });
    writeFileSync(path(), `short\n${"x".repeat(40)}\nafter\n`);
    const found: string[] = [];
    let numTooLong = 0;
    for (let more = true; more;) {
      const reading = tail.read(4);
      found.push(...reading.lines.map(({ text }) => text));
      numTooLong += reading.numTooLong;
      ({ more } = reading);
    }
    expect([found, numTooLong]).toEqual([["short", "after"], 1]);
  });

  test("does not follow a link out of the folder", () => {
    const outside = join(tmpdir(), `moe-outside-${process.pid}`);
    writeFileSync(outside, "secret\n");
    symlinkSync(outside, path());
    expect(texts(new LineTail(folder, "a.jsonl"))).toEqual([]);
    rmSync(outside);
  });
});
