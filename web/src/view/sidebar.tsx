/* The conversations: search, open, rename, export, delete. */

import { computed, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

import { matches } from "../data/conversation";
import type { Conversation } from "../data/conversation";
import { focusComposer, leaveSidebar } from "../layout";
import {
  conversations,
  currentId,
  exportAll,
  exportOne,
  importFiles,
  query,
  remove,
  rename,
  running,
  show,
} from "../state";
import { nextTheme, theme } from "../theme";
import { Icon, IconButton } from "./icons";

const found = computed(() =>
  [...conversations.value.values()].filter((one) => matches(one, query.value)).sort((a, b) => b.updated - a.updated),
);
const renaming = signal<string | null>(null);
const deleting = signal<Conversation | null>(null);

function day(time: number): string {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - 864e5) return "Yesterday";
  if (time >= midnight - 6 * 864e5) return "This week";
  return new Date(time).toLocaleDateString(undefined, { month: "long", year: "numeric" });
}

export function Sidebar() {
  const groups = Map.groupBy(found.value, (one) => day(one.updated));
  return (
    <nav class="sidebar" aria-label="Conversations">
      <div class="side-head">
        <span class="brand">Herder</span>
        <button type="button" class="button" onClick={begin} title="Ctrl+Shift+O">
          <Icon name="plus" /> New chat
        </button>
      </div>
      <div class="search">
        <Icon name="search" />
        <input
          id="search"
          type="search"
          placeholder="Search"
          aria-label="Search conversations"
          aria-keyshortcuts="Control+K"
          value={query.value}
          onInput={(event) => (query.value = event.currentTarget.value)}
          onKeyDown={searchKeys}
        />
        <kbd>Ctrl K</kbd>
      </div>
      <div class="list">
        {[...groups].map(([title, list]) => (
          <section key={title}>
            <h2>{title}</h2>
            <ul>
              {list.map((one) => (
                <Entry key={one.id} conversation={one} />
              ))}
            </ul>
          </section>
        ))}
        {found.value.length === 0 && <p class="empty">{query.value ? "Nothing found." : "No conversations yet."}</p>}
      </div>
      <Foot />
      <DeleteDialog />
    </nav>
  );
}

function begin(): void {
  show(null);
  leaveSidebar();
  focusComposer();
}

function open(conversation: Conversation): void {
  show(conversation.id);
  leaveSidebar();
}

function searchKeys(event: KeyboardEvent): void {
  if (event.key === "Enter" && found.value[0]) {
    open(found.value[0]);
    focusComposer();
  } else if (event.key === "Escape" && query.value) {
    event.stopPropagation();
    query.value = "";
  }
}

function Entry({ conversation }: { conversation: Conversation }) {
  const isCurrent = conversation.id === currentId.value;
  if (renaming.value === conversation.id) return <NameField conversation={conversation} />;
  return (
    <li class={isCurrent ? "entry current" : "entry"}>
      <button
        type="button"
        class="name"
        aria-current={isCurrent ? "page" : undefined}
        onClick={() => open(conversation)}
      >
        {conversation.title}
        {running.value.has(conversation.id) && <span class="pulse" aria-label="answering" role="img" />}
      </button>
      <span class="actions">
        <IconButton
          icon="edit"
          label={`Rename ${conversation.title}`}
          onClick={() => (renaming.value = conversation.id)}
        />
        <IconButton icon="save" label={`Export ${conversation.title}`} onClick={() => exportOne(conversation)} />
        <IconButton
          icon="trash"
          label={`Delete ${conversation.title}`}
          onClick={() => (deleting.value = conversation)}
        />
      </span>
    </li>
  );
}

function NameField({ conversation }: { conversation: Conversation }) {
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.select(), []);
  const done = (keep: boolean): void => {
    if (renaming.value !== conversation.id) return;
    renaming.value = null;
    if (keep && field.current) rename(conversation, field.current.value);
  };
  return (
    <li class="entry">
      <input
        ref={field}
        class="field"
        aria-label="Name of the conversation"
        defaultValue={conversation.title}
        onBlur={() => done(true)}
        onKeyDown={(event) => {
          if (event.key === "Enter") done(true);
          if (event.key === "Escape") {
            event.stopPropagation();
            done(false);
          }
        }}
      />
    </li>
  );
}

function DeleteDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const conversation = deleting.value;
  useEffect(() => {
    if (conversation) dialog.current?.showModal();
  }, [conversation]);
  if (!conversation) return null;
  return (
    <dialog ref={dialog} aria-labelledby="delete-title" onClose={() => (deleting.value = null)}>
      <form method="dialog">
        <h2 id="delete-title">Delete this conversation?</h2>
        <p>“{conversation.title}” is removed from this browser. There is no other copy.</p>
        <div class="row end">
          <button class="button">Cancel</button>
          <button class="button danger" onClick={() => void remove(conversation)}>
            Delete
          </button>
        </div>
      </form>
    </dialog>
  );
}

function Foot() {
  const file = useRef<HTMLInputElement>(null);
  return (
    <div class="side-foot">
      <input
        ref={file}
        type="file"
        accept=".json,application/json"
        multiple
        hidden
        aria-label="Files to import"
        onChange={(event) => {
          void importFiles([...event.currentTarget.files!]);
          event.currentTarget.value = "";
        }}
      />
      <IconButton icon="open" label="Import conversations" onClick={() => file.current!.click()} />
      <IconButton
        icon="save"
        label="Export all conversations"
        disabled={conversations.value.size === 0}
        onClick={exportAll}
      />
      <IconButton icon="theme" label={`Colours: ${theme.value}`} onClick={nextTheme} />
      <a href="docs">API</a>
    </div>
  );
}
