/* Asks for an API key when the server does. */

import { useEffect, useRef } from "preact/hooks";

import { asksForKey, trouble, useKey } from "../state";

export function KeyDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const asks = asksForKey.value;
  useEffect(() => {
    if (asks) dialog.current!.showModal();
    else dialog.current!.close();
  }, [asks]);
  const send = (event: SubmitEvent): void => {
    event.preventDefault();
    const values = new FormData(event.currentTarget as HTMLFormElement);
    const key = String(values.get("key")).trim();
    if (key) void useKey(key, values.has("remember"));
  };
  return (
    <dialog ref={dialog} aria-labelledby="key-title" onClose={() => (asksForKey.value = false)}>
      <form onSubmit={send}>
        <h2 id="key-title">API key</h2>
        <p>{trouble.value?.kind === "key" ? trouble.value.message : "This server asks for a key."}</p>
        <label>
          Key
          <input class="field" name="key" type="password" autocomplete="off" spellcheck={false} required />
        </label>
        <label class="check">
          <input name="remember" type="checkbox" /> Keep it in this browser
        </label>
        <div class="row end">
          <button type="button" class="button" onClick={() => (asksForKey.value = false)}>
            Cancel
          </button>
          <button class="button primary">Use key</button>
        </div>
      </form>
    </dialog>
  );
}
