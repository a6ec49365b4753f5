import fc from "fast-check";
import { expect, test } from "vitest";
import { callSchema, ToolCallParser, type ToolMode } from "./tool-calls.ts";

/** What a parser says of a text that comes in these pieces. */
function read(
  pieces: readonly string[],
  mode: ToolMode = { kind: "auto" },
  parallel = true,
): { content: string; calls: [string, unknown][] } {
  const parser = new ToolCallParser(["f", "g"], mode, { parallel });
  const told = [...pieces.map((piece) => parser.push(piece)), parser.end()];
  return {
    content: told.map(({ content }) => content).join(""),
    calls: told.flatMap(({ calls }) => calls).map((call) => [call.name, JSON.parse(call.arguments)]),
  };
}

test.each<[string, string, [string, unknown][]]>([
  ["plain text", "plain text", []],
  ['<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [["f", { a: 1 }]]],
  [
    'I look.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "g", "arguments": {"b": [2]}}</tool_call>',
    "I look.\n",
    [
      ["f", {}],
      ["g", { b: [2] }],
    ],
  ],
  // Llama 3 and Mistral.
  ['{"name": "g", "parameters": {"x": "y"}}', "", [["g", { x: "y" }]]],
  [
    '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]',
    "",
    [
      ["f", {}],
      ["g", {}],
    ],
  ],
  // An end token took the place of the closing tag.
  ['<tool_call>{"name": "f", "arguments": {}}', "", [["f", {}]]],
  // Neither a known function nor JSON: then it is what was said.
  ['{"name": "h", "arguments": {}}', '{"name": "h", "arguments": {}}', []],
  ["<tool_call>nonsense</tool_call>", "<tool_call>nonsense</tool_call>", []],
  ["{ not JSON", "{ not JSON", []],
  ["a < b and <tool", "a < b and <tool", []],
])("%j has its calls found, however it is cut into pieces", (text, content, calls) => {
  fc.assert(
    fc.property(fc.array(fc.nat(text.length), { maxLength: 8 }), (cuts) => {
      const places = [0, ...cuts.toSorted((a, b) => a - b), text.length];
      const pieces = places.slice(1).map((place, i) => text.slice(places[i], place));
      expect(read(pieces)).toEqual({ content, calls });
    }),
    { numRuns: 50 },
  );
});

test("text that can be no call is passed on at once", () => {
  const parser = new ToolCallParser(["f"], { kind: "auto" });
  expect(parser.push("Hello <").content).toBe("Hello ");
  expect(parser.push("b>").content).toBe("<b>");
});

test("a call that was asked for by name is the whole text; one that was asked for is JSON with its name", () => {
  expect(read(['{"a"', ": 1}"], { kind: "named", name: "g" })).toEqual({ content: "", calls: [["g", { a: 1 }]] });
  expect(read(['{"name": "f", ', '"arguments": {}}'], { kind: "required" })).toEqual({ content: "", calls: [["f", {}]] });
});

test("without parallel calls the first one is taken", () => {
  const text = '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g", "arguments": {}}</tool_call>';
  expect(read([text], { kind: "auto" }, false).calls).toEqual([["f", {}]]);
});

test("the schema of a call names each function with its own arguments", () => {
  const parameters = { type: "object", properties: { a: { type: "integer" } } };
  expect(callSchema([{ name: "f", parameters }])).toEqual({
    type: "object",
    properties: { name: { const: "f" }, arguments: parameters },
    required: ["name", "arguments"],
    additionalProperties: false,
  });
  expect(callSchema([{ name: "f" }, { name: "g" }])).toMatchObject({ anyOf: [{}, { properties: { name: { const: "g" } } }] });
});
