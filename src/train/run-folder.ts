/**
 * The folder of a run: where it starts or continues, its configuration, and its metrics file. Checkpoints have a file of
 * their own (`checkpoint.ts`).
 */
import { appendFileSync, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { parseRunConfig, type RunConfig } from "../config/run.ts";
import { fileError, MoeError } from "../util/errors.ts";
import { removeTemporaries, systemError, writeFileAtomically } from "../util/files.ts";
import { listCheckpoints } from "./checkpoint.ts";

/** Makes the run folder where there is none. Throws `resource`, `file`. */
export function makeRunFolder(runFolder: string): void {
  try {
    mkdirSync(join(runFolder, "checkpoints"), { recursive: true });
  } catch (error) {
    throw systemError(runFolder, "a folder for the run", error);
  }
}

/**
 * Tidies a run folder that this process has locked and returns the checkpoint to resume from, or null for a fresh start.
 * Throws `configuration` for a folder that has a run when `resume` is false.
 */
export function openRunFolder(runFolder: string, resume: boolean): string | null {
  const newest = listCheckpoints(runFolder).at(-1) ?? null;
  if (newest !== null && !resume) {
    throw new MoeError(
      "configuration",
      `${runFolder}: expected a new run folder, got one with checkpoints; resume it (--resume) or choose another`,
    );
  }
  try {
    removeTemporaries(join(runFolder, "checkpoints"));
    removeTemporaries(runFolder);
    if (newest === null) for (const name of Object.values(recordFiles)) rmSync(join(runFolder, name), { force: true });
  } catch (error) {
    throw systemError(runFolder, "a folder for the run", error);
  }
  return newest;
}

export function writeRunConfig(runFolder: string, config: RunConfig): void {
  writeFileAtomically(join(runFolder, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
}

/** Configuration of an existing run. Throws `file` where there is none, `configuration` where it is not one. */
export function readRunConfig(runFolder: string): RunConfig {
  const path = join(runFolder, "config.json");
  if (!existsSync(path)) throw fileError(path, "the configuration of a run", "no such file");
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw fileError(path, "JSON", "text that does not parse", error);
  }
  return parseRunConfig(json, path);
}

/** Fields whose values differ, `a.b: 1 -> 2`, for the warning when a run goes on under another configuration. */
export function changedFields(before: unknown, after: unknown, path = ""): string[] {
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === "object" && value !== null && !Array.isArray(value);
  if (!isObject(before) || !isObject(after)) {
    const [from, to] = [JSON.stringify(before) ?? "absent", JSON.stringify(after) ?? "absent"];
    return from === to ? [] : [`${path}: ${from} -> ${to}`];
  }
  return [...new Set([...Object.keys(before), ...Object.keys(after)])].flatMap((key) =>
    changedFields(before[key], after[key], path === "" ? key : `${path}.${key}`),
  );
}

/** Files of one JSON object a line, each with a `step`. */
const recordFiles = { metrics: "metrics.jsonl", samples: "samples.jsonl" } as const;
export type RecordFile = keyof typeof recordFiles;

/** One more line of `metrics.jsonl` or `samples.jsonl`. Throws `resource` on a full disk. */
export function appendRecord(runFolder: string, file: RecordFile, record: object): void {
  const path = join(runFolder, recordFiles[file]);
  try {
    appendFileSync(path, `${JSON.stringify(record)}\n`);
  } catch (error) {
    throw systemError(path, `a ${file} file that can be appended to`, error);
  }
}

/** Drops the records of steps after the checkpoint at `step`, which will be made again, and a torn last line. */
export function truncateRecords(runFolder: string, step: number): void {
  for (const name of Object.values(recordFiles)) {
    const path = join(runFolder, name);
    if (!existsSync(path)) continue;
    const kept = readFileSync(path, "utf8")
      .split("\n")
      .filter((line) => {
        try {
          return (JSON.parse(line) as { step: number }).step <= step;
        } catch {
          return false;
        }
      });
    writeFileAtomically(path, kept.map((line) => `${line}\n`).join(""));
  }
}

/** The receipt of upcycling goes where the run is, so that a run says by itself where it came from. */
export function keepReceipt(runFolder: string, modelFolder: string): void {
  const receipt = join(modelFolder, "upcycling.json");
  if (existsSync(receipt)) writeFileAtomically(join(runFolder, "upcycling.json"), readFileSync(receipt));
}
