/* The page: conversations to the left, the talk in the middle, settings to the right. */

import { useEffect } from "preact/hooks";

import { focusComposer, focusSearch, leaveSidebar, narrow, settingsOpen, sidebarOpen } from "../layout";
import { announcement, answering, chosen, configure, current, findModels, models, notice, show, stop } from "../state";
import { Composer } from "./composer";
import { IconButton } from "./icons";
import { KeyDialog } from "./key-dialog";
import { Settings } from "./settings";
import { Sidebar } from "./sidebar";
import { Talk } from "./talk";

function keys(event: KeyboardEvent): void {
  const command = event.ctrlKey || event.metaKey;
  if (command && event.key === "k") {
    event.preventDefault();
    sidebarOpen.value = true;
    focusSearch();
  } else if (command && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    show(null);
    focusComposer();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (answering.value) stop();
    else if (settingsOpen.value) settingsOpen.value = false;
    else if (narrow.matches) sidebarOpen.value = false;
  }
}

export function App() {
  useEffect(() => {
    const width = (): void => void (sidebarOpen.value = !narrow.matches);
    addEventListener("keydown", keys);
    addEventListener("online", findModels);
    narrow.addEventListener("change", width);
    if (matchMedia("(pointer: fine)").matches) focusComposer();
  }, []);
  const title = current.value?.title;
  useEffect(() => void (document.title = title ? `${title} · Herder` : "Herder"), [title]);
  const covered = narrow.matches && (sidebarOpen.value || settingsOpen.value);
  return (
    <div class="app">
      <a class="skip" href="#message" onClick={skip}>
        Skip to the message field
      </a>
      {sidebarOpen.value && <Sidebar />}
      {sidebarOpen.value && (
        <button type="button" class="shade" aria-label="Back to the conversation" onClick={leaveSidebar} />
      )}
      <main inert={covered}>
        <Header />
        <Talk key={current.value?.id ?? ""} />
        <Composer />
      </main>
      {settingsOpen.value && <Settings />}
      <KeyDialog />
      <p class="notice" role="status">
        {notice.value}
      </p>
      <p class="unseen" role="status">
        {announcement.value}
      </p>
    </div>
  );
}

function skip(event: Event): void {
  event.preventDefault();
  focusComposer();
}

function Header() {
  return (
    <header class="bar">
      <IconButton
        icon="menu"
        label={sidebarOpen.value ? "Hide conversations" : "Show conversations"}
        onClick={() => (sidebarOpen.value = !sidebarOpen.value)}
      />
      <ModelPicker />
      <h1 class="title">{current.value?.title ?? "New chat"}</h1>
      <IconButton
        icon="sliders"
        label="Settings"
        id="settings-button"
        pressed={settingsOpen.value}
        onClick={() => (settingsOpen.value = !settingsOpen.value)}
      />
    </header>
  );
}

function ModelPicker() {
  const name = chosen.value.model;
  const names = (models.value ?? []).map((one) => one.id);
  if (names.length === 0) return <span class="model-picker" />;
  const gone = name !== "" && !names.includes(name);
  return (
    <select
      class="model-picker"
      aria-label="Model"
      value={name}
      onChange={(event) => configure({ model: event.currentTarget.value })}
    >
      {gone && <option value={name}>{name} (not on this server)</option>}
      {names.map((one) => (
        <option key={one} value={one}>
          {one}
        </option>
      ))}
    </select>
  );
}
