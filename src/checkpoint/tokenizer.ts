/** Tokenizers as they come with models: in a folder (`tokenizer.json`, else `tokenizer.model`) or inside a GGUF file. */
import { copyFileSync, existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { loadGgufTokenizer } from "../tokenizer/gguf.ts";
import { loadHuggingFaceTokenizer } from "../tokenizer/huggingface.ts";
import { toHuggingFaceFiles } from "../tokenizer/save.ts";
import { loadSentencePieceTokenizer } from "../tokenizer/sentencepiece.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { fileError } from "../util/errors.ts";
import { systemError, writeFileAtomically } from "../util/files.ts";
import { openGguf } from "./gguf.ts";
import { resolveModelPath } from "./model-path.ts";

/** Files of a tokenizer that travel with a model. */
export const tokenizerFiles = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "tokenizer.model",
  "chat_template.jinja",
] as const;

/** The tokenizer of a model folder, a GGUF file, or a `tokenizer.model`. Throws `file` where there is none. */
export async function loadTokenizer(path: string): Promise<Tokenizer> {
  if (path.endsWith(".model") && existsSync(path)) return loadSentencePieceTokenizer(path);
  const found = resolveModelPath(path);
  if (found.format === "gguf") {
    using gguf = openGguf(found.file);
    return loadGgufTokenizer(gguf.metadata, found.file);
  }
  if (existsSync(join(path, "tokenizer.json"))) return loadHuggingFaceTokenizer(path);
  const model = join(path, "tokenizer.model");
  if (existsSync(model)) return loadSentencePieceTokenizer(model);
  throw fileError(path, "a tokenizer.json or tokenizer.model", "a folder with neither");
}

/**
 * Puts a model's tokenizer into a folder: its files as they are where `from` is a folder that has them, otherwise
 * (GGUF) in Hugging Face form.
 */
export function copyTokenizer(from: string, folder: string, tokenizer: Tokenizer): void {
  try {
    mkdirSync(folder, { recursive: true });
    const present = tokenizerFiles.filter((name) => existsSync(join(from, name)));
    for (const name of present) copyFileSync(join(from, name), join(folder, name));
    if (present.length > 0) return;
  } catch (error) {
    throw systemError(folder, "a folder to write the tokenizer to", error);
  }
  const { tokenizerJson, tokenizerConfig } = toHuggingFaceFiles(tokenizer);
  writeTokenizerFiles({ tokenizerJson, tokenizerConfig }, folder);
}

/** Writes `tokenizer.json` and `tokenizer_config.json`. */
export function writeTokenizerFiles(files: { readonly tokenizerJson: unknown; readonly tokenizerConfig: unknown }, folder: string): void {
  writeFileAtomically(join(folder, "tokenizer.json"), `${JSON.stringify(files.tokenizerJson, null, 1)}\n`);
  writeFileAtomically(join(folder, "tokenizer_config.json"), `${JSON.stringify(files.tokenizerConfig, null, 1)}\n`);
}
