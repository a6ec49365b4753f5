import { describe, expect, test } from "vitest";
import { findClusterPreset, numDevices, parseClusterConfig, withNumDevices } from "./cluster.ts";
import { clusterPresets } from "./cluster-presets.ts";

const file = clusterPresets["a100-80"];

describe("clusters", () => {
  test.each(Object.keys(clusterPresets))("preset %s is complete", (name) => {
    const cluster = findClusterPreset(name);
    expect(cluster.nodes[0]?.device.peakFlops.f32).toBeGreaterThan(0);
    expect(cluster.inter.bandwidth).toBeGreaterThan(0);
    // What a file that spells everything out means is the same.
    expect(parseClusterConfig(structuredClone(cluster))).toEqual(cluster);
  });

  test("presets are found whatever the case of their name", () => {
    expect(findClusterPreset("H100").name).toBe("h100");
  });

  test("an unknown cluster, device or link names the nearest and lists all", () => {
    expect(() => findClusterPreset("a10080")).toThrow(/unknown cluster "a10080" \(did you mean "a100-80"\?\); known: a100-40, /);
    const device = { ...file, nodes: [{ ...file?.nodes[0], device: "A100-8" }] };
    expect(() => parseClusterConfig(device, "mine.json")).toThrow(/mine.json: unknown device "A100-8" \(did you mean "A100-80"\?\)/);
    expect(() => parseClusterConfig({ ...file, inter: "800Gb" }, "mine.json")).toThrow(/mine.json: unknown link "800Gb" .*known: NVLink3/);
  });

  test("an unknown key names the nearest, and values out of range are printed", () => {
    expect(() => parseClusterConfig({ ...file, efficency: {} })).toThrow(/unknown key "efficency" \(did you mean "efficiency"\?\)/);
    const efficiency = { ...file?.efficiency, gemm: 1.5 };
    expect(() => parseClusterConfig({ ...file, efficiency })).toThrow(/efficiency.gemm: .*got 1.5/);
    expect(() => parseClusterConfig({ ...file, nodes: [] })).toThrow(/nodes/);
  });

  test("a cluster grows and shrinks by whole nodes, and below one node to a smaller one", () => {
    const cluster = findClusterPreset("a100-80");
    expect(numDevices(cluster)).toBe(64);
    expect(numDevices(withNumDevices(cluster, 512))).toBe(512);
    expect(withNumDevices(cluster, 4).nodes).toMatchObject([{ devicesPerNode: 4, numNodes: 1 }]);
    expect(() => withNumDevices(cluster, 12)).toThrow("cluster a100-80: 12 devices are not a whole number of nodes (of 8 devices)");
  });

  test("of unequal nodes the first are used first", () => {
    const [a, b] = [findClusterPreset("a100-80"), findClusterPreset("h100")];
    const mixed = {
      ...a,
      nodes: [
        { ...a.nodes[0], numNodes: 2 },
        { ...b.nodes[0], numNodes: 2 },
      ],
    } as typeof a;
    expect(withNumDevices(mixed, 16).nodes.map(({ device, numNodes }) => [device.name, numNodes])).toEqual([["A100-80", 2]]);
    expect(withNumDevices(mixed, 40).nodes.map(({ device, numNodes }) => [device.name, numNodes])).toEqual([
      ["A100-80", 2],
      ["H100", 3],
    ]);
  });
});
