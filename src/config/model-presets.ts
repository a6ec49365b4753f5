/** Published models and the small one of the quickstart, as configurations. Sizes are from the releases' `config.json`. */
import { plainRouting, type ModelConfig } from "./model.ts";

const llamaLike = {
  architecture: "llama",
  normEps: 1e-5,
  ropeTheta: 10_000,
  ropeScaling: null,
  tiedEmbeddings: false,
  qkvBias: false,
  qkNorm: "none",
  slidingWindow: null,
  moe: null,
  initStd: 0.02,
  bosTokenId: 1,
  eosTokenIds: [2],
  padTokenId: null,
} as const satisfies Partial<ModelConfig>;

/** Skywork-13B (arXiv 2310.19341). */
const skywork13b = {
  ...llamaLike,
  architecture: "skywork",
  vocabSize: 65_519,
  hiddenSize: 4608,
  ffnSize: 12_288,
  numLayers: 52,
  numHeads: 36,
  numKvHeads: 36,
  headDim: 128,
  normEps: 1e-6,
  maxPositions: 4096,
  initStd: 0.01,
  padTokenId: 0,
} as const satisfies ModelConfig;

export const modelPresets = {
  /** The dense model of `moe quickstart`. */
  quickstart: {
    ...llamaLike,
    vocabSize: 2048,
    hiddenSize: 192,
    ffnSize: 512,
    numLayers: 4,
    numHeads: 6,
    numKvHeads: 3,
    headDim: 32,
    maxPositions: 512,
    tiedEmbeddings: true,
    bosTokenId: 0,
    eosTokenIds: [0],
    initStd: 0.05,
  },
  /** SmolLM2-135M: 134.5M parameters. */
  "smollm2-135m": {
    ...llamaLike,
    vocabSize: 49_152,
    hiddenSize: 576,
    ffnSize: 1536,
    numLayers: 30,
    numHeads: 9,
    numKvHeads: 3,
    headDim: 64,
    ropeTheta: 100_000,
    maxPositions: 8192,
    tiedEmbeddings: true,
    initStd: 1 / 24,
    bosTokenId: 0,
    eosTokenIds: [0],
  },
  "skywork-13b": skywork13b,
  /** Skywork-MoE (arXiv 2406.06563): 146.36B parameters, 22.69B active. */
  "skywork-moe": {
    ...skywork13b,
    architecture: "skywork_moe",
    vocabSize: 65_532,
    maxPositions: 8192,
    moe: {
      ...plainRouting,
      numExperts: 16,
      topK: 2,
      expertFfnSize: 12_288,
      gateNormalization: { lambda: 1, eps: 0, unbiased: true },
    },
  },
  /** Mixtral 8x7B (arXiv 2401.04088): 46.70B parameters, 12.88B active. */
  "mixtral-8x7b": {
    ...llamaLike,
    architecture: "mixtral",
    vocabSize: 32_000,
    hiddenSize: 4096,
    ffnSize: 14_336,
    numLayers: 32,
    numHeads: 32,
    numKvHeads: 8,
    headDim: 128,
    ropeTheta: 1_000_000,
    maxPositions: 32_768,
    moe: { ...plainRouting, numExperts: 8, topK: 2, expertFfnSize: 14_336 },
  },
} as const satisfies Readonly<Record<string, ModelConfig>>;

export type ModelPresetName = keyof typeof modelPresets;
