/**
 * A model in another program's format: one GGUF file for llama.cpp, with the tokenizer in it. What GGUF says and how is
 * checkpoint/gguf-export.ts and tokenizer/export-gguf.ts; here a model of any supported file format is brought to the form
 * that they take: the configuration as we would write it, experts one by one, as many tokens as the embedding has rows.
 */
import { statSync } from "node:fs";
import { basename } from "node:path";
import { exportGguf, type GgufExportType, type HuggingFaceSource } from "../checkpoint/gguf-export.ts";
import type { GgufValue } from "../checkpoint/gguf-types.ts";
import { toHuggingFaceConfig } from "../config/model-huggingface.ts";
import { toGgufMetadata } from "../tokenizer/export-gguf.ts";
import { pieceType } from "../tokenizer/source.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import { huggingFacePieces } from "./names.ts";
import { parameterSpecs } from "./parameters.ts";
import { openModelSource, type ModelSource } from "./source.ts";

export type { GgufExportType } from "../checkpoint/gguf-export.ts";

export interface ExportOptions {
  /** Type of matrices. Default: as stored; quantized models become F16, which holds their scales. Vectors and routers are F32. */
  readonly type?: GgufExportType;
  /** The tokenizer to put into the file. Without one, llama.cpp can run the model on ids only. */
  readonly tokenizer?: Tokenizer;
  /** Name of the model in the file. Default: the last part of its path. */
  readonly name?: string;
}

export interface ExportReport {
  readonly path: string;
  readonly format: "gguf";
  readonly architecture: string;
  readonly type: GgufExportType;
  readonly numTensors: number;
  /** Bytes of the file. */
  readonly numBytes: number;
}

/**
 * Writes the model at `modelPath` (a folder or a GGUF file) to `outFile` as GGUF, atomically and in constant memory. Errors:
 * `unsupported` for what llama.cpp does not compute (Skywork-MoE) or GGUF cannot hold (unigram tokenizers), `configuration`
 * for a tokenizer with more tokens than the model, `file`, `resource`.
 *
 * ```ts
 * exportModel("SmolLM2-135M", "smollm2.gguf", { type: "BF16", tokenizer: await loadTokenizer("SmolLM2-135M") });
 * ```
 */
export function exportModel(modelPath: string, outFile: string, options: ExportOptions = {}): ExportReport {
  using source = openModelSource(modelPath);
  const { config } = source;
  const type = options.type ?? source.storedAs;
  const tensors = oneByOne(source);
  const metadata =
    options.tokenizer === undefined ? new Map<string, GgufValue>() : vocabularyOf(options.tokenizer, config.vocabSize, modelPath);
  const numTensors = exportGguf(outFile, tensors, toHuggingFaceConfig(config, "float32"), {
    type,
    name: options.name ?? basename(modelPath).replace(/\.gguf$/, ""),
    metadata,
  });
  return { path: outFile, format: "gguf", architecture: config.architecture, type, numTensors, numBytes: statSync(outFile).size };
}

/** The same tensors with experts one by one, whatever the layout of the file, and nothing that is not a parameter. */
function oneByOne(source: ModelSource): HuggingFaceSource {
  const tensors = new Map<string, { shape: readonly number[]; storedName: string; firstElement: number }>();
  for (const spec of parameterSpecs(source.config, "f32")) {
    const stored = huggingFacePieces(spec, source.layout, source.config);
    for (const { name, shape, offset } of huggingFacePieces(spec, "per-expert", source.config)) {
      // Stored pieces are one an expert, or the whole stack.
      const holder = stored.find((piece) => piece.offset <= offset && offset < piece.offset + piece.numElements);
      if (holder === undefined) throw new MoeError("internal", `no stored tensor holds ${name}`);
      tensors.set(name, { shape, storedName: holder.name, firstElement: holder.fileOffset + offset - holder.offset });
    }
  }
  return {
    tensors,
    readFloat32: (name, into, from = 0) => {
      const found = tensors.get(name);
      if (found === undefined) throw new MoeError("internal", `${source.path}: no tensor ${name}`);
      source.readFloat32(found.storedName, into, found.firstElement + from);
    },
  };
}

/** The tokenizer's keys, with unused tokens up to the rows of the embedding (vocabularies are padded to round numbers). */
function vocabularyOf(tokenizer: Tokenizer, vocabSize: number, modelPath: string): Map<string, GgufValue> {
  const missing = vocabSize - tokenizer.vocabSize;
  if (missing < 0) {
    throw new MoeError(
      "configuration",
      `${modelPath}: expected a tokenizer of at most ${vocabSize} tokens, the rows of the embedding, got ${tokenizer.vocabSize}`,
    );
  }
  const padding: Readonly<Record<string, (index: number) => string | number>> = {
    "tokenizer.ggml.tokens": (index) => `[PAD${tokenizer.vocabSize + index}]`,
    "tokenizer.ggml.token_type": () => pieceType.unused,
    "tokenizer.ggml.scores": () => -1000,
  };
  const metadata = new Map<string, GgufValue>(toGgufMetadata(tokenizer));
  for (const [key, fill] of Object.entries(padding)) {
    const value = metadata.get(key);
    if (value?.type !== "array" || missing === 0) continue;
    const values = [...Array.from(value.values as ArrayLike<string | number>), ...Array.from({ length: missing }, (_, i) => fill(i))];
    metadata.set(key, { ...value, values } as GgufValue);
  }
  return metadata;
}
