/* Line icons on a grid of 20 by 20. */

const paths = {
  menu: "M3 6h14M3 10h14M3 14h14",
  plus: "M10 4v12M4 10h12",
  search: "M9 3.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11ZM13 13l4 4",
  sliders: "M3 6h8M15 6h2M3 14h2M9 14h8M13 4v4M7 12v4",
  close: "M5 5l10 10M15 5L5 15",
  up: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  image: "M3 4h14v12H3zM3 13l4-4 4 4 2-2 4 4M13 8h.01",
  copy: "M7 7h9v10H7zM4 13V3h9",
  edit: "M4 16l1-4 8-8 3 3-8 8-4 1ZM11 6l3 3",
  again: "M16 10a6 6 0 1 1-2-4.5M16 3v4h-4",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  down: "M10 4v12M5 11l5 5 5-5",
  trash: "M4 6h12M8 6V4h4v2M6 6l1 11h6l1-11",
  save: "M10 3v9M6 9l4 4 4-4M4 16h12",
  open: "M10 13V4M6 7l4-4 4 4M4 16h12",
  theme: "M10 3a7 7 0 1 0 0 14zM10 3a7 7 0 0 1 0 14",
  check: "M4 10l4 4 8-9",
};

export type IconName = keyof typeof paths;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg viewBox="0 0 20 20" class="icon" aria-hidden="true">
      <path d={paths[name]} />
    </svg>
  );
}

interface ButtonProps {
  icon: IconName;
  label: string;
  onClick: () => void;
  pressed?: boolean;
  disabled?: boolean;
  class?: string;
  id?: string;
}

/** A button of one icon; the label is its name and its tooltip. */
export function IconButton({ icon, label, onClick, pressed, disabled, id, class: className = "" }: ButtonProps) {
  return (
    <button
      type="button"
      id={id}
      class={`icon-button ${className}`}
      aria-label={label}
      title={label}
      aria-pressed={pressed}
      disabled={disabled}
      onClick={onClick}
    >
      <Icon name={icon} />
    </button>
  );
}
