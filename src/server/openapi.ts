/** The OpenAPI 3.1 document, made from the schemas that requests are checked against. */
import { z } from "zod";
import { operations, type Operation } from "./operations.ts";

const error = {
  type: "object",
  required: ["error"],
  properties: {
    error: {
      type: "object",
      required: ["message", "type", "param", "code"],
      properties: {
        message: { type: "string" },
        type: { type: "string" },
        param: { type: ["string", "null"] },
        code: { type: ["string", "null"] },
      },
    },
  },
};

/** JSON schema of a request's body. */
export function requestSchema(schema: z.ZodType): Record<string, unknown> {
  const { $schema: _, ...json } = z.toJSONSchema(schema, { io: "output" });
  return json;
}

function contentOf(answers: Operation["answers"]): Record<string, unknown> {
  const json = { "application/json": { schema: {} } };
  if (answers === "json or events") return { ...json, "text/event-stream": { schema: { type: "string" } } };
  if (answers === "text") return { "text/plain": { schema: { type: "string" } } };
  return answers === "html" ? { "text/html": { schema: { type: "string" } } } : json;
}

function operationOf({ id, summary, request, answers, path }: Operation): unknown {
  const reference = (name: string): unknown => ({ $ref: `#/components/schemas/${name}` });
  return {
    operationId: id,
    summary,
    ...(path === "/health" ? { security: [] } : {}),
    ...(path.includes("{model}") ? { parameters: [{ name: "model", in: "path", required: true, schema: { type: "string" } }] } : {}),
    ...(request === undefined
      ? {}
      : { requestBody: { required: true, content: { "application/json": { schema: reference(request.name) } } } }),
    responses: {
      "200": { description: "The answer", content: contentOf(answers) },
      default: { description: "An error", content: { "application/json": { schema: reference("Error") } } },
    },
  };
}

export function openApiDocument(version: string): Record<string, unknown> {
  const paths: Record<string, Record<string, unknown>> = {};
  const schemas: Record<string, unknown> = { Error: error };
  for (const operation of operations as readonly Operation[]) {
    (paths[operation.path] ??= {})[operation.method.toLowerCase()] = operationOf(operation);
    if (operation.request !== undefined) schemas[operation.request.name] = requestSchema(operation.request.schema);
  }
  return {
    openapi: "3.1.0",
    info: { title: "moe serve", version, description: "An OpenAI-compatible server of one model." },
    security: [{ bearer: [] }, { basic: [] }, {}],
    paths,
    components: {
      schemas,
      securitySchemes: { bearer: { type: "http", scheme: "bearer" }, basic: { type: "http", scheme: "basic" } },
    },
  };
}
