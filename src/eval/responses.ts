/**
 * What a model answered, kept as it comes: one JSON line for each request, appended at once, so that an interrupted evaluation
 * loses nothing that was finished. A line's key is a hash of all that the answer depends on (the model's weights, how they
 * are computed, the token ids of the request), so an answer is never taken for that of another model, prompt or setting.
 */
import { createHash } from "node:crypto";
import { closeSync, existsSync, ftruncateSync, mkdirSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import type { Decoder } from "../model/index.ts";
import { fileError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";

export class ResponseLog implements Disposable {
  readonly #known = new Map<string, unknown>();
  readonly #path: string | null;
  #fd: number | null = null;

  /**
   * `path` null: nothing is kept. With `resume` the lines of an earlier run are known; without, that run's file is set aside as
   * `<path>.old`. Throws `file` for a line that is not one of ours (but the last, which a killed run may have left half written).
   */
  constructor(path: string | null, { resume }: { resume: boolean }) {
    this.#path = path;
    if (path === null) return;
    try {
      mkdirSync(dirname(path), { recursive: true });
      if (existsSync(path) && !resume) renameSync(path, `${path}.old`);
      const length = existsSync(path) ? this.#read(path) : 0;
      this.#fd = openSync(path, existsSync(path) ? "r+" : "wx+");
      ftruncateSync(this.#fd, length);
      closeSync(this.#fd);
      this.#fd = openSync(path, "a");
    } catch (error) {
      throw systemError(path, "a file that answers can be kept in", error);
    }
  }
  /** Reads all whole lines and gives their length in bytes. */
  #read(path: string): number {
    const bytes = readFileSync(path);
    const length = bytes.lastIndexOf(10) + 1;
    const lines = bytes.subarray(0, length).toString("utf8").split("\n").slice(0, -1);
    for (const [index, line] of lines.entries()) {
      const { key, response } = parseLine(line) ?? {};
      if (typeof key !== "string")
        throw fileError(`${path}:${index + 1}`, "a kept answer (remove the file, or run without --resume)", "something else");
      this.#known.set(key, response);
    }
    return length;
  }
  get size(): number {
    return this.#known.size;
  }
  get(key: string): unknown {
    return this.#known.get(key);
  }
  has(key: string): boolean {
    return this.#known.has(key);
  }
  /** Keeps an answer. */
  add(key: string, task: string, docId: number, response: unknown): void {
    this.#known.set(key, response);
    if (this.#fd === null || this.#path === null) return;
    const line = Buffer.from(`${JSON.stringify({ key, task, doc_id: docId, response })}\n`);
    try {
      for (let done = 0; done < line.length;) done += writeSync(this.#fd, line, done);
    } catch (error) {
      throw systemError(this.#path, "to keep an answer", error);
    }
  }
  [Symbol.dispose](): void {
    if (this.#fd !== null) closeSync(this.#fd);
    this.#fd = null;
  }
}

function parseLine(line: string): { readonly key?: unknown; readonly response?: unknown } | null {
  try {
    return JSON.parse(line) as { key?: unknown } | null;
  } catch {
    return null;
  }
}

/** Elements at the beginning, middle and end of a parameter that go into the model's hash. */
const sampled = 256;

/**
 * A hash of a model: its configuration, how it is computed, and elements of every parameter (not all: reading 100 GB would take
 * minutes, and a training step moves them all).
 */
export function hashModel(model: Decoder): string {
  const { engine, config, dtype } = model;
  const hash = createHash("sha256").update(JSON.stringify([config, dtype, engine.backend.name]));
  for (const [name, tensor] of model.parameters) {
    engine.scope(() => {
      const flat = tensor.view(-1);
      const count = Math.min(sampled, flat.size);
      hash.update(name);
      for (const start of [0, Math.floor((flat.size - count) / 2), flat.size - count])
        hash.update(new Uint8Array(flat.rows(start, start + count).toFloat32Array().buffer));
    });
  }
  return hash.digest("hex");
}

/** Hash of a text, as samples carry it. */
export function hashText(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
