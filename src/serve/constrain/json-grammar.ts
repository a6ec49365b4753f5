/**
 * The parts of JSON (RFC 8259) as languages of bytes. White space is bounded and only where writers put it: after braces,
 * brackets, commas and colons, so that no text can go on with blanks for ever. Numbers have bounded digits for the same
 * reason. Strings are valid UTF-8 without lone surrogates.
 */
import { empty, nothing, type Expression, type Grammar } from "./grammar.ts";

/** Digits of a whole number or of a fraction at most: what a double holds exactly. */
const maxDigits = 15;
const code = (character: string): number => character.charCodeAt(0);

export class JsonGrammar {
  readonly grammar: Grammar;
  /** After a brace, bracket or comma: nothing, a blank, or a line break and up to 20 blanks. */
  readonly #space: Expression;
  readonly #digit: Expression;
  readonly #character: Expression;

  constructor(grammar: Grammar) {
    this.grammar = grammar;
    const g = grammar;
    this.#space = g.choice(empty, g.text(" "), g.sequence(g.text("\n"), g.repeat(g.text(" "), 0, 20)));
    this.#digit = g.bytes([code("0"), code("9")]);
    this.#character = character(g);
    const any = this.anyValue();
    g.define(
      "any value",
      g.choice(
        this.object([], any, 0),
        this.array(any, 0, Number.POSITIVE_INFINITY),
        this.string(),
        this.number(),
        this.literal(true),
        this.literal(false),
        this.literal(null),
      ),
    );
  }

