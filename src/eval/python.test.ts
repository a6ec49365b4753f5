import { describe, expect, test } from "vitest";
import { countWords, PythonRandom, strip, stripEnd, toPythonString } from "./python.ts";

describe("PythonRandom", () => {
  // Expected numbers: CPython 3.11, random.Random(1234).
  test("draws CPython's numbers", () => {
    const random = new PythonRandom(1234);
    expect([random.uint32(), random.uint32()]).toEqual([4150886329, 3342196574]);
  });
  test("draws CPython's samples, from large and from small populations, one after the other", () => {
    const random = new PythonRandom(1234);
    const population = Array.from({ length: 7473 }, (_, i) => i);
    expect(random.sample(population, 5)).toEqual([6374, 3610, 957, 61, 742]);
    expect(random.sample(population, 5)).toEqual([7462, 6610, 4769, 286, 5501]);
    expect(random.sample(population.slice(0, 20), 5)).toEqual([2, 3, 11, 7, 0]);
    expect(random.sample(population.slice(0, 100), 8)).toEqual([3, 2, 44, 82, 79, 61, 78, 59]);
  });
});

test("white space is Python's: U+0085 and U+001C are, a byte order mark is not", () => {
  expect(strip("\u0085\u001c\u3000 a b \n")).toBe("a b");
  expect(strip("\ufeffa")).toBe("\ufeffa");
  expect(stripEnd(" a \t")).toBe(" a");
});

test("words are counted as re.split counts them: white space at an end makes an empty word", () => {
  expect(countWords("to be or")).toBe(3);
  expect(countWords(" to  be\n")).toBe(4);
  expect(countWords("")).toBe(1);
});

test("values are written as str() writes them", () => {
  expect([true, false, null, 3, "x"].map(toPythonString)).toEqual(["True", "False", "None", "3", "x"]);
});
