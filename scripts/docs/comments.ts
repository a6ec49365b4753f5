/**
 * The comments of schemas, read from the sources: of every `z.strictObject({ ... })` the text above it and the text above each of its
 * fields. Zod knows types, defaults and bounds at run time but no comments, and a `.describe()` beside each comment would say everything twice.
 *
 * An object of the source and one of zod are the same where their keys are the same, in order, with the values of literal fields:
 * `type="linear",factor`. This is a reader of our schemas, not of TypeScript: tokens and brackets, nothing more.
 */

export interface SchemaComments {
  /** Above the object itself; empty where there is none. */
  readonly text: string;
  /** Above each field that has one. */
  readonly fields: ReadonlyMap<string, string>;
}

const tokenPattern =
  /\/\*\*[\s\S]*?\*\/|\/\*[\s\S]*?\*\/|\/\/[^\n]*|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`|[A-Za-z_$][\w$]*|[^\s\w]|\d[\w.]*/g;

/** Keys in order, with the values of literals: what an object of a source and one of zod have in common. */
export function signatureOf(fields: Iterable<readonly [key: string, literal: string | undefined]>): string {
  return [...fields].map(([key, literal]) => (literal === undefined ? key : `${key}=${literal}`)).join(",");
}

/** Comments of all objects of a source file, by signature. Throws where two objects of one signature say different things. */
export function schemaComments(source: string): Map<string, SchemaComments> {
  const reader = new Reader(source.match(tokenPattern) ?? []);
  reader.readUntil(null);
  return reader.found;
}

class Reader {
  readonly found = new Map<string, SchemaComments>();
  readonly #tokens: readonly string[];
  #at = 0;
  /** The documentation comment that was read last and stands above nothing yet. */
  #text = "";

  constructor(tokens: readonly string[]) {
    this.#tokens = tokens;
  }

  /** Reads on to the closing bracket (which it takes), or to the end. */
  readUntil(closing: string | null): void {
    while (this.#at < this.#tokens.length) {
      const token = this.#next();
      if (token === closing) return;
      if (token === ";" || token === ",") this.#text = "";
      if (token === "{" && this.#before(2) === "strictObject") this.#readObject();
      else this.#descend(token);
    }
  }

  #next(): string {
    for (;;) {
      const token = this.#tokens[this.#at++] ?? "";
      if (token.startsWith("/**")) this.#text = plainText(token);
      else if (!token.startsWith("//") && !token.startsWith("/*")) return token;
    }
  }

  /** The token `distance` before the one that was read last. */
  #before(distance: number): string | undefined {
    return this.#tokens[this.#at - 1 - distance];
  }

  #descend(token: string): void {
    const closing = { "(": ")", "[": "]", "{": "}" }[token];
    if (closing !== undefined) this.readUntil(closing);
  }

  /** After `strictObject({`: its members, and within them other objects. */
  #readObject(): void {
    const text = this.#text;
    this.#text = "";
    const members: [string, string | undefined][] = [];
    const fields = new Map<string, string>();
    for (let key = this.#next(); key !== "}" && key !== ""; key = this.#next()) {
      const comment = this.#text;
      if (comment !== "") fields.set(key, comment);
      this.#text = "";
      members.push([key, this.#readMember()]);
      if (this.#before(0) === "}") break;
    }
    this.#add(signatureOf(members), { text, fields });
  }

  /** After a key: its value, up to the comma or brace behind it. Returns the value of a `z.literal` that stands there alone. */
  #readMember(): string | undefined {
    const value: string[] = [];
    for (let token = this.#next(); token !== "," && token !== ""; token = this.#next()) {
      if (token === "}") break;
      value.push(token);
      if (token === "{" && this.#before(2) === "strictObject") this.#readObject();
      else if (token === "(" && value.at(-2) === "literal") value.push(this.#next());
      else this.#descend(token);
    }
    return value.at(-4) === "literal" ? value.at(-2) : undefined;
  }

  #add(signature: string, comments: SchemaComments): void {
    const known = this.found.get(signature);
    if (known !== undefined && JSON.stringify([known.text, ...known.fields]) !== JSON.stringify([comments.text, ...comments.fields]))
      throw new Error(`two schemas have the keys ${signature} and different comments: their fields cannot be told apart`);
    this.found.set(signature, comments);
  }
}

/** A documentation comment as a line of Markdown. */
function plainText(comment: string): string {
  return comment
    .replace(/^\/\*\*|\*\/$/g, "")
    .replaceAll(/^\s*\* ?/gm, "")
    .replaceAll(/\s+/g, " ")
    .trim();
}
