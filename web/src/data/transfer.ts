/* Files of conversations: one as `herder chat --save` writes it, or all of them with every branch. */

import { branch, newConversation, stamp, titled, withTurn } from "./conversation";
import type { Conversation, Settings, Turn } from "./conversation";

interface Part {
  type: string;
  text?: string;
  image_url?: { url: string };
}
interface Saved {
  model: string;
  system: string | null;
  messages: { role: string; content: string | Part[] }[];
  settings: Settings;
}

/** The shown branch as the command line reads it: what was said. Tools, schemas and reasoning have no place there. */
export function asSaved(conversation: Conversation): Saved {
  const { schema: _schema, tools: _tools, stop: _stop, ...settings } = conversation.settings;
  const messages = branch(conversation)
    .filter((turn) => turn.role !== "tool" && (turn.text || turn.images?.length))
    .map((turn) => ({ role: turn.role, content: content(turn) }));
  return { model: conversation.model, system: conversation.system || null, messages, settings };
}

export function content(turn: Turn): string | Part[] {
  if (!turn.images?.length) return turn.text;
  const images = turn.images.map((url) => ({ type: "image_url", image_url: { url } }));
  return turn.text ? [...images, { type: "text", text: turn.text }] : images;
}

export const asBackup = (conversations: Conversation[]): object => ({
  herder: "conversations",
  version: 1,
  conversations,
});

/** What a file holds, under new ids. Throws an Error that says what is wrong with it. */
export function read(text: string, fileName: string): Conversation[] {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error(`${fileName} is not JSON`);
  }
  if (isObject(data) && data.herder === "conversations" && Array.isArray(data.conversations)) {
    return data.conversations.map((one, at) => restored(one, `${fileName}: conversation ${at + 1}`));
  }
  if (isObject(data) && Array.isArray(data.messages)) return [fromSaved(data, fileName)];
  throw new Error(`${fileName} holds no conversation: expected a file that was exported here or saved by herder chat`);
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const text = (value: unknown): string => (typeof value === "string" ? value : "");
const settings = (value: unknown): Settings => (isObject(value) ? (value as Settings) : {});
const isImage = (url: unknown): url is string => typeof url === "string" && url.startsWith("data:image/");

function fromSaved(data: Record<string, unknown>, fileName: string): Conversation {
  let made = newConversation(text(data.model), text(data.system), settings(data.settings));
  for (const [at, message] of (data.messages as unknown[]).entries()) {
    if (!isObject(message) || (message.role !== "user" && message.role !== "assistant")) {
      throw new Error(`${fileName}: messages[${at}] is neither the user's nor the assistant's`);
    }
    const parts: Part[] = Array.isArray(message.content) ? (message.content.filter(isObject) as unknown as Part[]) : [];
    const images = parts.map((part) => part.image_url?.url).filter(isImage);
    made = withTurn(made, {
      ...stamp(),
      parent: made.head,
      role: message.role,
      text: parts.length ? parts.map((part) => text(part.text)).join("") : text(message.content),
      ...(images.length ? { images } : {}),
    });
  }
  return { ...made, title: made.title || fileName.replace(/\.json$/, "") };
}

function restored(value: unknown, where: string): Conversation {
  if (!isObject(value) || !isObject(value.turns)) throw new Error(`${where} has no turns`);
  const fresh = newConversation(text(value.model), text(value.system), settings(value.settings));
  const turns: Record<string, Turn> = {};
  for (const [id, turn] of Object.entries(value.turns)) {
    if (!isObject(turn) || !["user", "assistant", "tool"].includes(text(turn.role))) {
      throw new Error(`${where}: turn ${id} has no role`);
    }
    const parent = typeof turn.parent === "string" && turn.parent in turns ? turn.parent : null;
    const images = Array.isArray(turn.images) ? turn.images.filter(isImage) : undefined;
    turns[id] = { ...(turn as unknown as Turn), id, parent, text: text(turn.text), images };
  }
  const head = typeof value.head === "string" && value.head in turns ? value.head : null;
  const created = typeof value.created === "number" ? value.created : fresh.created;
  const updated = typeof value.updated === "number" ? value.updated : created;
  const title = text(value.title) || titled(Object.values(turns)[0]?.text ?? "");
  return { ...fresh, turns, head, created, updated, title, named: value.named === true };
}

/** Hands the user a file. */
export function download(name: string, data: object): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
  link.download = `${
    name
      .replace(/[^\p{L}\p{N} ._-]+/gu, "")
      .trim()
      .slice(0, 60) || "conversation"
  }.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
