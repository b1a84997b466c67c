/* Where a message is written: text, pictures, send and stop, and how full the model's window is. */

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

import { branch } from "../data/conversation";
import { pictures } from "../data/images";
import { editing } from "../layout";
import { answering, ask, chosen, current, model, say, stop } from "../state";
import { Icon, IconButton } from "./icons";

const text = signal("");
const images = signal<string[]>([]);
const dragging = signal(false);

async function attach(files: Iterable<File>): Promise<void> {
  const list = [...files];
  if (list.length === 0) return;
  if (!model.value?.images) return say(`${chosen.value.model || "This model"} does not take images.`);
  try {
    images.value = [...images.value, ...(await pictures(list))];
  } catch (error) {
    say((error as Error).message);
  }
}

function send(): void {
  if (answering.value || !model.value || (!text.value.trim() && images.value.length === 0)) return;
  ask(text.value.trim(), images.value);
  text.value = "";
  images.value = [];
}

function keys(event: KeyboardEvent): void {
  const touch = matchMedia("(pointer: coarse)").matches; // there, Enter is the only way to a new line
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && text.value === "" && current.value && !answering.value) {
    const last = branch(current.value).findLast((turn) => turn.role === "user");
    if (last) {
      event.preventDefault();
      editing.value = last.id;
    }
  }
}

function filesOf(transfer: DataTransfer | null): File[] {
  return [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
}

/** Pictures can be dropped anywhere on the page. */
function listenForDrops(): () => void {
  const over = (event: DragEvent): void => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    dragging.value = true;
  };
  const leave = (event: DragEvent): void => {
    if (!event.relatedTarget) dragging.value = false;
  };
  const drop = (event: DragEvent): void => {
    event.preventDefault();
    dragging.value = false;
    void attach(filesOf(event.dataTransfer));
  };
  addEventListener("dragover", over);
  addEventListener("dragleave", leave);
  addEventListener("drop", drop);
  return () => {
    removeEventListener("dragover", over);
    removeEventListener("dragleave", leave);
    removeEventListener("drop", drop);
  };
}

export function Composer() {
  const area = useRef<HTMLTextAreaElement>(null);
  const file = useRef<HTMLInputElement>(null);
  useEffect(listenForDrops, []);
  useEffect(() => {
    // Grows with its text.
    area.current!.style.height = "auto";
    area.current!.style.height = `${area.current!.scrollHeight}px`;
  }, [text.value]);
  const empty = !text.value.trim() && images.value.length === 0;
  return (
    <form
      class={dragging.value && model.value?.images ? "composer dragging" : "composer"}
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <Thumbnails />
      <div class="composer-row">
        {model.value?.images && (
          <>
            <input
              ref={file}
              type="file"
              accept="image/*"
              multiple
              hidden
              aria-label="Pictures to add"
              onChange={(event) => {
                void attach([...event.currentTarget.files!]);
                event.currentTarget.value = "";
              }}
            />
            <IconButton icon="image" label="Add pictures" onClick={() => file.current!.click()} />
          </>
        )}
        <textarea
          ref={area}
          id="message"
          rows={1}
          aria-label="Message"
          placeholder="Message"
          enterkeyhint="enter"
          value={text.value}
          onInput={(event) => (text.value = event.currentTarget.value)}
          onKeyDown={keys}
          onPaste={(event) => void attach(filesOf(event.clipboardData))}
        />
        {answering.value ? (
          <button type="button" class="send" aria-label="Stop" title="Stop (Esc)" onClick={stop}>
            <Icon name="stop" />
          </button>
        ) : (
          <button type="submit" class="send" aria-label="Send" title="Send (Enter)" disabled={empty || !model.value}>
            <Icon name="up" />
          </button>
        )}
      </div>
      <Meter />
    </form>
  );
}

function Thumbnails() {
  if (images.value.length === 0) return null;
  return (
    <ul class="thumbnails">
      {images.value.map((url, at) => (
        <li key={url}>
          <img src={url} alt={`Picture ${at + 1} to send`} />
          <IconButton
            icon="close"
            label={`Remove picture ${at + 1}`}
            onClick={() => (images.value = images.value.filter((_, index) => index !== at))}
          />
        </li>
      ))}
    </ul>
  );
}

/** How much of the window the shown branch fills, as the last answer's usage tells. */
function Meter() {
  const stats = current.value && branch(current.value).findLast((turn) => turn.stats)?.stats;
  const size = model.value?.context;
  if (!stats || !size) return <p class="meter" />;
  const used = stats.promptTokens + stats.completionTokens;
  const part = Math.min(1, used / size);
  const words = `${used.toLocaleString()} of ${size.toLocaleString()} tokens`;
  return (
    <div class={part > 0.9 ? "meter nearly-full" : "meter"}>
      <span
        class="gauge"
        role="meter"
        aria-label="Context"
        aria-valuemin={0}
        aria-valuemax={size}
        aria-valuenow={used}
        aria-valuetext={words}
      >
        <span style={{ width: `${part * 100}%` }} />
      </span>
      {words}
      {part > 0.9 && ": nearly full"}
    </div>
  );
}
