/**
 * A strict pull parser for JSON in files that nobody vouches for: the header of a safetensors file, the index of a sharded one.
 *
 * Why not JSON.parse: it lets the last of two equal names win, so two programs may read the same file differently, and it
 * builds whatever the file describes (100 MB of `[],` become gigabytes of objects) before anyone can look at it. Here the
 * caller says what comes next, and the first thing that is something else is an error with its position. Grammar: RFC 8259;
 * integers only where the caller asks for one; strings must be well-formed Unicode.
 */
import { isUtf8 } from "node:buffer";
import { fileError } from "../util/errors.ts";

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/** Decodes UTF-8 without any replacement characters. `what` names the bytes in the error. */
export function decodeUtf8(bytes: Uint8Array, filePath: string, what: string): string {
  if (!isUtf8(bytes)) throw fileError(filePath, `${what} to be UTF-8`, "bytes that are not");
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
}

/** A position in a JSON text, moved on by what the caller expects next. Errors are of kind `file` and name `filePath`. */
export class JsonCursor {
  readonly #text: string;
  readonly #path: string;
  readonly #what: string;
  #at = 0;

  /** `what` names the text in errors, for example "the header". */
  constructor(text: string, filePath: string, what: string) {
    this.#text = text;
    this.#path = filePath;
    this.#what = what;
  }

  /** Throws: `expected` at this position, got what stands there. */
  fail(expected: string): never {
    const rest = this.#text.slice(this.#at, this.#at + 20);
    throw fileError(this.#path, `${expected} at character ${this.#at} of ${this.#what}`, rest === "" ? "its end" : JSON.stringify(rest));
  }

  #skipSpace(): void {
    for (; this.#at < this.#text.length; this.#at++) {
      const c = this.#text.charCodeAt(this.#at);
      if (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09) return;
    }
  }

  /** The next character that is not white space, or an empty string at the end. */
  peek(): string {
    this.#skipSpace();
    return this.#text.charAt(this.#at);
  }

  /** Moves over one punctuation character, which has to be there. */
  expect(character: string): void {
    if (this.peek() !== character) this.fail(`"${character}"`);
    this.#at++;
  }

  /** The end of the text; white space is allowed before it. */
  end(): void {
    if (this.peek() !== "") this.fail("the end");
  }

  /** A string, unescaped. */
  string(): string {
    if (this.peek() !== '"') this.fail("a string");
    const start = this.#at;
    let plain = true;
    let i = start + 1;
    for (; ; i++) {
      if (i >= this.#text.length) this.fail("a string that ends");
      const c = this.#text.charCodeAt(i);
      if (c === QUOTE) break;
      if (c < 0x20) this.fail("a string without control characters");
      if (c === BACKSLASH) {
        plain = false;
        i++;
      }
    }
    let value = this.#text.slice(start + 1, i);
    if (!plain) {
      try {
        value = String(JSON.parse(this.#text.slice(start, i + 1)));
      } catch {
        this.fail("a string with valid escapes");
      }
      if (!value.isWellFormed()) this.fail("a string of well-formed Unicode");
    }
    this.#at = i + 1;
    return value;
  }

  /** A non-negative integer that a double holds exactly; `what` names it. */
  integer(what: string): number {
    this.#skipSpace();
    let i = this.#at;
    while (i < this.#text.length && i - this.#at < 20) {
      const c = this.#text.charCodeAt(i);
      if (c < 0x30 || c > 0x39) break;
      i++;
    }
    const digits = this.#text.slice(this.#at, i);
    const value = Number(digits);
    const next = this.#text.charAt(i);
    const whole = digits !== "" && (digits === "0" || !digits.startsWith("0")) && next !== "." && next !== "e" && next !== "E";
    if (!whole || !Number.isSafeInteger(value)) this.fail(`${what} as an integer from 0 to ${Number.MAX_SAFE_INTEGER}`);
    this.#at = i;
    return value;
  }

  /** An object: calls `member` at each value, which has to move over it. A name that comes twice is an error. */
  object(what: string, member: (name: string) => void): void {
    if (this.peek() !== "{") this.fail(`${what} as an object`);
    this.#at++;
    if (this.peek() === "}") {
      this.#at++;
      return;
    }
    const names = new Set<string>();
    for (;;) {
      const name = this.string();
      if (names.has(name)) this.fail(`each name in ${what} once, but ${JSON.stringify(name)} comes twice`);
      names.add(name);
      this.expect(":");
      member(name);
      if (this.peek() === "}") break;
      this.expect(",");
    }
    this.#at++;
  }

  /** An array: calls `element` at each value, which has to move over it. */
  array(what: string, element: (index: number) => void): void {
    if (this.peek() !== "[") this.fail(`${what} as an array`);
    this.#at++;
    if (this.peek() === "]") {
      this.#at++;
      return;
    }
    for (let index = 0; ; index++) {
      element(index);
      if (this.peek() === "]") break;
      this.expect(",");
    }
    this.#at++;
  }

  /** Moves over any value without keeping it, at most `depth` levels deep. */
  skip(depth: number): void {
    const c = this.peek();
    if (c === '"') this.string();
    else if (c === "{" || c === "[") {
      if (depth === 0) this.fail("fewer levels of nesting");
      if (c === "{") this.object("an object", () => this.skip(depth - 1));
      else this.array("an array", () => this.skip(depth - 1));
    } else {
      const word = /(?:true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])/y;
      word.lastIndex = this.#at;
      const match = word.exec(this.#text);
      if (match === null) this.fail("a value");
      else this.#at += match[0].length;
    }
  }
}
