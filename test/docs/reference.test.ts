/** The generated pages that are committed say what the schemas and the program say now, and the reader of comments reads what it should. */
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { schemaComments, signatureOf } from "../../scripts/docs/comments.ts";
import { renew } from "../../scripts/docs/generated-note.ts";
import { generatedPages } from "../../scripts/docs/pages.ts";

describe("generated references", async () => {
  const pages = await generatedPages();

  test.each(pages.map(({ path, url, text }) => [path, url, text] as const))("%s is what its sources give", (path, url, text) => {
    expect(readFileSync(url, "utf8") === text, `${path} is out of date; to renew it: ${renew}`).toBe(true);
  });

  test("every row of a table has as many cells as its head", () => {
    for (const { path, text } of pages) {
      const rows = text.split("\n").map((line) => (line.startsWith("|") ? line.replaceAll("\\|", "").split("|").length : 0));
      rows.forEach((cells, i) => {
        const above = rows[i - 1] ?? 0;
        if (cells > 0 && above > 0) expect(cells, `${path}, line ${i + 1}`).toBe(above);
      });
    }
  });
});

describe("comments of schemas", () => {
  test("belong to their object and their field, through calls, strings and other comments", () => {
    const source = `
      /** Not a schema's. */
      const other = "z.strictObject({ a: 1 })"; // { (
      /**
       * The outer
       * one.
       */
      const outer = z.strictObject({
        plain: z.string(),
        /** A list. */
        list: z.array(z.strictObject({ /** Deep. */ deep: z.int().min(1), }).strict()).default([]),
        choice: z.enum(["x", "}"]),
      });
      const form = z.union([
        /** First. */
        z.strictObject({ type: z.literal("a"), /** Size. */ size: z.number() }),
        z.strictObject({ type: z.literal("b"), size: z.number() }),
      ]);`;
    const found = [...schemaComments(source)].map(([keys, { text, fields }]) => [keys, text, Object.fromEntries(fields)]);
    expect(found).toEqual([
      ["deep", "", { deep: "Deep." }],
      ["plain,list,choice", "The outer one.", { list: "A list." }],
      ['type="a",size', "First.", { size: "Size." }],
      ['type="b",size', "", {}],
    ]);
    expect(
      signatureOf([
        ["type", '"a"'],
        ["size", undefined],
      ]),
    ).toBe('type="a",size');
  });

  test("are refused where two objects of the same keys say different things", () => {
    expect(() => schemaComments("z.strictObject({ /** One. */ a: 1 }); z.strictObject({ /** Two. */ a: 1 })")).toThrow(
      /keys a and different/,
    );
  });
});
