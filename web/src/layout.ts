/* Which parts of the page are open, and where the focus goes. */

import { signal } from "@preact/signals";

export const narrow = matchMedia("(max-width: 800px)"); // the same width as in style/layout.css
export const sidebarOpen = signal(!narrow.matches);
export const settingsOpen = signal(false);
export const editing = signal<string | null>(null); // the turn whose text is being changed

/** On a phone the list covers the talk: out of the way once something is chosen. */
export function leaveSidebar(): void {
  if (narrow.matches) sidebarOpen.value = false;
}

export const focusComposer = (): void => focusOn("#message");
export const focusSearch = (): void => focusOn("#search");

/** Focuses an element that stands there once the page has caught up with its state. */
function focusOn(selector: string): void {
  setTimeout(() => document.querySelector<HTMLElement>(selector)?.focus());
}
