/* What the page knows, as signals, and everything a user can do with it. */

import { computed, signal } from "@preact/signals";
import type { Signal } from "@preact/signals";

import * as api from "./data/api";
import { RequestFailed } from "./data/api";
import type { Model, Piece } from "./data/api";
import { alternatives, branch, newConversation, stamp, through, withTurn } from "./data/conversation";
import type { Conversation, Failure, Settings, Turn } from "./data/conversation";
import * as database from "./data/database";
import { asBackup, asSaved, download, read } from "./data/transfer";

interface Running {
  turn: Signal<Turn>; // the answer so far
  abort: AbortController;
}

export const conversations = signal<Map<string, Conversation>>(new Map());
export const currentId = signal<string | null>(null);
export const models = signal<Model[] | null>(null); // null: not known yet
export const trouble = signal<Failure | null>(null); // why the models are not known
export const running = signal<Map<string, Running>>(new Map()); // by conversation
export const announcement = signal(""); // for screen readers
export const notice = signal(""); // a line for everybody, for a moment
export const query = signal("");
export const asksForKey = signal(false);
export const keyed = signal(api.hasKey()); // a key is sent with every request

/** What the next new conversation starts with. */
export const draft = signal<{ model: string; system: string; settings: Settings }>({
  model: "",
  system: "",
  settings: {},
});

export const current = computed(() => (currentId.value ? (conversations.value.get(currentId.value) ?? null) : null));
export const chosen = computed(() => current.value ?? draft.value);
export const model = computed(() => models.value?.find((one) => one.id === chosen.value.model) ?? null);
export const answering = computed(() => (currentId.value ? (running.value.get(currentId.value) ?? null) : null));

// Where things are kept ----------------------------------------------------------------------------------------------
const DRAFT = "herder.draft";

function put(conversation: Conversation, keep = true): void {
  conversations.value = new Map(conversations.value).set(conversation.id, conversation);
  if (keep)
    database.write(conversation).catch(() => say("This browser did not store the conversation: export it to keep it."));
}

export function say(line: string): void {
  notice.value = line;
  setTimeout(() => notice.value === line && (notice.value = ""), 6000);
}

async function load(): Promise<void> {
  try {
    const stored = new Map((await database.readAll()).map((one) => [one.id, one]));
    for (const id of running.value.keys()) stored.set(id, conversations.value.get(id)!);
    conversations.value = stored;
  } catch {
    say("This browser keeps no data for this page: conversations will be gone when it is closed.");
  }
}

export async function start(): Promise<void> {
  try {
    draft.value = { ...draft.value, ...(JSON.parse(localStorage.getItem(DRAFT) ?? "{}") as object) };
  } catch {
    // A damaged draft is no loss.
  }
  await load();
  database.onChangeElsewhere(() => void load());
  const follow = (): void => {
    currentId.value = /^#\/c\/(.+)$/.exec(location.hash)?.[1] ?? null;
  };
  addEventListener("hashchange", follow);
  follow();
  await findModels();
}

export async function findModels(): Promise<void> {
  try {
    models.value = await api.models();
    trouble.value = null;
    asksForKey.value = false;
    const known = models.value.some((one) => one.id === draft.value.model);
    if (!known && models.value[0]) draft.value = { ...draft.value, model: models.value[0].id };
  } catch (error) {
    trouble.value = failureOf(error);
    asksForKey.value = trouble.value.kind === "key";
  }
}

export async function useKey(key: string, remember: boolean): Promise<void> {
  api.setKey(key, remember);
  keyed.value = api.hasKey();
  await findModels();
}

export const forgetKey = (): Promise<void> => useKey("", false);

// Conversations ------------------------------------------------------------------------------------------------------
export function show(id: string | null): void {
  location.hash = id ? `#/c/${id}` : "#/";
  currentId.value = id;
}

export function configure(change: Partial<Pick<Conversation, "model" | "system" | "settings">>): void {
  if (current.value) put({ ...current.value, ...change });
  draft.value = { ...draft.value, ...change };
  localStorage.setItem(DRAFT, JSON.stringify(draft.value));
}

export function rename(conversation: Conversation, title: string): void {
  if (title.trim()) put({ ...conversation, title: title.trim(), named: true });
}

export async function remove(conversation: Conversation): Promise<void> {
  running.value.get(conversation.id)?.abort.abort();
  const left = new Map(conversations.value);
  left.delete(conversation.id);
  conversations.value = left;
  if (currentId.value === conversation.id) show(null);
  await database.remove(conversation.id);
}

export function exportOne(conversation: Conversation): void {
  download(conversation.title, asSaved(conversation));
}

export function exportAll(): void {
  download(`herder ${new Date().toISOString().slice(0, 10)}`, asBackup([...conversations.value.values()]));
}

export async function importFiles(files: Iterable<File>): Promise<void> {
  let count = 0;
  for (const file of files) {
    try {
      for (const conversation of read(await file.text(), file.name)) {
        put(conversation);
        count += 1;
        if (count === 1) show(conversation.id);
      }
    } catch (error) {
      say((error as Error).message);
      return;
    }
  }
  say(count === 1 ? "One conversation imported." : `${count} conversations imported.`);
}

