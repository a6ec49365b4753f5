/**
 * The pre-tokenizers that a GGUF file names in `tokenizer.ggml.pre`, as lists of patterns: each cuts what the one before
 * left, matches and gaps both being words. They are the patterns of the models' own tokenizer.json files. Families that
 * split alike share an entry; the table is also read backwards when exporting.
 */

import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";

export interface NamedPreTokenizer {
  /** Oniguruma patterns; empty for GPT-2's own alone. */
  readonly patterns: readonly string[];
  /** A word that is a piece is that piece, whatever the merges say. */
  readonly ignoreMerges: boolean;
  /** Whether a bos goes before a text when the file does not say. */
  readonly addBos: boolean;
}

const gpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const spaces = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/** cl100k and its descendants: `digits` are the digits that stay together. */
const cl100k = (digits: string): string =>
  `${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${spaces}`;
const upper = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const lower = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
/** o200k: words change at a capital; `end` is what may follow a word. */
const o200k = (digits: string, end: string): string =>
  `[^\\r\\n\\p{L}\\p{N}]?${upper}*${lower}+${end}|[^\\r\\n\\p{L}\\p{N}]?${upper}+${lower}*${end}|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${spaces}`;

interface Family extends NamedPreTokenizer {
  readonly names: readonly string[];
}

function families(): Family[] {
  const plain = { ignoreMerges: false, addBos: false };
  return [
    {
      names: [
        "gpt-2",
        "gpt2",
        "mpt",
        "olmo",
        "jais",
        "phi-2",
        "jina-es",
        "jina-de",
        "gigachat",
        "jina-v2-es",
        "jina-v2-de",
        "a.x-4.0",
        "mellum",
        "modern-bert",
        "trillion",
      ],
      patterns: [gpt2],
      ...plain,
    },
    { names: ["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], patterns: ["\\p{N}", gpt2], ...plain },
    {
      names: ["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
      patterns: [cl100k("\\p{N}{1,3}")],
      ignoreMerges: true,
      addBos: true,
    },
    { names: ["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], patterns: [cl100k("\\p{N}{1,3}")], ...plain },
    {
      names: ["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "grok-2", "solar-open"],
      patterns: [cl100k("\\p{N}")],
      ...plain,
    },
    {
      names: ["qwen35"],
      patterns: [`${contractions}|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|${spaces}`],
      ...plain,
    },
    { names: ["gpt-4o", "llama4"], patterns: [o200k("\\p{N}{1,3}", `${contractions}?`)], ...plain },
    { names: ["tekken"], patterns: [o200k("\\p{N}", "")], ignoreMerges: true, addBos: true },
    {
      names: ["deepseek-v3", "hunyuan-dense"],
      patterns: [
        "\\p{N}{1,3}",
        "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+",
        `[!-/:-@\\[-\`{-~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|${spaces}`,
      ],
      ...plain,
    },
    {
      names: ["bailingmoe"],
      patterns: [`'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+`],
      ...plain,
    },
    {
      names: ["seed-coder"],
      patterns: [`${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|${spaces}`],
      ...plain,
    },
    { names: ["falcon"], patterns: ["[\\p{P}$+<=>^~|`]+", gpt2, "[0-9][0-9][0-9]"], ...plain },
    { names: ["default"], patterns: ["[\\p{P}$+<=>^~|]+", gpt2, "\\p{N}+", "[0-9][0-9][0-9]"], ...plain },
  ];
}

/** The pre-tokenizer called `name`. Throws `unsupported` for a name that is not in the table. */
export function namedPreTokenizer(name: string, origin: string): NamedPreTokenizer {
  const all = families();
  const family = all.find(({ names }) => names.includes(name));
  if (family !== undefined) return family;
  const names = all.flatMap((candidate) => candidate.names);
  throw new MoeError(
    "unsupported",
    `${origin}: tokenizer.ggml.pre ${JSON.stringify(name)} is not supported${didYouMean(name, names)}; known: ${names.join(", ")}`,
  );
}

/** The first name whose patterns are `patterns`, for files to be written; undefined when there is none. */
export function nameOfPatterns(patterns: readonly string[], ignoreMerges: boolean): string | undefined {
  const wanted = JSON.stringify(patterns);
  return families().find((family) => JSON.stringify(family.patterns) === wanted && family.ignoreMerges === ignoreMerges)?.names[0];
}

function whole(use_regex: boolean): Record<string, unknown> {
  return { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex };
}

/** The same as the `pre_tokenizer` value of a tokenizer.json. */
export function preTokenizerJson(patterns: readonly string[]): Record<string, unknown> {
  const steps = patterns.map((pattern) =>
    pattern === gpt2 ? undefined : { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false },
  );
  if (steps.length === 1 && steps[0] === undefined) return whole(true);
  // GPT-2's own pattern is what ByteLevel splits by; in the middle of a sequence it has to be written out.
  const last = steps.at(-1) === undefined;
  const written = steps.map((step) => step ?? { type: "Split", pattern: { Regex: gpt2 }, behavior: "Isolated", invert: false });
  return { type: "Sequence", pretokenizers: [...(last ? written.slice(0, -1) : written), whole(last)] };
}

/** The patterns of a `pre_tokenizer` value, as far as it is made of isolated splits, digits and ByteLevel. */
export function patternsOfJson(value: unknown): string[] | undefined {
  if (typeof value !== "object" || value === null || !("type" in value)) return undefined;
  if (value.type === "ByteLevel") {
    if ("add_prefix_space" in value && value.add_prefix_space === true) return undefined;
    return "use_regex" in value && value.use_regex === false ? [] : [gpt2];
  }
  if (value.type === "Digits") return "individual_digits" in value && value.individual_digits === true ? ["\\p{N}"] : ["\\p{N}+"];
  if (value.type === "Split" && "pattern" in value && "behavior" in value && value.behavior === "Isolated") {
    const pattern = value.pattern;
    if (typeof pattern === "object" && pattern !== null && "Regex" in pattern && typeof pattern.Regex === "string") return [pattern.Regex];
  }
  if (value.type !== "Sequence" || !("pretokenizers" in value) || !Array.isArray(value.pretokenizers)) return undefined;
  const parts = value.pretokenizers.map(patternsOfJson);
  return parts.some((part) => part === undefined) ? undefined : parts.flatMap((part) => part ?? []);
}
