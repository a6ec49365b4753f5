/**
 * The pre-tokenizers of tokenizer.json: normalized text to words, across which nothing merges. Written here rather than
 * taken from `@huggingface/tokenizers` because that package splits at other places than the Rust original: `Digits`
 * knows ASCII digits only, `ByteLevel` uses JavaScript's `\s`, `Metaspace` and three of the five behaviours of `Split`
 * do not split at all. The bytes of byte-level models are not made here but by the model.
 */

import { fileError, MoeError } from "../util/errors.ts";
import { asArray, asIndex, asObject, asString, describe, flag, type JsonObject, optional } from "./json.ts";
import { compilePattern, gpt2Pattern, patternOf, space } from "./pattern.ts";

/** Words of `text`; `atStart` says that it begins the whole input. */
export type PreTokenize = (text: string, atStart: boolean) => readonly string[];

export interface PreTokenizer {
  readonly split: PreTokenize;
  /** The last step was `ByteLevel`: the model works on bytes. */
  readonly byteLevel: boolean;
}

const behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] as const;
type Behavior = (typeof behaviors)[number];

export function buildPreTokenizer(value: unknown, at: string, depth = 0): PreTokenizer {
  if (value === null || value === undefined) return { split: (text) => [text], byteLevel: false };
  if (depth > 8) throw fileError(at, "at most 8 nested sequences", "more");
  const json = asObject(value, at);
  const type = asString(json["type"], `${at}.type`);
  if (type === "Sequence") return sequence(json, at, depth);
  if (type === "ByteLevel") return byteLevel(json, at);
  return { split: simple(type, json, at), byteLevel: false };
}

function sequence(json: JsonObject, at: string, depth: number): PreTokenizer {
  const steps = asArray(json["pretokenizers"], `${at}.pretokenizers`).map((step, i) =>
    buildPreTokenizer(step, `${at}.pretokenizers[${i}]`, depth + 1),
  );
  if (steps.slice(0, -1).some((step) => step.byteLevel)) {
    throw new MoeError("unsupported", `${at}: ByteLevel must be the last step of a sequence`);
  }
  if (steps.length === 1) return steps[0] as PreTokenizer;
  return {
    split: (text, atStart) =>
      steps.reduce<readonly string[]>(
        (words, step) => {
          const next: string[] = [];
          for (let i = 0; i < words.length; i++) for (const word of step.split(words[i] as string, atStart && i === 0)) next.push(word);
          return next;
        },
        [text],
      ),
    byteLevel: steps.at(-1)?.byteLevel ?? false,
  };
}

function byteLevel(json: JsonObject, at: string): PreTokenizer {
  const pattern = flag(json, "use_regex", true, at) ? gpt2Pattern() : undefined;
  const addSpace = flag(json, "add_prefix_space", true, at);
  return {
    split: (text) => {
      const prefixed = addSpace && !text.startsWith(" ") ? ` ${text}` : text;
      return pattern === undefined ? [prefixed] : splitBy(prefixed, pattern, "Isolated", false);
    },
    byteLevel: true,
  };
}

function simple(type: string, json: JsonObject, at: string): PreTokenize {
  switch (type) {
    case "Split": {
      const pattern = patternOf(json["pattern"], `${at}.pattern`);
      const behavior = readBehavior(json["behavior"], `${at}.behavior`);
      const invert = flag(json, "invert", false, at);
      return (text) => splitBy(text, pattern, behavior, invert);
    }
    case "Digits": {
      const behavior = flag(json, "individual_digits", false, at) ? "Isolated" : "Contiguous";
      return (text) => splitBy(text, /\p{N}/gu, behavior, false);
    }
    case "Metaspace":
      return metaspace(json, at);
    case "Whitespace": {
      const pattern = compilePattern("\\w+|[^\\w\\s]+", at);
      return (text) => splitBy(text, pattern, "Removed", true);
    }
    case "WhitespaceSplit":
      return (text) => splitBy(text, new RegExp(space, "gu"), "Removed", false);
    case "Punctuation": {
      const behavior = readBehavior(json["behavior"] ?? "Isolated", `${at}.behavior`);
      return (text) => splitBy(text, punctuation(), behavior, false);
    }
    case "BertPreTokenizer":
      return (text) =>
        splitBy(text, new RegExp(space, "gu"), "Removed", false).flatMap((word) => splitBy(word, punctuation(), "Isolated", false));
    case "CharDelimiterSplit": {
      const pattern = patternOf({ String: asString(json["delimiter"], `${at}.delimiter`) }, at);
      return (text) => splitBy(text, pattern, "Removed", false);
    }
    case "FixedLength": {
      const length = asIndex(json["length"] ?? 5, 2 ** 31, `${at}.length`);
      if (length === 0) throw fileError(`${at}.length`, "at least 1", "0");
      return (text) => fixedLength(text, length);
    }
    default:
      throw new MoeError("unsupported", `${at}: pre-tokenizer ${describe(type)} is not supported`);
  }
}

