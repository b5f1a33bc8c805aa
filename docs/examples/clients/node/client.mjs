// Calls a neox-serve gateway from Node: a stream, a chat, deadlines, error details and retries.
//
//   node client.mjs HOST:PORT [FOLDER_WITH_PROTOS]
//
// NEOX_SERVE_API_KEY holds the API key, if the gateway wants one.
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const [address = "127.0.0.1:50051", protos = fileURLToPath(new URL("../../../../protos", import.meta.url))] = process.argv.slice(2);

const definition = protoLoader.loadSync("neox_serve/v1/inference_service.proto", {
  includeDirs: [protos],
  keepCase: true, // field names as in the .proto files
  longs: String, // 64-bit seeds do not fit a JavaScript number
  enums: String,
  oneofs: true,
});
const { InferenceService } = grpc.loadPackageDefinition(definition).neox_serve.v1;
const client = new InferenceService(address, grpc.credentials.createInsecure());

// --8<-- [start:details]
// The details of an error travel as a google.rpc.Status in the trailing metadata `grpc-status-details-bin`.
const details = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
  message BadRequest { message FieldViolation { string field = 1; string description = 2; } repeated FieldViolation field_violations = 1; }
`, { keepCase: true }).root;

function explain(error) {
  const explained = { code: grpc.status[error.code], message: error.details, retryDelayMs: null, violations: [] };
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (packed === undefined) return explained;
  for (const { type_url, value } of details.lookupType("Status").decode(packed).toJSON().details ?? []) {
    const type = details.lookupType(type_url.split("google.rpc.")[1]);
    const detail = type.toObject(type.decode(Buffer.from(value, "base64")), { longs: Number, defaults: true });
    if (type.name === "ErrorInfo") explained.reason = detail.reason;
    if (type.name === "BadRequest") explained.violations = detail.field_violations;
    if (type.name === "RetryInfo") explained.retryDelayMs = detail.retry_delay.seconds * 1000 + detail.retry_delay.nanos / 1e6;
  }
  return explained;
}
// --8<-- [end:details]

// --8<-- [start:calls]
// A deadline goes with every call: the server frees everything when it passes.
function options(seconds) {
  return { deadline: Date.now() + seconds * 1000 };
}

function metadata() {
  const headers = new grpc.Metadata();
  if (process.env.NEOX_SERVE_API_KEY) headers.set("authorization", `Bearer ${process.env.NEOX_SERVE_API_KEY}`);
  return headers;
}

function generate(request, seconds = 60) {
  return new Promise((resolve, reject) => {
    client.Generate(request, metadata(), options(seconds), (error, response) => (error ? reject(error) : resolve(response)));
  });
}

// Tries again only if the server says when. The request id stays the same, so a repeat never runs twice.
async function generateWithRetries(request, attempts = 4) {
  const repeatable = { request_id: crypto.randomUUID(), ...request };
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await generate(repeatable);
    } catch (error) {
      const { retryDelayMs } = explain(error);
      if (retryDelayMs === null || attempt === attempts) throw error;
      console.log(`retry in ${retryDelayMs} ms`);
      await new Promise((resolve) => setTimeout(resolve, retryDelayMs));
    }
  }
}

// Prints chunks as they come and returns the final event. Leaving the loop early would cancel the call.
async function stream(request, seconds = 60) {
  let final;
  for await (const event of client.StreamGenerate(request, metadata(), options(seconds))) {
    if (event.event === "chunk") process.stdout.write(event.chunk.text);
    else final = event.final;
  }
  process.stdout.write("\n");
  return final;
}
// --8<-- [end:calls]

const parameters = { sampling: { temperature: 0 }, stopping: { max_tokens: 16 } };

const completed = await generateWithRetries({ prompts: [{ text: "def fibonacci(n):" }], parameters });
console.log("completion:", JSON.stringify(completed.results[0].completions[0].text));

const final = await stream({ prompt: { text: "import os\n" }, parameters });
console.log("final:", final.finishes[0].reason, final.usage.completion_tokens, "tokens");

const chat = { messages: [{ role: "user", content: "What does os.listdir do?" }] };
const reply = await generate({ prompts: [{ chat }], parameters }).catch(explain);
console.log("chat:", reply.results ? JSON.stringify(reply.results[0].completions[0].text) : reply.message);

await generate({ prompts: [{ text: "x" }], parameters: { sampling: { temperature: -1 } } }).catch((error) => {
  const { code, reason, violations } = explain(error);
  console.log("error:", code, reason, violations[0].field);
});

await generate({ prompts: [{ text: "x" }], parameters: { stopping: { max_tokens: 1000, ignore_eos: true } } }, 0.05).catch((error) => {
  console.log("deadline:", explain(error).code);
});
client.close();
