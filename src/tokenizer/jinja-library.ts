/** The parts of `@huggingface/jinja` that chat.ts uses, typed here: its declarations import without file extensions,
 * which Node's module resolution does not find. */

import * as library from "@huggingface/jinja";

export interface JinjaValue {
  readonly value: unknown;
}

export interface JinjaEnvironment {
  set(name: string, value: unknown): unknown;
}

interface Library {
  readonly Environment: new () => JinjaEnvironment;
  readonly Interpreter: new (environment: JinjaEnvironment) => {
    evaluate(statement: unknown, environment: JinjaEnvironment): JinjaValue;
    run(program: unknown): JinjaValue;
  };
  readonly tokenize: (source: string, options: { readonly lstrip_blocks: boolean; readonly trim_blocks: boolean }) => unknown;
  readonly parse: (tokens: unknown) => unknown;
}

export const { Environment, Interpreter, tokenize, parse } = library as unknown as Library;
