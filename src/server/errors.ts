/**
 * Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}` under a status. What a worker thread says crosses
 * to the main thread as plain data (`ErrorData`), for a class does not survive the way.
 */
import { MoeError } from "../util/errors.ts";

/** An error as data: what goes over the wire, with its status. */
export interface ErrorData {
  readonly status: number;
  readonly message: string;
  readonly type: string;
  readonly param: string | null;
  readonly code: string | null;
}

/** An error with the answer that it becomes. */
export class ApiError extends Error {
  readonly data: ErrorData;
  /** Seconds after which another try makes sense, or null. */
  readonly retryAfter: number | null;
  constructor(status: number, message: string, options: Partial<Omit<ErrorData, "status" | "message">> & { retryAfter?: number } = {}) {
    super(message);
    this.name = "ApiError";
    const { type = typeOf(status), param = null, code = null, retryAfter = null } = options;
    this.data = { status, message, type, param, code };
    this.retryAfter = retryAfter;
  }
}

/** OpenAI's names for who is to blame. */
function typeOf(status: number): string {
  if (status === 401) return "authentication_error";
  if (status === 429) return "rate_limit_error";
  return status >= 500 ? "server_error" : "invalid_request_error";
}

/** A request that cannot be served as it is. */
export function badRequest(message: string, param: string | null = null, code: string | null = null): ApiError {
  return new ApiError(400, message, { param, code });
}

/** Any error as data. `usage`, `unsupported` and `configuration` are the request's fault where a request caused them; the rest is ours. */
export function errorData(error: unknown, { blameRequest = false }: { readonly blameRequest?: boolean } = {}): ErrorData {
  if (error instanceof ApiError) return error.data;
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof MoeError) {
    const isTheirs = blameRequest || error.kind === "usage" || error.kind === "unsupported" || error.kind === "configuration";
    const status = isTheirs && error.kind !== "internal" ? 400 : error.kind === "communication" || error.kind === "resource" ? 503 : 500;
    return { status, message, type: typeOf(status), param: null, code: error.kind };
  }
  return { status: 500, message: `internal error: ${message}`, type: "server_error", param: null, code: "internal" };
}

/** The error that `errorData` was made of, as far as an answer needs it. */
export function fromErrorData({ status, message, type, param, code }: ErrorData): ApiError {
  return new ApiError(status, message, { type, param, code });
}

/** The body of an answer. */
export function errorBody({ message, type, param, code }: ErrorData): { error: Omit<ErrorData, "status"> } {
  return { error: { message, type, param, code } };
}
