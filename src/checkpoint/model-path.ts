/**
 * Which kind of model a path names: a folder in Hugging Face form, or a GGUF file. A folder that holds one `.gguf` and no
 * safetensors (what `moe pull` leaves of a repository that has nothing else) names that file.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";
import { INDEX_FILE, SINGLE_FILE } from "./model-weights.ts";

export type ModelPath = { readonly format: "gguf"; readonly file: string } | { readonly format: "folder"; readonly folder: string };

/**
 * Looks at `path` (nothing is opened). Throws `file` for a path that does not exist, and for a folder with several GGUF
 * files and no safetensors, since each of them is a model of its own.
 */
export function resolveModelPath(path: string): ModelPath {
  const expected = "a folder with config.json and safetensors, or a GGUF file";
  try {
    const stat = statSync(path, { throwIfNoEntry: false });
    if (stat === undefined) throw fileError(path, expected, "nothing of that name");
    if (!stat.isDirectory()) return { format: "gguf", file: path };
    if ([SINGLE_FILE, INDEX_FILE].some((name) => existsSync(join(path, name)))) return { format: "folder", folder: path };
    const [file, ...more] = readdirSync(path)
      .filter((name) => name.endsWith(".gguf"))
      .toSorted();
    if (more.length > 0)
      throw fileError(path, expected, `a folder with ${more.length + 1} GGUF files; name one of them, such as ${join(path, file ?? "")}`);
    return file === undefined ? { format: "folder", folder: path } : { format: "gguf", file: join(path, file) };
  } catch (error) {
    throw systemError(path, expected, error);
  }
}
