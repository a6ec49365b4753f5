/** Text from models. */
export { generateIds, generateText, type FinishReason, type GenerateOptions, type Generation } from "./generate.ts";
export {
  adjustLogits,
  adjustsLogits,
  argmax,
  checkLargestLogit,
  checkSamplingOptions,
  drawToken,
  greedy,
  historyOf,
  sampleToken,
  samplingOptions,
  type SamplingOptions,
  type TokenHistory,
} from "./sampler.ts";
export { StoppedText } from "./stopped-text.ts";
