import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { embedding } from "./embedding.ts";

describe("embedding", () => {
  it("has the gradients of finite differences, with repeated and absent ids", () => {
    checkGradients({
      inputs: { table: { shape: [5, 3] } },
      run: ({ table }, engine) => (table ? [embedding(table, engine.from([4, 0, 4, 4, 2], [5], "i32"))] : []),
    });
  });
  it("takes rows by id", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const table = engine.from([1, 2, 3, 4, 5, 6], [3, 2], "f32");
        expect([...embedding(table, engine.from([2, 0], [2], "i32")).toFloat32Array()]).toEqual([5, 6, 1, 2]);
        expect(() => embedding(table, engine.zeros([2], "f32"))).toThrow("embedding: ids must be [*] i32, got [2] f32");
      }),
    );
  });
});
