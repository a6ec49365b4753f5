/**
 * The data of a run: sources to token files (made once, in the run folder or a shared cache) to data sets, and the
 * fingerprints that say when they are no longer the same.
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Backend } from "../backend/backend.ts";
import { tokenizerFiles } from "../checkpoint/tokenizer.ts";
import type { DataSourceConfig, RunConfig } from "../config/run.ts";
import {
  Dataset,
  prepareTokens,
  type ChatMessage,
  type DocumentSource,
  type EncodedConversation,
  type FileMapper,
  type TokenFile,
  type TokenizeProgress,
} from "../data/index.ts";
import { chatTokens } from "../tokenizer/chat.ts";
import { toHuggingFaceFiles } from "../tokenizer/save.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";

export interface RunDataOptions {
  readonly config: RunConfig;
  readonly runFolder: string;
  readonly backend: Backend;
  readonly tokenizer: Tokenizer;
  /** Where the tokenizer was loaded from. */
  readonly tokenizerPath: string;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress: (progress: TokenizeProgress) => void;
}

/** Training and validation sets, open until disposed. */
export class RunData implements Disposable {
  readonly train: Dataset;
  readonly validation: ReadonlyMap<string, Dataset>;
  /** Changes with anything that changes the sequences or their order. */
  readonly fingerprint: string;
  readonly #files: readonly TokenFile[];

  constructor(train: Dataset, validation: ReadonlyMap<string, Dataset>, files: readonly TokenFile[], config: RunConfig) {
    this.train = train;
    this.validation = validation;
    this.#files = files;
    const { seed, data } = config;
    const order = JSON.stringify([train.file.header.fingerprint, data.sequenceLength, data.documentMask, seed]);
    this.fingerprint = createHash("sha256").update(order).digest("hex");
  }
  [Symbol.dispose](): void {
    for (const file of this.#files) file[Symbol.dispose]();
  }
}

/** Opens the data of a run, tokenizing what is not yet. The caller disposes it. Throws `file`, `configuration`, `resource`. */
export async function prepareData(options: RunDataOptions): Promise<RunData> {
  const { config, runFolder, backend, tokenizer, tokenizerPath, signal, onProgress } = options;
  const folder = config.data.cacheDir ?? join(runFolder, "tokens");
  const fingerprint = tokenizerFingerprint(tokenizerPath, tokenizer);
  const files: TokenFile[] = [];
  const open = async (name: string, field: string, sources: readonly DataSourceConfig[], shuffle: boolean): Promise<Dataset> => {
    const file = await prepareTokens(join(folder, `${name}.tokens`), sources.map(asDocumentSource), {
      tokenizer,
      tokenizerFingerprint: fingerprint,
      ...(tokenizer.chatTemplate !== undefined && {
        encodeChat: (messages: readonly ChatMessage[]) => encodeConversation(tokenizer, messages),
      }),
      onProgress,
      signal,
      map: fileMapper(backend),
    });
    files.push(file);
    const { sequenceLength, documentMask } = config.data;
    const label = `${field} (${sources.map((source) => source.path).join(", ")})`;
    return new Dataset(file, { sequenceLength, documentMask, seed: config.seed, shuffle, label });
  };
  try {
    const train = await open("train", "data.train", config.data.train, true);
    const validation = new Map<string, Dataset>();
    for (const [name, sources] of Object.entries(config.data.validation)) {
      validation.set(name, await open(`validation-${safeName(name)}`, `data.validation.${name}`, sources, false));
    }
    return new RunData(train, validation, files, config);
  } catch (error) {
    for (const file of files) file[Symbol.dispose]();
    throw error;
  }
}

/** The longest file that one view covers. */
const maxMappedBytes = 2 ** 32;

/** Maps files with the backend's own mapping, where it has one whose bytes JavaScript can see. */
function fileMapper(backend: Backend): FileMapper {
  return (path) => {
    const mapped = backend.canView ? backend.mapFile(path) : null;
    if (mapped === null) return null;
    if (mapped.byteLength > maxMappedBytes) {
      mapped.close();
      return null;
    }
    return {
      bytes: backend.view(mapped.ptr, mapped.byteLength),
      close: () => {
        mapped.close();
      },
    };
  };
}

/** A conversation as its template renders it; only what the assistant wrote bears loss. */
function encodeConversation(tokenizer: Tokenizer, messages: readonly ChatMessage[]): EncodedConversation {
  const { ids, assistantMask } = chatTokens(
    tokenizer,
    messages.map(({ role, content }) => ({ role, content })),
  );
  return { ids, mask: assistantMask };
}

/** A source as the data layer takes it. */
export function asDocumentSource({ path, format, field, separator }: DataSourceConfig): DocumentSource {
  return { path, ...(format && { format }), ...(field !== undefined && { field }), ...(separator !== undefined && { separator }) };
}
function safeName(name: string): string {
  if (/^[\w.-]{1,64}$/.test(name) && !name.startsWith(".")) return name;
  throw new MoeError("configuration", `data.validation: expected names of letters, digits, ".", "_" and "-", got "${name}"`);
}

/** Hash of the tokenizer's files; of what it says where it came inside a model file. */
function tokenizerFingerprint(path: string, tokenizer: Tokenizer): string {
  const hash = createHash("sha256");
  const files = statSync(path).isDirectory() ? tokenizerFiles.filter((name) => existsSync(join(path, name))) : [];
  for (const name of files) hash.update(name).update(readFileSync(join(path, name)));
  if (files.length === 0) hash.update(JSON.stringify(toHuggingFaceFiles(tokenizer)));
  return hash.digest("hex");
}