function metaspace(json: JsonObject, at: string): PreTokenize {
  const replacement = optional(json["replacement"], asString, `${at}.replacement`) ?? "▁";
  const legacy = flag(json, "add_prefix_space", true, at) ? "always" : "never";
  const scheme = optional(json["prepend_scheme"], asString, `${at}.prepend_scheme`) ?? legacy;
  if (scheme !== "always" && scheme !== "first" && scheme !== "never") {
    throw fileError(`${at}.prepend_scheme`, "always, first or never", describe(scheme));
  }
  const splits = flag(json, "split", true, at);
  const pattern = patternOf({ String: replacement }, at);
  return (text, atStart) => {
    let replaced = text.replaceAll(" ", () => replacement);
    const prepends = scheme === "always" || (scheme === "first" && atStart);
    if (prepends && !replaced.startsWith(replacement)) replaced = replacement + replaced;
    return splits ? splitBy(replaced, pattern, "MergedWithNext", false) : [replaced];
  };
}

function punctuation(): RegExp {
  return /[\p{P}!-/:-@[-`{-~]/gu;
}

function fixedLength(text: string, length: number): string[] {
  const characters = Array.from(text);
  const words: string[] = [];
  for (let i = 0; i < characters.length; i += length) words.push(characters.slice(i, i + length).join(""));
  return words;
}

function readBehavior(value: unknown, at: string): Behavior {
  // Files spell it "MergedWithNext" or "merged_with_next".
  const name = asString(value, at).replaceAll("_", "").toLowerCase();
  const behavior = behaviors.find((candidate) => candidate.toLowerCase() === name);
  if (behavior === undefined) throw fileError(at, `one of ${behaviors.join(", ")}`, describe(value));
  return behavior;
}

/** Cuts `text` at the matches of `pattern` (with `invert`: the gaps count as matches). Empty words are left out. */
export function splitBy(text: string, pattern: RegExp, behavior: Behavior, invert: boolean): readonly string[] {
  if (text === "") return [];
  if (behavior === "Isolated" && !invert) {
    // The usual case: a pattern that covers the text. One native call instead of a loop over match objects.
    const words = text.match(pattern) ?? [];
    let covered = 0;
    for (const word of words) covered += word.length === 0 ? Number.NEGATIVE_INFINITY : word.length;
    if (covered === text.length) return words;
  }
  return join(text, ranges(text, pattern, invert), behavior);
}

interface Range {
  readonly start: number;
  readonly end: number;
  readonly matched: boolean;
}

function ranges(text: string, pattern: RegExp, invert: boolean): Range[] {
  const found: Range[] = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    if (match.index > end) found.push({ start: end, end: match.index, matched: invert });
    found.push({ start: match.index, end: match.index + match[0].length, matched: !invert });
    end = match.index + match[0].length;
  }
  if (end < text.length) found.push({ start: end, end: text.length, matched: invert });
  return found;
}

function join(text: string, found: readonly Range[], behavior: Behavior): string[] {
  const words: [start: number, end: number][] = [];
  const last = found.length - 1;
  let previousMatched = false;
  const visit = ({ start, end, matched }: Range): void => {
    const neighbour = words.at(-1);
    if (behavior === "Removed") {
      if (!matched) words.push([start, end]);
    } else if (behavior === "MergedWithPrevious" && matched && !previousMatched && neighbour !== undefined) neighbour[1] = end;
    else if (behavior === "MergedWithNext" && matched && !previousMatched && neighbour !== undefined) neighbour[0] = start;
    else if (behavior === "Contiguous" && matched === previousMatched && neighbour !== undefined) neighbour[1] = end;
    else words.push([start, end]);
    previousMatched = matched;
  };
  if (behavior === "MergedWithNext") {
    // Right to left, so that a match finds its successor already there.
    for (let i = last; i >= 0; i--) visit(found[i] as Range);
    words.reverse();
  } else found.forEach(visit);
  return words.filter(([start, end]) => end > start).map(([start, end]) => text.slice(start, end));
}
