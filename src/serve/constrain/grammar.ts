/**
 * Languages of bytes as expressions, stepped through by derivatives (Brzozowski, "Derivatives of Regular Expressions", 1964): the
 * derivative of a language by a byte is what may follow that byte. Expressions are numbered and equal ones have one number, so
 * a state is a number, and states and their transitions are made only where a text comes to them. References let a language
 * contain itself (nested values); what is still open is then part of the expression, as a stack would be.
 *
 * A state that can no longer end is `nothing`, at once: no text leads into a dead end.
 */
import { MoeError } from "../../util/errors.ts";

/** Number of an expression. */
export type Expression = number;

/** No text at all. */
export const nothing: Expression = 0;
/** The empty text. */
export const empty: Expression = 1;

type Node =
  | { readonly kind: "nothing" | "empty" }
  /** One byte of a set. */
  | { readonly kind: "bytes"; readonly set: ReadonlySet<number> }
  | { readonly kind: "sequence"; readonly first: Expression; readonly rest: Expression }
  | { readonly kind: "choice"; readonly parts: readonly Expression[] }
  | { readonly kind: "repeat"; readonly body: Expression; readonly min: number; readonly max: number }
  | { readonly kind: "reference"; readonly name: string };

/** Expressions of one grammar at most: bounds the memory that a schema's states can take. */
const maxExpressions = 400_000;

export class Grammar {
  readonly #nodes: Node[] = [{ kind: "nothing" }, { kind: "empty" }];
  readonly #numbers = new Map<string, Expression>();
  readonly #definitions = new Map<string, Expression>();
  /** Which references can end; null before `close`. */
  #productive: ReadonlySet<string> | null = null;
  readonly #canEnd = new Map<Expression, boolean>();
  /** Derivatives by byte, -1 where not computed yet. */
  readonly #next: (Int32Array | undefined)[] = [];

