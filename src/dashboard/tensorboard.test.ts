/** Event files, byte by byte and by TensorBoard itself. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { crc32c, maskedCrc, TensorBoardWriter, tfRecord } from "./tensorboard.ts";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-tensorboard-"));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

const python = process.env["MOE_PYTHON"] ?? "";
const hasTensorBoard =
  python !== "" &&
  spawnSync(python, ["-c", "import tensorboard.backend.event_processing.event_accumulator"], { timeout: 60_000 }).status === 0;

test("the checksum is that of RFC 3720, appendix B.4, masked as TFRecord does", () => {
  expect(crc32c(new Uint8Array(32))).toBe(0x8a9136aa);
  expect(crc32c(new Uint8Array(32).fill(0xff))).toBe(0x62a8ab43);
  expect(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i))).toBe(0x46dd794e);
  expect(maskedCrc(new Uint8Array(32))).toBe((((0x8a9136aa >>> 15) | (0x8a9136aa << 17)) + 0xa282ead8) >>> 0);
});
test("a record is length, checksum, data, checksum", () => {
  const record = tfRecord(Buffer.from("abc"));
  expect([record.length, record.readBigUInt64LE(0), record.subarray(12, 15).toString()]).toEqual([19, 3n, "abc"]);
  expect(record.readUInt32LE(15)).toBe(maskedCrc(Buffer.from("abc")));
});

const records = [
  { type: "similarity", step: 0, layers: [{ layer: 1, weights: { mean: 0.5 }, outputs: { mean: 0.25 } }] },
  ...[1, 2, 300].map((step) => ({
    type: "step",
    step,
    loss: 4 / step,
    mfu: null,
    traffic: { tp: { bytes: 7 } },
    layers: [{ layer: 1, dropRate: 0.1, switchLoss: null, load: [0.75, 0.25] }],
  })),
  { type: "evaluation", step: 300, name: "held", loss: 2.5, standardError: 0.5 },
  { type: "later", step: 5 },
  { loss: 3 },
];

test.skipIf(!hasTensorBoard)(
  `TensorBoard reads every scalar and histogram back${hasTensorBoard ? "" : " (skipped: MOE_PYTHON names no Python with tensorboard)"}`,
  { timeout: 120_000 },
  () => {
    const writer = new TensorBoardWriter(folder, () => 1000);
    for (const record of records) writer.add(record);
    const script = `
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"histograms": 0, "scalars": 0}).Reload()
tags = events.Tags()
h = events.Histograms("layer 001/load")[0].histogram_value
print(json.dumps({
  "scalars": {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]},
  "histogram": [h.min, h.max, h.num, list(h.bucket_limit), list(h.bucket)],
  "version": events.file_version,
}))`;
    const result = spawnSync(python, ["-c", script, folder], { encoding: "utf8", timeout: 100_000 });
    expect(result.stderr.includes("Error"), result.stderr).toBe(false);
    expect(JSON.parse(result.stdout)).toEqual({
      scalars: {
        "similarity/layer 001/weights": [[0, 0.5]],
        "similarity/layer 001/outputs": [[0, 0.25]],
        "train/loss": [
          [1, 4],
          [2, 2],
          [300, Math.fround(4 / 300)],
        ],
        "train/traffic/tp/bytes": [1, 2, 300].map((step) => [step, 7]),
        "layer 001/dropRate": [1, 2, 300].map((step) => [step, Math.fround(0.1)]),
        "evaluation/held/loss": [[300, 2.5]],
        "evaluation/held/standardError": [[300, 0.5]],
      },
      histogram: [0, 2, 2, [1, 2], [1.5, 0.5]],
      version: 2,
    });
  },
);

describe("the writer", () => {
  test("appends whole records at once: what is there can be read at any time", () => {
    const writer = new TensorBoardWriter(join(folder, "sub"), () => 5);
    const sizes = records.map((record) => {
      writer.add(record);
      return wholeRecords(readFileSync(writer.path));
    });
    // The version, then one event for each record that has numbers.
    expect(sizes).toEqual([2, 3, 4, 5, 6, 6, 6]);
  });
  test("names the folder that it cannot make", () => {
    writeFileSync(join(folder, "file"), "");
    expect(() => new TensorBoardWriter(join(folder, "file", "x"))).toThrow(/file\/x: expected a folder for event files/);
  });
});

/** Number of TFRecords that fill the bytes exactly, checksums checked. */
function wholeRecords(bytes: Buffer): number {
  let [at, count] = [0, 0];
  for (; at < bytes.length; count++) {
    const length = Number(bytes.readBigUInt64LE(at));
    expect(bytes.readUInt32LE(at + 8)).toBe(maskedCrc(bytes.subarray(at, at + 8)));
    const data = bytes.subarray(at + 12, at + 12 + length);
    expect(bytes.readUInt32LE(at + 12 + length)).toBe(maskedCrc(data));
    at += 16 + length;
  }
  expect(at).toBe(bytes.length);
  return count;
}
