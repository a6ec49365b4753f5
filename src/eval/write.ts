/** An evaluation as files: `results_<time>.json`, and `samples_<task>_<time>.jsonl` for each task whose samples are there. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { systemError, writeFileAtomically } from "../util/files.ts";
import { plainName, type Evaluation } from "./evaluate.ts";

/** Writes the files into `folder` and gives their paths, the results first. */
export function writeEvaluation(folder: string, { results, samples }: Evaluation): readonly string[] {
  try {
    mkdirSync(folder, { recursive: true });
  } catch (error) {
    throw systemError(folder, "a folder for the results", error);
  }
  const time = new Date(results.date * 1000).toISOString().replaceAll(":", "-").replace("Z", "");
  const paths = [join(folder, `results_${time}.json`)];
  writeFileAtomically(paths[0] ?? "", `${JSON.stringify(results, null, 2)}\n`);
  for (const [task, records] of samples) {
    const path = join(folder, `samples_${plainName(task)}_${time}.jsonl`);
    writeFileAtomically(path, records.map((record) => `${JSON.stringify(record)}\n`).join(""));
    paths.push(path);
  }
  return paths;
}
