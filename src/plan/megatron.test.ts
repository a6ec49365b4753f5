import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { megatronLayout, parseMegatronLayout } from "./megatron.ts";

const layersOf = (text: string): number[] => parseMegatronLayout(text).map(({ numLayers }) => numLayers);

describe("Megatron's pipeline layout", () => {
  test("reads what Megatron's documentation and comments show", () => {
    // From custom_pipeline_layout.md, without the multi-token-prediction layer: PP16 VPP2, 61 layers.
    const stages = parseMegatronLayout("Et*3|(tt|)*29,L");
    expect(stages).toHaveLength(31);
    expect(stages[0]).toEqual({ embedding: true, numLayers: 3, loss: false });
    expect(stages.slice(1, 30).every(({ numLayers }) => numLayers === 2)).toBe(true);
    expect(stages[30]).toEqual({ embedding: false, numLayers: 0, loss: true });
    // From the comments of parse_str_to_list: xy(ab|cd|ef)*2 repeats a group over stages; (|ab)*2 starts with a border.
    expect(layersOf("Et(tt|t|ttt)*2L")).toEqual([3, 1, 5, 1, 3]);
    expect(layersOf("E(|tt)*2,tL")).toEqual([0, 2, 3]);
  });

  test("runs of equal stages are written once", () => {
    expect(megatronLayout([5, 5, 5, 5, 4])).toBe("Et*5|(t*5|)*3,t*4L");
    expect(megatronLayout([4])).toBe("Et*4L");
    expect(megatronLayout([1, 1])).toBe("Et|tL");
    expect(megatronLayout([5, 5, 5, 5, 5, 5, 4, 4, 4, 4, 4, 2])).toBe("Et*5|(t*5|)*5,(t*4|)*5,t*2L");
  });

  test("what is written is read back, for any stages", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 30 }), { minLength: 1, maxLength: 70 }), (layers) => {
        const stages = parseMegatronLayout(megatronLayout(layers));
        expect(stages.map(({ numLayers }) => numLayers)).toEqual(layers);
        expect(stages.filter(({ embedding }) => embedding)).toHaveLength(1);
        expect(stages.at(-1)?.loss).toBe(true);
      }),
    );
  });

  test("what Megatron refuses is refused, with what is wrong", () => {
    expect(() => parseMegatronLayout("Ettx|L")).toThrow('unknown letter "x"');
    expect(() => parseMegatronLayout("tt|L")).toThrow("one E at the beginning");
    expect(() => parseMegatronLayout("Et|t")).toThrow("one L at the end");
    expect(() => parseMegatronLayout("Et|m|L")).toThrow("multi-token-prediction");
    expect(() => parseMegatronLayout("Et*99999999|L")).toThrow("repetitions");
  });
});