// Asking -------------------------------------------------------------------------------------------------------------
/** The user's next message, or with `instead` another one in place of that turn. */
export function ask(text: string, images: string[], instead?: Turn): void {
  const conversation = current.value ?? newConversation(draft.value.model, draft.value.system, draft.value.settings);
  const parent = instead ? instead.parent : conversation.head;
  const turn: Turn = { ...stamp(), parent, role: "user", text, ...(images.length ? { images } : {}) };
  const next = withTurn(conversation, turn);
  put(next);
  if (!current.value) show(next.id);
  void reply(next);
}

/** The result of a tool; when every call has one, the model goes on. */
export function giveResult(text: string, callId: string): void {
  const conversation = current.value!;
  const turn: Turn = { ...stamp(), parent: conversation.head, role: "tool", text, callId };
  const next = withTurn(conversation, turn);
  put(next);
  if (openCalls(next).length === 0) void reply(next);
}

/** The calls at the end of the shown branch that have no result yet. */
export function openCalls(conversation: Conversation): string[] {
  const turns = branch(conversation);
  const caller = turns.findLastIndex((turn) => turn.role !== "tool");
  const answered = new Set(turns.slice(caller + 1).map((turn) => turn.callId));
  return (turns[caller]?.calls ?? []).map((call) => call.id).filter((id) => !answered.has(id));
}

/** Another answer in place of `turn`. forget: the model may leave out the oldest part of what was said. */
export function regenerate(turn: Turn, forget = false): void {
  const conversation = { ...current.value!, head: turn.parent };
  void reply(conversation, forget);
}

export function showAlternative(turn: Turn, step: number): void {
  const all = alternatives(current.value!, turn);
  const next = all[all.findIndex((one) => one.id === turn.id) + step];
  if (next) put(through(current.value!, next));
}

export function stop(): void {
  answering.value?.abort.abort();
}

async function reply(conversation: Conversation, forget = false): Promise<void> {
  const { id } = conversation;
  running.value.get(id)?.abort.abort();
  const abort = new AbortController();
  const turn = signal<Turn>({
    ...stamp(),
    parent: conversation.head,
    role: "assistant",
    text: "",
    model: conversation.model,
  });
  const mine: Running = { turn, abort };
  put(withTurn(conversation, turn.value), false);
  running.value = new Map(running.value).set(id, mine);
  announcement.value = "Answering";

  let answer = turn.value;
  const began = performance.now();
  let first = 0;
  let timer = 0;
  let kept = began;
  const shown = (): void => {
    timer = 0;
    turn.value = answer;
    const soFar = conversations.value.get(id);
    if (soFar && performance.now() - kept > 1000) {
      // For a page that is closed before the answer ends.
      kept = performance.now();
      void database.write(withTurn(soFar, { ...answer, finish: "stopped" }), false);
    }
  };
  try {
    const settings = { ...conversation.settings, ...(forget ? { truncate_prompt_tokens: -1 } : {}) };
    const body = api.requestBody(conversation.model, conversation.system, branch(conversation), settings);
    for await (const piece of api.answer(body, abort.signal)) {
      if (!first && (piece.text || piece.reasoning || piece.calls)) first = performance.now();
      answer = extended(answer, piece);
      if (piece.usage) {
        const seconds = (performance.now() - first) / 1000;
        answer = { ...answer, stats: { ...piece.usage, first: (first - began) / 1000, seconds } };
      }
      timer ||= setTimeout(shown, 40);
    }
  } catch (error) {
    answer = abort.signal.aborted ? { ...answer, finish: "stopped" } : { ...answer, failure: failureOf(error) };
    if (answer.failure?.kind === "key") asksForKey.value = true;
  }
  clearTimeout(timer);
  turn.value = answer;
  if (running.value.get(id) === mine) {
    const left = new Map(running.value);
    left.delete(id);
    running.value = left;
  }
  const now = conversations.value.get(id);
  if (now) put(withTurn(now, answer, now.head ?? answer.id));
  announcement.value = answer.failure ? answer.failure.message : `Answer finished. ${answer.text.slice(0, 600)}`;
}

function extended(turn: Turn, piece: Piece): Turn {
  const next = { ...turn, text: turn.text + (piece.text ?? "") };
  if (piece.reasoning) next.reasoning = (turn.reasoning ?? "") + piece.reasoning;
  if (piece.omitted) next.omitted = piece.omitted;
  if (piece.finish) next.finish = piece.finish;
  for (const part of piece.calls ?? []) {
    const calls = [...(next.calls ?? [])];
    const old = calls[part.index] ?? { id: "", name: "", arguments: "" };
    calls[part.index] = {
      id: part.id ?? old.id,
      name: part.name ?? old.name,
      arguments: old.arguments + (part.arguments ?? ""),
    };
    next.calls = calls;
  }
  return next;
}

function failureOf(error: unknown): Failure {
  if (error instanceof RequestFailed) return error.failure;
  return { kind: "server", message: `The answer could not be read: ${(error as Error).message}` };
}
