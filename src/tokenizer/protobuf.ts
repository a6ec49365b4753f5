/**
 * A bounded reader of the protobuf wire format (varint, 64-bit, length-delimited, 32-bit fields), as much as a
 * SentencePiece model needs. It does not know schemas: a message is the list of its fields. Groups, which no schema here
 * uses, are refused. Every length is checked against the bytes that are left.
 */

import { fileError } from "../util/errors.ts";

export interface Field {
  readonly number: number;
  /** Varints (as far as exact in a double) and fixed32 bits as numbers, the rest as bytes. */
  readonly value: number | Uint8Array;
}

/** All fields of the message `bytes`, in order. `at` names it in errors. */
export function readFields(bytes: Uint8Array, at: string): Field[] {
  const fields: Field[] = [];
  let position = 0;
  const take = (length: number): Uint8Array => {
    if (length > bytes.length - position) throw fileError(at, `${length} bytes at offset ${position}`, `${bytes.length - position}`);
    position += length;
    return bytes.subarray(position - length, position);
  };
  const varint = (): number => {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      const byte = take(1)[0] as number;
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
    throw fileError(at, "a varint of at most 10 bytes", `a longer one before offset ${position}`);
  };
  while (position < bytes.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    if (number < 1 || number > 0x1fffffff) throw fileError(at, "a field number", `${number} before offset ${position}`);
    switch (tag % 8) {
      case 0:
        fields.push({ number, value: varint() });
        break;
      case 1:
        fields.push({ number, value: take(8) });
        break;
      case 2:
        fields.push({ number, value: take(varint()) });
        break;
      case 5: {
        const [a, b, c, d] = take(4) as unknown as [number, number, number, number];
        fields.push({ number, value: (a | (b << 8) | (c << 16) | (d << 24)) >>> 0 });
        break;
      }
      default:
        throw fileError(at, "wire type 0, 1, 2 or 5", `${tag % 8} before offset ${position}`);
    }
  }
  return fields;
}

/** The last value of a field, as the format demands of repeated scalars; undefined when absent. */
export function lastField(fields: readonly Field[], number: number): number | Uint8Array | undefined {
  return fields.findLast((field) => field.number === number)?.value;
}

/** A number field, or `missing`. */
export function numberField(fields: readonly Field[], number: number, missing: number, at: string): number {
  const value = lastField(fields, number) ?? missing;
  if (typeof value !== "number") throw fileError(at, `a number in field ${number}`, `${value.length} bytes`);
  return value;
}

/** An int32 field, whose negative values are written as 64-bit varints. */
export function int32Field(fields: readonly Field[], number: number, missing: number, at: string): number {
  const value = numberField(fields, number, missing, at);
  return value >= 2 ** 63 ? -1 : value;
}

/** A bytes field, or empty. */
export function bytesField(fields: readonly Field[], number: number, at: string): Uint8Array {
  const value = lastField(fields, number) ?? new Uint8Array(0);
  if (typeof value === "number") throw fileError(at, `bytes in field ${number}`, `the number ${value}`);
  return value;
}

/** A string field, or `missing`. Invalid UTF-8 is an error. */
export function stringField(fields: readonly Field[], number: number, missing: string, at: string): string {
  if (lastField(fields, number) === undefined) return missing;
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytesField(fields, number, at));
  } catch (cause) {
    throw fileError(at, `UTF-8 in field ${number}`, "other bytes", cause);
  }
}

/** The float whose bits a fixed32 field holds. */
export function floatOfBits(bits: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, bits);
  return view.getFloat32(0);
}
