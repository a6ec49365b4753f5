/**
 * Devices, links and clusters by name, from vendors' data sheets. Peaks are dense; bandwidths are one direction of one device.
 *
 * A800 and H800 are A100 and H100 with a narrower NVLink (400 GB/s in both directions). A card's `f32` is its TF32 where it
 * has tensor cores for it, since that is what PyTorch programs of the time used for matrix products of f32.
 */
import type { ClusterConfig, DeviceConfig, EfficiencyConfig, LinkConfig } from "./cluster.ts";

const GB = 1e9;
const TB = 1e12;
const T = 1e12;

export const devicePresets: Readonly<Record<string, DeviceConfig>> = {
  "A100-40": {
    name: "A100-40",
    peakFlops: { f32: 156 * T, bf16: 312 * T, f16: 312 * T },
    memoryBytes: 40 * 2 ** 30,
    memoryBandwidth: 1.555 * TB,
    numUnits: 108,
  },
  "A100-80": {
    name: "A100-80",
    peakFlops: { f32: 156 * T, bf16: 312 * T, f16: 312 * T },
    memoryBytes: 80 * 2 ** 30,
    memoryBandwidth: 2.039 * TB,
    numUnits: 108,
  },
  A800: {
    name: "A800",
    peakFlops: { f32: 156 * T, bf16: 312 * T, f16: 312 * T },
    memoryBytes: 80 * 2 ** 30,
    memoryBandwidth: 2.039 * TB,
    numUnits: 108,
  },
  H100: {
    name: "H100",
    peakFlops: { f32: 494.5 * T, bf16: 989 * T, f16: 989 * T, fp8: 1979 * T },
    memoryBytes: 80 * 2 ** 30,
    memoryBandwidth: 3.35 * TB,
    numUnits: 132,
  },
  H800: {
    name: "H800",
    peakFlops: { f32: 494.5 * T, bf16: 989 * T, f16: 989 * T, fp8: 1979 * T },
    memoryBytes: 80 * 2 ** 30,
    memoryBandwidth: 3.35 * TB,
    numUnits: 132,
  },
  H200: {
    name: "H200",
    peakFlops: { f32: 494.5 * T, bf16: 989 * T, f16: 989 * T, fp8: 1979 * T },
    memoryBytes: 141 * GB,
    memoryBandwidth: 4.8 * TB,
    numUnits: 132,
  },
  "RTX-4090": {
    name: "RTX-4090",
    peakFlops: { f32: 82.6 * T, bf16: 165.2 * T, f16: 165.2 * T, fp8: 330.3 * T },
    memoryBytes: 24 * 2 ** 30,
    memoryBandwidth: 1.008 * TB,
    numUnits: 128,
  },
  /** One core of a server processor with AVX-512 (`moe doctor` and `moe plan calibrate` know yours better). */
  CPU: {
    name: "CPU",
    peakFlops: { f32: 0.174 * T, bf16: 0.174 * T },
    memoryBytes: 12 * 2 ** 30,
    // What a core moves to and from its caches and memory together: most of a step's bytes are in a cache.
    memoryBandwidth: 30 * GB,
    numUnits: 1,
    productTile: { rows: 16, columns: 12 },
    isHost: true,
  },
};

export const linkPresets: Readonly<Record<string, LinkConfig>> = {
  /** 12 links of 25 GB/s: A100. */
  NVLink3: { name: "NVLink3", bandwidth: 300 * GB, latency: 3e-6 },
  /** 8 links: A800 and H800. */
  "NVLink-400": { name: "NVLink-400", bandwidth: 200 * GB, latency: 3e-6 },
  /** 18 links: H100, H200. */
  NVLink4: { name: "NVLink4", bandwidth: 450 * GB, latency: 3e-6 },
  /** PCI Express 4.0 x16. */
  PCIe4: { name: "PCIe4", bandwidth: 32 * GB, latency: 5e-6 },
  /** Memory of one machine, between its threads. */
  "shared-memory": { name: "shared-memory", bandwidth: 6 * GB, latency: 2e-6 },
  /** A node's 800 Gb/s over 8 devices: four HDR InfiniBand ports, or the RoCE of Skywork's cluster. */
  "800Gb/8": { name: "800Gb/8", bandwidth: 12.5 * GB, latency: 8e-6 },
  /** A node's 1600 Gb/s over 8 devices. */
  "1600Gb/8": { name: "1600Gb/8", bandwidth: 25 * GB, latency: 8e-6 },
  /** A 400 Gb/s port (NDR) for every device. */
  "3200Gb/8": { name: "3200Gb/8", bandwidth: 50 * GB, latency: 8e-6 },
  "10GbE": { name: "10GbE", bandwidth: 1.25 * GB, latency: 30e-6 },
};

/**
 * Round numbers for cards and PyTorch programs: what matrix products and element-wise kernels usually reach, launches from Python, NVSwitch
 * and network as their vendors' collective benchmarks measure them. `moe plan calibrate` replaces them by fitted ones.
 */
export const usualEfficiency: EfficiencyConfig = {
  gemm: 0.8,
  memory: 0.7,
  kernelSeconds: 3e-6,
  hostSeconds: 30e-6,
  microBatchSeconds: 0,
  stepSeconds: 0,
  intraLink: 0.78,
  intraStepSeconds: 10e-6,
  interLink: 0.75,
  interStepSeconds: 15e-6,
  overlap: 0,
  attention: 0.72,
  together: 1,
};

/** A cluster of nodes with 8 cards each. */
function cards(name: string, device: string, intra: string, inter: string, numNodes: number): ClusterFile {
  return { name, nodes: [{ device, devicesPerNode: 8, numNodes, intra }], inter, efficiency: usualEfficiency };
}
/** A cluster as its file says it: devices and links may be names. */
export type ClusterFile = Omit<ClusterConfig, "nodes" | "inter"> & {
  readonly nodes: readonly {
    readonly device: string;
    readonly devicesPerNode: number;
    readonly numNodes: number;
    readonly intra: string;
  }[];
  readonly inter: string;
};

export const clusterPresets: Readonly<Record<string, ClusterFile>> = {
  "a100-40": cards("a100-40", "A100-40", "NVLink3", "800Gb/8", 8),
  "a100-80": cards("a100-80", "A100-80", "NVLink3", "800Gb/8", 8),
  a800: cards("a800", "A800", "NVLink-400", "800Gb/8", 64),
  h100: cards("h100", "H100", "NVLink4", "3200Gb/8", 8),
  h800: cards("h800", "H800", "NVLink-400", "3200Gb/8", 64),
  h200: cards("h200", "H200", "NVLink4", "3200Gb/8", 8),
  "rtx-4090": cards("rtx-4090", "RTX-4090", "PCIe4", "10GbE", 1),
  cpu: {
    name: "cpu",
    nodes: [{ device: "CPU", devicesPerNode: 2, numNodes: 1, intra: "shared-memory" }],
    inter: "10GbE",
    efficiency: {
      ...usualEfficiency,
      // Packing is counted apart.
      gemm: 0.95,
      kernelSeconds: 5e-6,
      hostSeconds: 0,
      stepSeconds: 1e-3,
      interStepSeconds: 30e-6,
      attention: 0.75,
      together: 0.95,
    },
  },
};