  anyValue(): Expression {
    return this.grammar.reference("any value");
  }
  /** A value as `JSON.stringify` writes it. */
  literal(value: unknown): Expression {
    return this.grammar.text(JSON.stringify(value));
  }
  /** A string of so many code points. */
  string(min = 0, max = Number.POSITIVE_INFINITY): Expression {
    const quote = this.grammar.text('"');
    return this.grammar.sequence(quote, this.grammar.repeat(this.#character, min, max), quote);
  }
  array(item: Expression, min: number, max: number): Expression {
    const g = this.grammar;
    const more = g.repeat(g.sequence(g.text(","), this.#space, item), Math.max(0, min - 1), max - 1);
    const items = g.sequence(this.#space, item, more, this.#space);
    return g.sequence(g.text("["), g.choice(min === 0 ? this.#space : nothing, max === 0 ? nothing : items), g.text("]"));
  }
  /** An array with an item for each of these, and then up to `maxMore` of `more`. */
  tuple(items: readonly Expression[], more: Expression, maxMore: number): Expression {
    const g = this.grammar;
    if (items.length === 0) return this.array(more, 0, more === nothing ? 0 : maxMore);
    const comma = g.sequence(g.text(","), this.#space);
    const listed = items.flatMap((item, i) => (i === 0 ? [item] : [comma, item]));
    const rest = g.repeat(g.sequence(comma, more), 0, more === nothing ? 0 : maxMore);
    return g.sequence(g.text("["), this.#space, ...listed, rest, this.#space, g.text("]"));
  }
  /** An object with these properties in this order, then any number of others with values of `additional` (only where none is listed). */
  object(
    properties: readonly { readonly name: string; readonly value: Expression; readonly required: boolean }[],
    additional: Expression,
    minAdditional: number,
  ): Expression {
    const g = this.grammar;
    const comma = g.sequence(g.text(","), this.#space);
    const colon = g.sequence(g.text(":"), g.optional(g.text(" ")));
    // From the last property to the first: what may follow where something was written before, and where nothing was.
    let [after, first]: [Expression, Expression] = [empty, empty];
    if (properties.length === 0 && additional !== nothing) {
      const pair = g.sequence(this.string(), colon, additional);
      const more = g.repeat(g.sequence(comma, pair), Math.max(0, minAdditional - 1), Number.POSITIVE_INFINITY);
      first = g.choice(minAdditional === 0 ? empty : nothing, g.sequence(pair, more));
    }
    for (const { name, value, required } of properties.toReversed()) {
      const pair = g.sequence(this.literal(name), colon, value);
      const [skipAfter, skipFirst] = required ? [nothing, nothing] : [after, first];
      first = g.choice(g.sequence(pair, after), skipFirst);
      after = g.choice(g.sequence(comma, pair, after), skipAfter);
    }
    const hasText = g.sequence(this.#space, first, this.#space);
    return g.sequence(g.text("{"), hasText, g.text("}"));
  }

  /** Any number: -0.5, 12, 3e-7. */
  number(): Expression {
    const g = this.grammar;
    const exponent = g.sequence(
      g.bytes([code("e"), code("e")], [code("E"), code("E")]),
      g.optional(g.bytes([code("+"), code("+")], [code("-"), code("-")])),
      g.repeat(this.#digit, 1, 2),
    );
    return g.sequence(g.optional(g.text("-")), this.whole(0, Number.POSITIVE_INFINITY), g.optional(this.#fraction()), g.optional(exponent));
  }
  /** Any whole number. */
  integer(): Expression {
    return this.integerBetween(Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY);
  }
  integerBetween(min: number, max: number): Expression {
    const negative = this.grammar.sequence(this.grammar.text("-"), this.whole(Math.max(1, -max), -min));
    return this.grammar.choice(negative, this.whole(Math.max(0, min), max));
  }
  /**
   * Decimal numbers within bounds: a whole part with every fraction that stays inside, so bounds less than one apart may hold none. The
   * bounds themselves are left out where `exclusive` says so.
   */
  numberBetween(min: number, max: number, exclusive: { readonly min: boolean; readonly max: boolean }): Expression {
    const g = this.grammar;
    const low = exclusive.min && Number.isInteger(min) ? min + 1 : Math.ceil(min);
    const high = exclusive.max && Number.isInteger(max) ? max - 1 : Math.floor(max);
    // n.f is in [n, n + 1): from the least whole number at or above min to the last whose successor is at or below max.
    const up = g.sequence(this.whole(Math.max(0, Math.ceil(min)), Math.floor(max) - 1), this.#fraction(exclusive.min));
    const down = g.sequence(g.text("-"), this.whole(Math.max(0, Math.ceil(-max)), Math.floor(-min) - 1), this.#fraction(exclusive.max));
    return g.choice(low <= high ? this.integerBetween(low, high) : nothing, up, down);
  }
  /** `.5`; with `positive`, not only zeros. */
  #fraction(positive = false): Expression {
    const g = this.grammar;
    const digits = positive
      ? g.sequence(g.repeat(this.#digit, 0, maxDigits - 1), g.bytes([code("1"), code("9")]))
      : g.repeat(this.#digit, 1, maxDigits);
    return g.sequence(g.text("."), digits);
  }
  /** Whole numbers from `min` (at least 0) to `max` without leading zeros, of 15 digits at most. */
  whole(min: number, max: number): Expression {
    const g = this.grammar;
    const [from, to] = [Math.ceil(min), Math.min(Math.floor(max), 10 ** maxDigits - 1)];
    const lengths = Array.from({ length: maxDigits }, (_, i) => {
      const low = Math.max(from, i === 0 ? 0 : 10 ** i);
      const high = Math.min(to, 10 ** (i + 1) - 1);
      return low > high ? nothing : this.#digitsBetween(String(low), String(high));
    });
    return g.choice(...lengths);
  }
  /** Digit strings of one length in order between two. */
  #digitsBetween(low: string, high: string): Expression {
    const g = this.grammar;
    if (low === "") return empty;
    const rest = low.length - 1;
    if (/^0*$/.test(low.slice(1)) && /^9*$/.test(high.slice(1)))
      return g.sequence(g.bytes([code(low), code(high)]), g.repeat(this.#digit, rest, rest));
    if (low[0] === high[0]) return g.sequence(g.text(low.slice(0, 1)), this.#digitsBetween(low.slice(1), high.slice(1)));
    return g.choice(
      g.sequence(g.text(low.slice(0, 1)), this.#digitsBetween(low.slice(1), "9".repeat(rest))),
      g.sequence(g.bytes([code(low) + 1, code(high) - 1]), g.repeat(this.#digit, rest, rest)),
      g.sequence(g.text(high.slice(0, 1)), this.#digitsBetween("0".repeat(rest), high.slice(1))),
    );
  }
}

/** A code point of a string: as it is, or escaped. */
function character(g: Grammar): Expression {
  const tail = g.bytes([0x80, 0xbf]);
  const hex = g.bytes([code("0"), code("9")], [code("a"), code("f")], [code("A"), code("F")]);
  // \ud800 to \udfff are halves of characters.
  const upper = g.choice(
    g.sequence(
      g.bytes([code("0"), code("9")], [code("a"), code("c")], [code("A"), code("C")], [code("e"), code("f")], [code("E"), code("F")]),
      hex,
    ),
    g.sequence(g.bytes([code("d"), code("d")], [code("D"), code("D")]), g.bytes([code("0"), code("7")])),
  );
  const simple = g.bytes(...Array.from('"\\/bfnrt', (c) => [code(c), code(c)] as const));
  return g.choice(
    g.bytes([0x20, 0x21], [0x23, 0x5b], [0x5d, 0x7f]),
    g.sequence(g.bytes([0xc2, 0xdf]), tail),
    g.sequence(g.bytes([0xe0, 0xe0]), g.bytes([0xa0, 0xbf]), tail),
    g.sequence(g.bytes([0xe1, 0xec], [0xee, 0xef]), tail, tail),
    g.sequence(g.bytes([0xed, 0xed]), g.bytes([0x80, 0x9f]), tail),
    g.sequence(g.bytes([0xf0, 0xf0]), g.bytes([0x90, 0xbf]), tail, tail),
    g.sequence(g.bytes([0xf1, 0xf3]), tail, tail, tail),
    g.sequence(g.bytes([0xf4, 0xf4]), g.bytes([0x80, 0x8f]), tail, tail),
    g.sequence(g.text("\\"), g.choice(simple, g.sequence(g.text("u"), upper, hex, hex))),
  );
}
