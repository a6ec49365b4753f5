/**
 * Bytes as text, in the two ways vocabularies spell them.
 *
 * - The byte-level alphabet of GPT-2: each of the 256 bytes is one printable character. Bytes that Latin-1 prints
 *   (0x21..0x7E, 0xA1..0xAC, 0xAE..0xFF) stand for themselves, the other 68 are U+0100, U+0101, ... in order.
 * - The byte tokens of SentencePiece: `<0x00>` .. `<0xFF>`.
 */

/** Code point of each byte in the byte-level alphabet. */
export function byteAlphabet(): Uint16Array {
  const alphabet = new Uint16Array(256);
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}

/** Byte of each code point of the alphabet, -1 elsewhere; 324 entries. */
export function byteAlphabetInverse(): Int16Array {
  const inverse = new Int16Array(324).fill(-1);
  byteAlphabet().forEach((codePoint, byte) => {
    inverse[codePoint] = byte;
  });
  return inverse;
}

/** UTF-8 text in the byte-level alphabet: " a" becomes "Ġa". */
export function toByteLevel(text: string, alphabet: Uint16Array): string {
  return String.fromCharCode(...Array.from(new TextEncoder().encode(text), (byte) => alphabet[byte] as number));
}

/** Bytes of a piece in the byte-level alphabet; undefined if it holds another character. */
export function fromByteLevel(piece: string, inverse: Int16Array): Uint8Array | undefined {
  const bytes = new Uint8Array(piece.length);
  for (let i = 0; i < piece.length; i++) {
    const byte = inverse[piece.charCodeAt(i)] ?? -1;
    if (byte < 0) return undefined;
    bytes[i] = byte;
  }
  return bytes;
}

/** `<0x0A>` for 10. */
export function byteToken(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
}

/** 10 for `<0x0A>`; -1 for anything else. */
export function byteOfToken(piece: string): number {
  return /^<0x[0-9A-Fa-f]{2}>$/.test(piece) ? Number.parseInt(piece.slice(3, 5), 16) : -1;
}
