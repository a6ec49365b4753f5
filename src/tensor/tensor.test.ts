import { describe, expect, it } from "vitest";
import { withEngine } from "../../test/gradcheck.ts";
import { createReferenceBackend } from "../backend/reference/index.ts";
import { Engine } from "./engine.ts";

describe("Tensor", () => {
  it("copies data in and out, rounding f32 to bf16 to nearest even", () => {
    withEngine((engine) =>
      engine.scope(() => {
        expect([...engine.from([1.5, -2, 3], [3], "f32").toFloat32Array()]).toEqual([1.5, -2, 3]);
        // bf16 has 8 bits of significand: 1 + 1/256 lies half way and goes to the even 1, 1 + 3/256 to 1 + 4/256.
        expect([...engine.from([1 + 1 / 256, 1 + 3 / 256], [2], "bf16").toFloat32Array()]).toEqual([1, 1 + 4 / 256]);
        expect([...engine.from([1, -7], [2], "i32").toInt32Array()]).toEqual([1, -7]);
        expect(() => engine.from([1, 2], [3], "f32")).toThrow("2 elements for a tensor of shape [3]");
        expect(() => engine.zeros([1], "f32").toInt32Array()).toThrow("toInt32Array of a f32 tensor");
      }),
    );
  });
  it("views the same elements under another shape, one size inferred", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.from([1, 2, 3, 4, 5, 6], [2, 3], "f32");
        const view = x.view(3, -1);
        expect(view.shape).toEqual([3, 2]);
        expect(view.valueId).toBe(x.valueId);
        expect(view.ptr).toBe(x.ptr);
        expect(() => x.view(4, -1)).toThrow("view of [2, 3] as [4, -1]");
        expect(() => x.view(-1, -1)).toThrow("element counts differ");
      }),
    );
  });
  it("gives runs of rows that share memory but are values of their own", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.from([1, 2, 3, 4, 5, 6], [3, 2], "bf16");
        const rows = x.rows(1, 3);
        expect([...rows.toFloat32Array()]).toEqual([3, 4, 5, 6]);
        expect(rows.valueId).not.toBe(x.valueId);
        expect(x.rows(2, 2).size).toBe(0);
        expect(() => x.rows(1, 4)).toThrow("rows 1..4 of a tensor of shape [3, 2]");
      }),
    );
  });
  it("frees memory when the last handle goes, and cannot be used after its own disposal", () => {
    withEngine((engine) => {
      const x = engine.from([1, 2], [2], "f32");
      const view = x.view(1, 2);
      x.dispose();
      x.dispose();
      expect(() => x.ptr).toThrow("use of a disposed tensor of shape [2]");
      expect([...view.toFloat32Array()]).toEqual([1, 2]);
      view.dispose();
      expect(engine.backend.liveBytes).toBe(0);
      expect(() => view.view(2)).toThrow("view of a disposed tensor");
    });
  });
  it("reads its only element as a number", () => {
    withEngine((engine) =>
      engine.scope(() => {
        expect(engine.from([7], [1, 1], "i32").item()).toBe(7);
        expect(engine.from([0.5], [1], "bf16").item()).toBe(0.5);
        expect(() => engine.zeros([2], "f32").item()).toThrow("item() of a tensor of shape [2]");
        expect(engine.zeros([2, 3], "f32").dim(-1)).toBe(3);
        expect(() => engine.zeros([2], "f32").dim(1)).toThrow("dimension 1 of a tensor of shape [2]");
      }),
    );
  });
});

describe("Engine", () => {
  it("frees everything a scope made except what it returns, however deep", () => {
    withEngine((engine) => {
      const kept = engine.scope(() => {
        const inner = engine.scope(() => {
          engine.zeros([100], "f32");
          return { list: [engine.from([1], [1], "f32")], other: engine.zeros([100], "f32") };
        });
        return inner.list;
      });
      expect(engine.backend.liveBytes).toBe(4);
      expect(kept[0]?.item()).toBe(1);
      kept[0]?.dispose();
    });
  });
  it("frees what a scope made when it throws", () => {
    withEngine((engine) => {
      expect(() =>
        engine.scope(() => {
          engine.zeros([3], "f32");
          throw new Error("no");
        }),
      ).toThrow("no");
      expect(engine.backend.liveBytes).toBe(0);
    });
  });
  it("fills odd byte lengths with zeros", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.from([1, 2, 3], [3], "bf16");
        engine.fillZero(x);
        expect([...x.toFloat32Array()]).toEqual([0, 0, 0]);
      }),
    );
  });
  it("calls release once when the last handle of wrapped memory goes", () => {
    const backend = createReferenceBackend();
    using engine = new Engine(backend);
    const ptr = backend.alloc(8);
    let released = 0;
    const x = engine.wrap(ptr, [2], "f32", () => {
      released++;
      backend.free(ptr);
    });
    const again = x.retain();
    x.dispose();
    expect(released).toBe(0);
    again.dispose();
    expect(released).toBe(1);
    expect(backend.liveBytes).toBe(0);
  });
  it("refuses shapes that are no sizes", () => {
    withEngine((engine) => {
      expect(() => engine.empty([2, -1], "f32")).toThrow("a tensor of shape [2, -1]");
      expect(() => engine.empty([1.5], "f32")).toThrow("a tensor of shape [1.5]");
    });
  });
});
