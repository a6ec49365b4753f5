/**
 * The normalizers of tokenizer.json: text to text before it is split. Written here rather than taken from
 * `@huggingface/tokenizers` where that differs from the Rust original: its `Precompiled` ignores the table in the file
 * and approximates it by NFKC; its `Lowercase` follows JavaScript's context rules (final sigma); its `Strip` strips
 * U+FEFF. `BertNormalizer` and `StripAccents` are the package's.
 */

import { BertNormalizer } from "./hf-library.ts";
import { fileError, MoeError } from "../util/errors.ts";
import { CharsMap } from "./charsmap.ts";
import { asArray, asObject, asString, describe, flag, optional } from "./json.ts";
import { patternOf } from "./pattern.ts";

export type Normalize = (text: string) => string;

/** The function for a `normalizer` value; `null` is the identity. */
export function buildNormalizer(value: unknown, at: string, depth = 0): Normalize {
  if (value === null || value === undefined) return (text) => text;
  if (depth > 8) throw fileError(at, "at most 8 nested sequences", "more");
  const json = asObject(value, at);
  const type = asString(json["type"], `${at}.type`);
  switch (type) {
    case "Sequence": {
      const steps = asArray(json["normalizers"], `${at}.normalizers`).map((step, i) =>
        buildNormalizer(step, `${at}.normalizers[${i}]`, depth + 1),
      );
      return (text) => steps.reduce((result, step) => step(result), text);
    }
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD":
      return (text) => text.normalize(type);
    case "Lowercase":
      return lowercase;
    case "Prepend": {
      const prefix = asString(json["prepend"], `${at}.prepend`);
      return (text) => (text === "" ? text : prefix + text);
    }
    case "Replace": {
      const pattern = patternOf(json["pattern"], `${at}.pattern`);
      const content = asString(json["content"], `${at}.content`);
      return (text) => text.replaceAll(pattern, () => content);
    }
    case "Strip": {
      const left = flag(json, "strip_left", true, at);
      const right = flag(json, "strip_right", true, at);
      return (text) => {
        const start = left ? text.replace(/^\p{White_Space}+/u, "") : text;
        return right ? trimEnd(start) : start;
      };
    }
    case "StripAccents":
      return (text) => text.replace(/\p{Mn}/gu, "");
    case "Precompiled": {
      const map = new CharsMap(base64(asString(json["precompiled_charsmap"], `${at}.precompiled_charsmap`), at), at);
      return (text) => map.normalizeByGrapheme(text);
    }
    case "BertNormalizer":
      return bert(json, at);
    default:
      throw new MoeError("unsupported", `${at}: normalizer ${describe(type)} is not supported`);
  }
}

function bert(json: Readonly<Record<string, unknown>>, at: string): Normalize {
  const normalizer = new BertNormalizer({
    type: "BertNormalizer",
    clean_text: flag(json, "clean_text", true, at),
    handle_chinese_chars: flag(json, "handle_chinese_chars", true, at),
    lowercase: flag(json, "lowercase", true, at),
    strip_accents: optional(json["strip_accents"], (value) => value === true, at) ?? null,
  });
  return (text) => normalizer.normalize(text);
}

function lowercase(text: string): string {
  let out = "";
  for (const character of text) out += character.toLowerCase();
  return out;
}

/** Without white space at the end; a loop, because a pattern anchored at the end is quadratic. */
export function trimEnd(text: string): string {
  let end = text.length;
  while (end > 0 && /\p{White_Space}/u.test(text[end - 1] as string)) end--;
  return text.slice(0, end);
}

/** Bytes of standard base64. */
export function base64(text: string, at: string): Uint8Array {
  if (!/^[A-Za-z0-9+/\s]*={0,2}\s*$/.test(text)) throw fileError(at, "base64", describe(text));
  const digits = text.replace(/[^A-Za-z0-9+/]/g, "");
  // A single digit left over holds no whole byte.
  const binary = atob(digits.length % 4 === 1 ? digits.slice(0, -1) : digits);
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}
