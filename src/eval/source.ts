/**
 * Finds the files of a data set's split, in a local folder of any of the usual layouts (the authors' archives, the Hub's
 * Parquet files, plain `name-split.jsonl`), and reads them into documents. Without a folder, files come from the Hub (hub-data.ts)
 * into one. Broken rows are errors that name file and line, or are skipped and counted where the caller asks for it.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileError, MoeError } from "../util/errors.ts";
import { fetchDataset } from "./hub-data.ts";
import { readRows, rowFileEndings } from "./rows.ts";
import type { DatasetSpec, Doc, Task } from "./task.ts";

export interface SourceOptions {
  /** Folder with the data. Null: the Hub. */
  readonly data: string | null;
  /** Where files from the Hub are kept. */
  readonly downloads: string;
  readonly skipBroken: boolean;
}

export interface LoadedDocs {
  readonly docs: readonly Doc[];
  readonly numBroken: number;
  readonly files: readonly string[];
}

/** Names without endings, relative to the folder, that the split's file may have, best first. */
export function splitStems({ names, subset, single }: DatasetSpec, split: string): readonly string[] {
  const splits = split === "val" ? ["val", "validation"] : [split];
  const folders = [...names.map((name) => `${name}/`), ""];
  const stems: string[] = [];
  for (const s of splits) {
    if (subset !== null)
      for (const f of folders)
        stems.push(`${f}${s}/${subset}`, `${f}${subset}/${s}`, `${f}${s}/${subset}_${s}`, `${f}${subset}_${s}`, `${f}${subset}-${s}`);
    if (subset !== null) stems.push(...names.map((n) => `${n}-${subset}-${s}`));
    if (subset !== null && single !== true) continue;
    for (const f of folders) stems.push(`${f}${s}`);
    for (const n of names) stems.push(`${n}-${s}`, `${n}_${s}`, `${n}/${n}-${s}`);
    if (s === "test") stems.push(...names, ...names.map((n) => `${n}/${n}`));
  }
  return stems;
}

/** Whether a path (relative, with `/`) is a file of the stem, or a part of one. */
export function belongsToStem(path: string, stem: string): boolean {
  if (!path.startsWith(stem)) return false;
  const rest = path.slice(stem.length);
  return rowFileEndings.includes(rest) || /^-\d{5}-of-\d{5}\.parquet$/.test(rest) || /^\/\d{4,5}\.parquet$/.test(rest);
}

/** Files of a split under a folder, in order; empty where there are none. */
export function findSplit(folder: string, spec: DatasetSpec, split: string): readonly string[] {
  for (const stem of splitStems(spec, split)) {
    const plain = rowFileEndings.map((ending) => join(folder, stem + ending)).find((path) => isFile(path));
    if (plain !== undefined) return [plain];
    const parent = join(folder, dirname(stem));
    const parts = [...listed(parent), ...listed(join(folder, stem)).map((name) => `${basename(stem)}/${name}`)]
      .filter((name) => belongsToStem(name, basename(stem)))
      .toSorted();
    if (parts.length > 0) return parts.map((name) => join(parent, name));
  }
  return [];
}

function isFile(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isFile() === true;
}
function listed(folder: string): readonly string[] {
  return statSync(folder, { throwIfNoEntry: false })?.isDirectory() === true ? readdirSync(folder) : [];
}

/** The documents of a split. Throws `file` where there are none, and for the first broken row unless `skipBroken`. */
export async function loadDocs(task: Task, split: string, options: SourceOptions): Promise<LoadedDocs> {
  const files = await filesOf(task, split, options);
  const docs: Doc[] = [];
  let numBroken = 0;
  for (const file of files) {
    for (const item of await readRows(file, task.dataset.columns)) {
      const parsed = "row" in item ? task.parse(item.row) : item.problem;
      if (typeof parsed !== "string") docs.push(parsed);
      else if (options.skipBroken) numBroken++;
      else throw new MoeError("file", `${item.where}: expected ${parsed}; --skip-broken leaves such rows out`);
    }
  }
  if (docs.length === 0) throw fileError(files.join(", "), `rows of ${task.name}`, numBroken > 0 ? `${numBroken} broken ones` : "none");
  return { docs, numBroken, files };
}

async function filesOf(task: Task, split: string, { data, downloads }: SourceOptions): Promise<readonly string[]> {
  const { dataset } = task;
  // A file that is named is read as it is.
  if (dataset.names.length === 0) return [dataset.path];
  if (data !== null) {
    if (!existsSync(data)) throw fileError(data, "a folder with evaluation data", "nothing of that name");
    const files = findSplit(data, dataset, split);
    if (files.length > 0) return files;
    const example = splitStems(dataset, split)[0] ?? "";
    throw fileError(data, `the ${split} split of ${task.name}, such as ${example}.jsonl (or .csv, .parquet)`, "none of that name");
  }
  const known = findSplit(downloads, dataset, split);
  if (known.length > 0) return known;
  const folder = join(downloads, dataset.names[0] ?? "");
  await fetchDataset(dataset.path, folder, (path) => splitStems(dataset, split).some((stem) => belongsToStem(path, stem)));
  const files = findSplit(downloads, dataset, split);
  if (files.length > 0) return files;
  throw fileError(dataset.path, `the ${split} split of ${task.name} on the Hub`, "none in a form that can be read; give --data <folder>");
}

/** All tasks whose data a folder has. */
export function hasData(task: Task, data: string): boolean {
  return task.dataset.names.length === 0 || findSplit(data, task.dataset, task.dataset.split).length > 0;
}
