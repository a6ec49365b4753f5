/**
 * TensorBoard's event files, for who has it open anyway (`moe train --tensorboard`): scalars of every step, histograms of expert loads, means of
 * similarity. A file is a sequence of TFRecords (length, masked CRC-32C of it, an Event in protocol buffers, masked CRC-32C of that). Only the
 * five message types that scalars and histograms need are written; field numbers are those of tensorflow/core/util/event.proto and
 * tensorflow/core/framework/summary.proto.
 */
import { appendFileSync, mkdirSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { systemError } from "../util/files.ts";
import { asArray, asCount, asObject, asText, eachNumber } from "./record.ts";

/** CRC-32C (Castagnoli, RFC 3720 appendix B.4), reflected polynomial 0x82f63b78. */
const crcTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc >>> 0;
});
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crcTable[(crc ^ byte) & 255] ?? 0) ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
/** As TFRecord stores it, so that a checksum of data that holds checksums is no trivial one. */
export function maskedCrc(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** One record of a TFRecord file. */
export function tfRecord(data: Uint8Array): Buffer {
  const record = Buffer.alloc(12 + data.length + 4);
  record.writeBigUInt64LE(BigInt(data.length), 0);
  record.writeUInt32LE(maskedCrc(record.subarray(0, 8)), 8);
  record.set(data, 12);
  record.writeUInt32LE(maskedCrc(data), 12 + data.length);
  return record;
}

/** Protocol buffers: fields one behind the other. */
class Message {
  readonly #parts: Buffer[] = [];
  #varint(value: number): void {
    const bytes: number[] = [];
    let rest = BigInt(value);
    do {
      const low = Number(rest & 127n);
      rest >>= 7n;
      bytes.push(rest > 0n ? low | 128 : low);
    } while (rest > 0n);
    this.#parts.push(Buffer.from(bytes));
  }
  integer(field: number, value: number): this {
    this.#varint(field << 3);
    this.#varint(value);
    return this;
  }
  double(field: number, value: number): this {
    this.#varint((field << 3) | 1);
    const bytes = Buffer.alloc(8);
    bytes.writeDoubleLE(value);
    this.#parts.push(bytes);
    return this;
  }
  float(field: number, value: number): this {
    this.#varint((field << 3) | 5);
    const bytes = Buffer.alloc(4);
    bytes.writeFloatLE(value);
    this.#parts.push(bytes);
    return this;
  }
  bytes(field: number, value: Uint8Array | string): this {
    const bytes = Buffer.from(value);
    this.#varint((field << 3) | 2);
    this.#varint(bytes.length);
    this.#parts.push(bytes);
    return this;
  }
  /** Repeated double, packed. */
  doubles(field: number, values: readonly number[]): this {
    const bytes = Buffer.alloc(8 * values.length);
    for (const [i, value] of values.entries()) bytes.writeDoubleLE(value, 8 * i);
    return this.bytes(field, bytes);
  }
  done(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

/** Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; }, Summary { repeated Value value = 1; } */
function event(wallTime: number, step: number, values: readonly Buffer[]): Buffer {
  const summary = new Message();
  for (const value of values) summary.bytes(1, value);
  return new Message().double(1, wallTime).integer(2, step).bytes(5, summary.done()).done();
}
/** Value { string tag = 1; float simple_value = 2; } */
function scalar(tag: string, value: number): Buffer {
  return new Message().bytes(1, tag).float(2, value).done();
}
/**
 * Value { string tag = 1; HistogramProto histo = 5; } with min 1, max 2, num 3, sum 4, sum_squares 5, bucket_limit 6, bucket 7: here a bucket an
 * expert, whose count is its load over the fair share.
 */
function loadHistogram(tag: string, load: readonly number[]): Buffer {
  const E = load.length;
  const weights = load.map((share) => share * E);
  const sum = (of: (weight: number, expert: number) => number): number => weights.reduce((total, weight, e) => total + of(weight, e), 0);
  const histogram = new Message()
    .double(1, 0)
    .double(2, E)
    .double(
      3,
      sum((weight) => weight),
    )
    .double(
      4,
      sum((weight, e) => weight * (e + 0.5)),
    )
    .double(
      5,
      sum((weight, e) => weight * (e + 0.5) ** 2),
    )
    .doubles(
      6,
      load.map((_, e) => e + 1),
    )
    .doubles(7, weights);
  return new Message().bytes(1, tag).bytes(5, histogram.done()).done();
}

/** Writes the records of a run's `metrics.jsonl` (docs/metrics.md) as events; each is in the file when `add` returns. */
export class TensorBoardWriter {
  readonly path: string;
  readonly #now: () => number;

  /** Makes the folder where there is none. Throws `file` or `resource` where it cannot. */
  constructor(folder: string, now: () => number = () => Date.now() / 1000) {
    this.#now = now;
    this.path = join(folder, `events.out.tfevents.${Math.floor(now())}.${hostname().replaceAll(/[^\w.-]/g, "-")}.${process.pid}.moe`);
    try {
      mkdirSync(folder, { recursive: true });
    } catch (error) {
      throw systemError(folder, "a folder for event files", error);
    }
    this.#append(new Message().double(1, now()).bytes(3, "brain.Event:2").done());
  }

  /** A step, evaluation or similarity record; others are passed over. */
  add(record: Readonly<Record<string, unknown>>): void {
    const step = asCount(record["step"]);
    if (step === null) return;
    const values = valuesOf(record);
    if (values.length > 0) this.#append(event(this.#now(), step, values));
  }
  #append(data: Buffer): void {
    try {
      appendFileSync(this.path, tfRecord(data));
    } catch (error) {
      throw systemError(this.path, "an event file that can be appended to", error);
    }
  }
}

function valuesOf(record: Readonly<Record<string, unknown>>): Buffer[] {
  const values: Buffer[] = [];
  const numbers = (of: Readonly<Record<string, unknown>>, prefix: string): void => {
    eachNumber(of, (path, value) => {
      if (path !== "step" && path !== "layer") values.push(scalar(`${prefix}/${path.replaceAll(".", "/")}`, value));
    });
  };
  const layers = asArray(record["layers"])
    .map(asObject)
    .filter((layer) => layer !== null);
  switch (record["type"]) {
    case "step":
      numbers(record, "train");
      for (const layer of layers) {
        const name = `layer ${String(asCount(layer["layer"]) ?? 0).padStart(3, "0")}`;
        numbers(layer, name);
        const load = asArray(layer["load"]).filter((share) => typeof share === "number");
        if (load.length > 0) values.push(loadHistogram(`${name}/load`, load));
      }
      return values;
    case "evaluation":
      numbers(
        { loss: record["loss"], standardError: record["standardError"] },
        `evaluation/${asText(record["name"], 100) ?? "validation"}`,
      );
      return values;
    case "similarity":
      for (const layer of layers)
        for (const what of ["weights", "outputs"])
          numbers({ [what]: asObject(layer[what])?.["mean"] }, `similarity/layer ${String(asCount(layer["layer"]) ?? 0).padStart(3, "0")}`);
      return values;
    default:
      return values;
  }
}
