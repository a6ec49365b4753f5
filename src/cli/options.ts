/** Parsers of option values, for commander. */
import { InvalidArgumentError } from "commander";

/** Parser of an option that must be a whole number of at least `minimum`. */
export function wholeNumber(minimum: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!Number.isSafeInteger(value) || value < minimum || text.trim() === "") {
      throw new InvalidArgumentError(`expected a whole number of at least ${minimum}.`);
    }
    return value;
  };
}

/** Where `moe dashboard` is unless told otherwise. */
export const defaultDashboardPort = 7007;

/** Parser of a port. */
export function port(text: string): number {
  const value = wholeNumber(0)(text);
  if (value > 65_535) throw new InvalidArgumentError("expected 0 to 65535.");
  return value;
}

/** Parser of an option that must be a finite number of at least `minimum`. */
export function decimal(minimum: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!Number.isFinite(value) || value < minimum || text.trim() === "")
      throw new InvalidArgumentError(`expected a number of at least ${minimum}.`);
    return value;
  };
}

/** Parser of a list of finite numbers of at least `minimum`, with commas between. */
export function numbers(minimum: number): (text: string) => number[] {
  const one = decimal(minimum);
  return (text) => text.split(",").map((item) => one(item));
}

/** Collects a repeatable option. */
export function collected(value: string, before: readonly string[]): string[] {
  return [...before, value];
}
