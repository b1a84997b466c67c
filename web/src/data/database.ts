/* Conversations in the browser's IndexedDB, and other tabs told of a change. */

import type { Conversation } from "./conversation";

const STORE = "conversations";
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("herder") : null;
let opened: Promise<IDBDatabase> | null = null;

function open(): Promise<IDBDatabase> {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("herder", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function transaction<T>(mode: IDBTransactionMode, work: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const database = await open();
  return new Promise((resolve, reject) => {
    const all = database.transaction(STORE, mode);
    const request = work(all.objectStore(STORE));
    all.oncomplete = () => resolve(request.result);
    all.onabort = all.onerror = () => reject(all.error);
  });
}

export const readAll = (): Promise<Conversation[]> => transaction("readonly", (store) => store.getAll());

export async function write(conversation: Conversation, tell = true): Promise<void> {
  await transaction("readwrite", (store) => store.put(conversation));
  if (tell) channel?.postMessage("changed");
}

export async function remove(id: string): Promise<void> {
  await transaction("readwrite", (store) => store.delete(id));
  channel?.postMessage("changed");
}

export function onChangeElsewhere(act: () => void): void {
  channel?.addEventListener("message", act);
}
