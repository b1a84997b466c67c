/* A conversation is a tree of turns: an edited message or a second answer is a new branch, and nothing is lost. */

export interface Call {
  id: string;
  name: string;
  arguments: string; // JSON, perhaps not yet whole
}

export interface Stats {
  promptTokens: number;
  completionTokens: number;
  first: number; // seconds to the first piece of the answer
  seconds: number; // from the first piece to the end
}

export interface Failure {
  kind: "offline" | "key" | "forbidden" | "busy" | "context" | "missing" | "refused" | "server" | "cut";
  message: string;
  retryAfter?: number; // seconds
}

export interface Turn {
  id: string;
  parent: string | null;
  role: "user" | "assistant" | "tool";
  text: string;
  created: number; // milliseconds since the epoch
  images?: string[]; // data URLs
  reasoning?: string;
  calls?: Call[];
  callId?: string; // of a tool's result: the call that it answers
  model?: string;
  finish?: string; // as the API says it, or "stopped"
  stats?: Stats;
  omitted?: number; // tokens of the prompt that were left out, on request
  failure?: Failure;
}

export interface Settings {
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  max_tokens?: number;
  seed?: number;
  stop?: string[];
  schema?: string; // JSON
  tools?: string; // JSON
  [other: string]: unknown; // of an imported file, sent as they are
}

export interface Conversation {
  id: string;
  title: string;
  named: boolean; // the title is the user's, not the first message's
  created: number;
  updated: number;
  model: string;
  system: string;
  settings: Settings;
  turns: Record<string, Turn>; // in the order in which they were made
  head: string | null; // the last turn of the branch that is shown
}

let last = 0;

/** A new id, and a time that is later than any before it. */
export function stamp(): { id: string; created: number } {
  last = Math.max(last + 1, Date.now());
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return {
    id: btoa(String.fromCharCode(...bytes))
      .replaceAll("+", "-")
      .replaceAll("/", "_"),
    created: last,
  };
}

export function newConversation(model: string, system: string, settings: Settings): Conversation {
  const { id, created } = stamp();
  return { id, title: "", named: false, created, updated: created, model, system, settings, turns: {}, head: null };
}

/** The turns from the first to `end`, the shown branch by default. */
export function branch(conversation: Conversation, end: string | null = conversation.head): Turn[] {
  const turns: Turn[] = [];
  for (let at = end; at !== null;) {
    const turn: Turn | undefined = conversation.turns[at];
    if (!turn) break;
    turns.push(turn);
    at = turn.parent;
  }
  return turns.reverse();
}

function children(conversation: Conversation, parent: string | null): Turn[] {
  return Object.values(conversation.turns).filter((turn) => turn.parent === parent);
}

/** The turn and its alternatives, oldest first. */
export function alternatives(conversation: Conversation, turn: Turn): Turn[] {
  return children(conversation, turn.parent);
}

/** Shows the branch through `turn`: from there on, at each fork the newest. */
export function through(conversation: Conversation, turn: Turn): Conversation {
  let head = turn;
  for (let next = children(conversation, head.id); next.length > 0; next = children(conversation, head.id)) {
    head = next[next.length - 1]!;
  }
  return { ...conversation, head: head.id };
}

/** The conversation with a turn that is new or changed; it becomes the end of the shown branch. */
export function withTurn(conversation: Conversation, turn: Turn, head = turn.id): Conversation {
  const turns = { ...conversation.turns, [turn.id]: turn };
  const title = conversation.title || (turn.role === "user" ? titled(turn.text) : "");
  return { ...conversation, turns, head, title, updated: Date.now() };
}

export function titled(text: string): string {
  const line = text.trim().split("\n", 1)[0]!.replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line || "Image";
}

/** Whether every word of the query stands somewhere in the conversation. */
export function matches(conversation: Conversation, query: string): boolean {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return true;
  const all = [conversation.title, ...Object.values(conversation.turns).map((turn) => turn.text)];
  const text = all.join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}
