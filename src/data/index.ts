/** Text to tokens to batches. */
export { Dataset, type DatasetOptions, type TokenBatch } from "./dataset.ts";
export { readDocuments, type ChatMessage, type DocumentFormat, type DocumentSource, type SourceDocument } from "./documents.ts";
export { TokenFile, TokenFileWriter, type FileMapper, type MappedBytes, type TokenFileHeader } from "./token-file.ts";
export { prepareTokens, type EncodedConversation, type TokenizeOptions, type TokenizeProgress } from "./tokenize.ts";