  #node(expression: Expression): Node {
    const node = this.#nodes[expression];
    if (node === undefined) throw new MoeError("internal", `grammar: expression ${expression} of ${this.#nodes.length}`);
    return node;
  }
  #number(key: string, node: Node): Expression {
    const known = this.#numbers.get(key);
    if (known !== undefined) return known;
    if (this.#nodes.length >= maxExpressions)
      throw new MoeError("unsupported", `schema: more than ${maxExpressions} states; make it smaller, or its bounds`);
    this.#nodes.push(node);
    this.#numbers.set(key, this.#nodes.length - 1);
    return this.#nodes.length - 1;
  }

  /** One byte of these, from..to inclusive each. */
  bytes(...ranges: readonly (readonly [from: number, to: number])[]): Expression {
    const set = new Set(ranges.flatMap(([from, to]) => Array.from({ length: Math.max(0, to - from + 1) }, (_, i) => from + i)));
    if (set.size === 0) return nothing;
    return this.#number(`b${[...set].sort((a, b) => a - b).join()}`, { kind: "bytes", set });
  }
  /** The UTF-8 bytes of a text. */
  text(text: string): Expression {
    return this.sequence(...[...new TextEncoder().encode(text)].map((byte) => this.bytes([byte, byte])));
  }
  sequence(...parts: readonly Expression[]): Expression {
    return parts.reduceRight((rest, first) => this.#pair(first, rest), empty);
  }
  #pair(first: Expression, rest: Expression): Expression {
    if (first === nothing || rest === nothing) return nothing;
    if (first === empty) return rest;
    if (rest === empty) return first;
    const node = this.#node(first);
    // Bracketed to the right, so that equal sequences have equal numbers.
    if (node.kind === "sequence") return this.#pair(node.first, this.#pair(node.rest, rest));
    return this.#number(`s${first},${rest}`, { kind: "sequence", first, rest });
  }
  choice(...parts: readonly Expression[]): Expression {
    const flat = new Set<Expression>();
    for (const part of parts) {
      const node = this.#node(part);
      for (const inner of node.kind === "choice" ? node.parts : [part]) if (inner !== nothing) flat.add(inner);
    }
    const sorted = [...flat].sort((a, b) => a - b);
    if (sorted.length <= 1) return sorted[0] ?? nothing;
    return this.#number(`c${sorted.join()}`, { kind: "choice", parts: sorted });
  }
  optional(body: Expression): Expression {
    return this.choice(empty, body);
  }
  /** `body` min to max times; max may be Infinity. */
  repeat(body: Expression, min: number, max: number): Expression {
    if (max < min) return nothing;
    if (max === 0 || body === empty) return empty;
    if (body === nothing) return min === 0 ? empty : nothing;
    if (min === 1 && max === 1) return body;
    return this.#number(`r${body},${min},${max}`, { kind: "repeat", body, min, max });
  }
  /** What `define` says of this name, now or later. Never the empty text. */
  reference(name: string): Expression {
    return this.#number(`n${name}`, { kind: "reference", name });
  }
  define(name: string, expression: Expression): void {
    this.#definitions.set(name, expression);
  }
  #definition(name: string): Expression {
    const expression = this.#definitions.get(name);
    if (expression === undefined) throw new MoeError("internal", `grammar: ${name} has no definition`);
    return expression;
  }

  /**
   * Ends the definitions. Throws `unsupported` where a reference comes back to itself before any byte; returns whether `root` has any text.
   */
  close(root: Expression): boolean {
    for (const name of this.#definitions.keys()) this.#checkProgress(name, []);
    let productive = new Set<string>();
    for (;;) {
      this.#productive = productive;
      this.#canEnd.clear();
      const next = new Set([...this.#definitions].filter(([, expression]) => this.#isProductive(expression)).map(([name]) => name));
      if (next.size === productive.size) return this.#isProductive(root);
      productive = next;
    }
  }
  #checkProgress(name: string, path: readonly string[]): void {
    if (path.includes(name)) throw new MoeError("unsupported", `schema: ${name} refers to itself with nothing between`);
    const visit = (expression: Expression): void => {
      const node = this.#node(expression);
      if (node.kind === "reference") this.#checkProgress(node.name, [...path, name]);
      else if (node.kind === "choice") node.parts.forEach(visit);
      else if (node.kind === "repeat") visit(node.body);
      else if (node.kind === "sequence") {
        visit(node.first);
        if (this.canEnd(node.first)) visit(node.rest);
      }
    };
    visit(this.#definition(name));
  }
  /** Whether the language has any text. */
  #isProductive(expression: Expression): boolean {
    const known = this.#canEnd.get(expression);
    if (known !== undefined) return known;
    const node = this.#node(expression);
    const result = this.#computeProductive(node);
    this.#canEnd.set(expression, result);
    return result;
  }
  #computeProductive(node: Node): boolean {
    switch (node.kind) {
      case "nothing":
        return false;
      case "empty":
      case "bytes":
        return true;
      case "sequence":
        return this.#isProductive(node.first) && this.#isProductive(node.rest);
      case "choice":
        return node.parts.some((part) => this.#isProductive(part));
      case "repeat":
        return node.min === 0 || this.#isProductive(node.body);
      case "reference":
        return this.#productive?.has(node.name) ?? true;
      default:
        return node satisfies never;
    }
  }

  /** Whether the text may end here. */
  canEnd(expression: Expression): boolean {
    const node = this.#node(expression);
    if (node.kind === "empty") return true;
    if (node.kind === "sequence") return this.canEnd(node.first) && this.canEnd(node.rest);
    if (node.kind === "choice") return node.parts.some((part) => this.canEnd(part));
    return node.kind === "repeat" && (node.min === 0 || this.canEnd(node.body));
  }
  /** What may follow this byte; `nothing` where the byte may not come. */
  step(expression: Expression, byte: number): Expression {
    const table = (this.#next[expression] ??= new Int32Array(256).fill(-1));
    const known = table[byte] ?? -1;
    if (known >= 0) return known;
    const derived = this.#derive(this.#node(expression), byte);
    const next = this.#isProductive(derived) ? derived : nothing;
    table[byte] = next;
    return next;
  }
  #derive(node: Node, byte: number): Expression {
    switch (node.kind) {
      case "nothing":
      case "empty":
        return nothing;
      case "bytes":
        return node.set.has(byte) ? empty : nothing;
      case "sequence": {
        const after = this.#pair(this.step(node.first, byte), node.rest);
        return this.canEnd(node.first) ? this.choice(after, this.step(node.rest, byte)) : after;
      }
      case "choice":
        return this.choice(...node.parts.map((part) => this.step(part, byte)));
      case "repeat": {
        const rest = this.repeat(node.body, Math.max(0, node.min - 1), node.max - 1);
        return this.#pair(this.step(node.body, byte), rest);
      }
      case "reference":
        return this.step(this.#definition(node.name), byte);
      default:
        return node satisfies never;
    }
  }
}
