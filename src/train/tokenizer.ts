/** A run's tokenizer: one that exists, or (`newTokenizer`) a byte-level BPE learned from the training text, once. */
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { writeTokenizerFiles } from "../checkpoint/tokenizer.ts";
import type { RunConfig } from "../config/run.ts";
import { readDocuments } from "../data/index.ts";
import { trainByteBpe } from "../tokenizer/train.ts";
import { MoeError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";
import { asDocumentSource } from "./run-data.ts";

const eosToken = "<|endoftext|>";
/** Characters that a new tokenizer is learned from, from the beginning of the text. */
const maxCharacters = 20_000_000;

/**
 * Where the run's tokenizer is: `tokenizer`, the model's own, the run folder's for a new one, which is made when missing; or,
 * when a resumed run's is gone, the copy in its checkpoint. Throws `configuration` where none is named.
 */
export async function runTokenizer(config: RunConfig, runFolder: string, checkpoint: string | null): Promise<string> {
  const { tokenizer, model, newTokenizer } = config;
  if (newTokenizer !== undefined) {
    const folder = join(runFolder, "tokenizer");
    if (checkpoint === null) await learnTokenizer(config, newTokenizer.vocabSize, folder);
    return checkpoint === null || existsSync(folder) ? folder : checkpoint;
  }
  const path = tokenizer ?? model.from;
  if (path !== undefined && (checkpoint === null || existsSync(path))) return path;
  if (checkpoint !== null) return checkpoint;
  const ways = "the folder of one (tokenizer) or newTokenizer, which learns one from the text";
  throw new MoeError("configuration", `run configuration: a new model (model.config) needs a tokenizer: ${ways}`);
}

async function learnTokenizer({ data }: RunConfig, vocabSize: number, folder: string): Promise<void> {
  const texts: string[] = [];
  let characters = 0;
  const take = (text: string): void => {
    texts.push(text.slice(0, maxCharacters - characters));
    characters += text.length;
  };
  for (const source of data.train) {
    if (characters >= maxCharacters) break;
    for await (const document of readDocuments(asDocumentSource(source))) {
      if ("text" in document) take(document.text);
      else for (const { content } of document.messages) take(content);
      if (characters >= maxCharacters) break;
    }
  }
  try {
    mkdirSync(folder, { recursive: true });
  } catch (error) {
    throw systemError(folder, "a folder for the tokenizer", error);
  }
  writeTokenizerFiles(trainByteBpe(texts, { vocabSize, specialTokens: [eosToken], eosToken }), folder);
}
