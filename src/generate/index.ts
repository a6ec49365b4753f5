/** Text from models. */
export { generateIds, generateText, type FinishReason, type GenerateOptions, type Generation } from "./generate.ts";
export { argmax, checkSamplingOptions, greedy, sampleToken, type SamplingOptions } from "./sampler.ts";
