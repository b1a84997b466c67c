/* The server's OpenAI dialect: its models, and an answer as it comes. */

import { content } from "./transfer";
import type { Call, Failure, Settings, Turn } from "./conversation";

export interface Model {
  id: string;
  context: number | null; // tokens
  images: boolean;
}

export interface Piece {
  text?: string;
  reasoning?: string;
  calls?: { index: number; id?: string; name?: string; arguments?: string }[];
  finish?: string;
  usage?: { promptTokens: number; completionTokens: number };
  omitted?: number; // tokens of the prompt that were left out
}

export class RequestFailed extends Error {
  constructor(readonly failure: Failure) {
    super(failure.message);
  }
}

// The key stays for this tab, or in this browser if the user wants it.
const KEY = "herder.key";
let key = sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";

export const hasKey = (): boolean => key !== "";

export function setKey(value: string, remember: boolean): void {
  key = value;
  sessionStorage.setItem(KEY, value);
  if (remember) localStorage.setItem(KEY, value);
  else localStorage.removeItem(KEY);
}

async function request(path: string, options: RequestInit = {}): Promise<Response> {
  const headers = new Headers({ "Content-Type": "application/json" });
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new RequestFailed({ kind: "offline", message: "The server does not answer." });
  }
  if (!response.ok) throw new RequestFailed(await failureOf(response));
  return response;
}

async function failureOf(response: Response): Promise<Failure> {
  let said: { message?: string; code?: string } = {};
  try {
    said = ((await response.json()) as { error?: typeof said }).error ?? {};
  } catch {
    // Something other than our server answered, such as a proxy: its status has to do.
  }
  const message = said.message ?? `The server answered ${response.status} ${response.statusText}.`.replace(" .", ".");
  const waits = Number(response.headers.get("Retry-After"));
  const retryAfter = Number.isFinite(waits) && waits > 0 ? waits : undefined;
  const kinds: Record<number, Failure["kind"]> = {
    401: "key",
    403: "forbidden",
    404: "missing",
    429: "busy",
    503: "busy",
  };
  const kind = said.code === "context_length_exceeded" ? "context" : (kinds[response.status] ?? "server");
  return { kind: kind === "server" && response.status < 500 ? "refused" : kind, message, retryAfter };
}

interface ModelObject {
  id: string;
  herder?: { context?: number; images?: boolean; chat?: boolean };
}

export async function models(): Promise<Model[]> {
  const list = (await (await request("v1/models")).json()) as { data: ModelObject[] };
  return list.data
    .filter((one) => one.herder?.chat !== false)
    .map((one) => ({ id: one.id, context: one.herder?.context ?? null, images: one.herder?.images ?? false }));
}

/** The body of a request for the next turn after `turns`. Throws an Error if a setting is not what it should be. */
export function requestBody(model: string, system: string, turns: Turn[], settings: Settings): object {
  const { schema, tools, ...sampling } = settings;
  const said = turns.filter((turn) => turn.text || turn.images?.length || turn.calls?.length || turn.role === "tool");
  return {
    model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...said.map(message)],
    stream: true,
    stream_options: { include_usage: true },
    ...sampling,
    ...(schema
      ? {
          response_format: {
            type: "json_schema",
            json_schema: { name: "answer", schema: json(schema, "The JSON schema") },
          },
        }
      : {}),
    ...(tools ? { tools: json(tools, "The list of tools") } : {}),
  };
}

function json(text: string, what: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new RequestFailed({ kind: "refused", message: `${what} in the settings is not valid JSON.` });
  }
}

function message(turn: Turn): object {
  if (turn.role === "tool") return { role: "tool", tool_call_id: turn.callId, content: turn.text };
  const calls = turn.calls?.map((call: Call) => ({
    id: call.id,
    type: "function",
    function: { name: call.name, arguments: call.arguments },
  }));
  return { role: turn.role, content: content(turn), ...(calls?.length ? { tool_calls: calls } : {}) };
}

interface Chunk {
  error?: { message?: string };
  truncated_prompt_tokens?: number;
  choices?: {
    delta?: {
      content?: string | null;
      reasoning_content?: string | null;
      reasoning?: string | null;
      tool_calls?: { index: number; id?: string; function?: { name?: string; arguments?: string } }[];
    };
    finish_reason?: string | null;
  }[];
  usage?: { prompt_tokens: number; completion_tokens: number } | null;
}

/** The pieces of an answer. Ends when the server says so; a stream that breaks off before throws RequestFailed. */
export async function* answer(body: object, signal: AbortSignal): AsyncGenerator<Piece> {
  const response = await request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  let whole = false;
  for await (const data of events(response)) {
    // Read on to the end: to hang up here would look to the server like a user who has left.
    if (data === "[DONE]") whole = true;
    if (whole) continue;
    const chunk = JSON.parse(data) as Chunk;
    if (chunk.error) throw new RequestFailed({ kind: "server", message: chunk.error.message ?? "The answer failed." });
    const choice = chunk.choices?.[0];
    const delta = choice?.delta;
    yield {
      text: delta?.content ?? undefined,
      reasoning: delta?.reasoning_content ?? delta?.reasoning ?? undefined,
      calls: delta?.tool_calls?.map((call) => ({ index: call.index, id: call.id, ...call.function })),
      finish: choice?.finish_reason ?? undefined,
      usage: chunk.usage
        ? { promptTokens: chunk.usage.prompt_tokens, completionTokens: chunk.usage.completion_tokens }
        : undefined,
      omitted: chunk.truncated_prompt_tokens,
    };
  }
  if (!whole) throw cut();
}

const cut = (): RequestFailed =>
  new RequestFailed({ kind: "cut", message: "The connection broke off before the answer was complete." });

/** The data of server-sent events, as https://html.spec.whatwg.org/multipage/server-sent-events.html has them. */
async function* events(response: Response): AsyncGenerator<string> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data: string[] = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n/);
      rest = lines.pop()!;
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        else if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    if (error instanceof RequestFailed || error instanceof SyntaxError) throw error;
    throw cut();
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
