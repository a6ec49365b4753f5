/**
 * Regular expressions that come with a tokenizer. They are written for Oniguruma; the package `@huggingface/tokenizers`
 * translates them to JavaScript (`\s` and `\w` mean other sets there). A file that anybody may have written must not
 * hang us: JavaScript cannot bound the time of a match, so a pattern with a repetition inside a repetition, the shape
 * behind exponential backtracking, is refused, and so is a very long one.
 */

import { SplitPreTokenizer } from "./hf-library.ts";
import { fileError, MoeError } from "../util/errors.ts";
import { asObject, asString, describe } from "./json.ts";

const maxPatternLength = 8192;

/** White space as Unicode, Rust and Oniguruma define it; JavaScript's `\s` has U+FEFF and lacks U+0085. */
export const space = "\\p{White_Space}";

/** The pre-tokenizer of GPT-2, also that of `ByteLevel` with `use_regex`. */
export function gpt2Pattern(): RegExp {
  return /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
}

/** `{"Regex": ...}` or `{"String": ...}` of a tokenizer.json as a global JavaScript pattern. */
export function patternOf(value: unknown, at: string): RegExp {
  const object = typeof value === "string" ? { String: value } : asObject(value, at);
  if (typeof object["String"] === "string") {
    if (object["String"].length > maxPatternLength)
      throw fileError(at, `at most ${maxPatternLength} characters`, `${object["String"].length}`);
    return new RegExp(object["String"].replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), "gu");
  }
  if (object["Regex"] === undefined) throw fileError(at, "{Regex} or {String}", describe(value));
  return compilePattern(asString(object["Regex"], at), at);
}

/** An Oniguruma pattern as a JavaScript one. */
export function compilePattern(source: string, at: string): RegExp {
  if (source.length > maxPatternLength) throw fileError(at, `a pattern of at most ${maxPatternLength} characters`, `${source.length}`);
  let pattern: RegExp | null;
  try {
    pattern = new SplitPreTokenizer({ type: "Split", pattern: { Regex: source }, behavior: "Isolated", invert: false }).pattern;
  } catch (cause) {
    throw fileError(at, "a regular expression", describe(source), cause);
  }
  if (pattern === null) throw fileError(at, "a regular expression", describe(source));
  if (nestsRepetition(source)) {
    throw new MoeError(
      "unsupported",
      `${at}: the pattern ${describe(source)} repeats a repetition, which can take exponential time; rewrite it without, or remove it`,
    );
  }
  return pattern;
}

/** Whether an unbounded repetition stands inside another: (a+)*. Classes and escapes are skipped. */
export function nestsRepetition(source: string): boolean {
  // One entry per open group: whether an unbounded repetition was seen inside it.
  const groups: boolean[] = [false];
  let closed = false; // the atom just read was a group that holds an unbounded repetition
  for (let i = 0; i < source.length; i++) {
    const character = source[i];
    const repetition = /^(?:[*+]|\{\d*,\}|\{\d{3,}(?:,\d*)?\})/.exec(source.slice(i, i + 16));
    if (repetition !== null) {
      if (closed) return true;
      groups[groups.length - 1] = true;
      i += repetition[0].length - 1;
      continue;
    }
    closed = false;
    if (character === "\\") i++;
    else if (character === "[") i = classEnd(source, i);
    else if (character === "(") groups.push(false);
    else if (character === ")" && groups.length > 1) {
      closed = groups.pop() === true;
      if (closed) groups[groups.length - 1] = true;
    }
  }
  return false;
}

/** Index of the bracket that closes the class opened at `start`. */
function classEnd(source: string, start: number): number {
  let depth = 0;
  for (let i = start; i < source.length; i++) {
    if (source[i] === "\\") i++;
    else if (source[i] === "[") depth++;
    else if (source[i] === "]" && --depth === 0) return i;
  }
  return source.length;
}
