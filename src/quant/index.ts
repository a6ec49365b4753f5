/** FP8: formats, scales and what checkpoints say of them. Kernels are the backend's, loading and `moe quantize` the model layer's. */
export {
  activationScheme,
  checkActivations,
  checkLayout,
  checkQuantizationConfig,
  defaultLayout,
  fp8Layouts,
  recordedActivations,
  scaleName,
  storedScaleShape,
  writeQuantizationConfig,
  type Fp8Layout,
  type RecordedActivations,
} from "./config.ts";
export { dequantize, noteLargest, numScales, scaleIndex, scalesFor, scaleShape, scalingOfShape } from "./scales.ts";
export { decodeFp8, encodeFp8, fp8Largest, fp8Values, type Fp8Format } from "../util/fp8.ts";
