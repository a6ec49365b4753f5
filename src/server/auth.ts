/** The key. Programs send it as a bearer token; a browser asks for it as the password of any user name (the chat page needs it too). */
import { createHash, timingSafeEqual } from "node:crypto";
import { ApiError } from "./errors.ts";

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}

/** A check of an `authorization` header; it throws 401. Without a key everybody may enter. */
export function keyCheck(apiKey: string | null): (authorization: string | undefined) => void {
  if (apiKey === null) return () => undefined;
  const expected = digest(apiKey);
  return (authorization) => {
    const given = keyOf(authorization ?? "");
    if (given === null) throw new ApiError(401, "expected an API key: Authorization: Bearer <key>", { code: "missing_api_key" });
    // Hashes have one length, and comparing them takes as long whatever is wrong.
    if (!timingSafeEqual(digest(given), expected)) throw new ApiError(401, "this API key is not valid here", { code: "invalid_api_key" });
  };
}

function keyOf(authorization: string): string | null {
  const [, scheme, value] = /^(bearer|basic) +(\S+)\s*$/i.exec(authorization) ?? [];
  if (scheme === undefined || value === undefined) return null;
  if (scheme.toLowerCase() === "bearer") return value;
  const pair = Buffer.from(value, "base64").toString("utf8");
  return pair.slice(pair.indexOf(":") + 1);
}
