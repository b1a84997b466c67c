/* The page at /docs: what openapi.json says, to read. */

import "./style/base.css";
import "./style/docs.css";

import { render } from "preact";

import { applyTheme } from "./theme";

interface Schema {
  description?: string;
  properties?: Record<string, Schema>;
  items?: Schema;
  "x-herder-status"?: string;
}
interface Operation {
  summary?: string;
  tags?: string[];
  requestBody?: { content: Record<string, { schema: Schema }> };
}
interface Description {
  info: { title: string; version: string; description?: string };
  paths: Record<string, Record<string, Operation>>;
}
interface Entry extends Operation {
  method: string;
  path: string;
}

function Page({ info, paths }: Description) {
  const entries: Entry[] = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ ...operation, method: method.toUpperCase(), path })),
  );
  const groups = Map.groupBy(entries, (entry) => entry.tags?.[0] ?? "");
  return (
    <main>
      <h1>{info.title}</h1>
      <p>
        Version {info.version}. {info.description} As a file: <a href="openapi.json">openapi.json</a>. Or{" "}
        <a href="./">talk to a model</a>.
      </p>
      {[...groups].map(([tag, list]) => (
        <section key={tag}>
          <h2>{tag}</h2>
          {list.map((entry) => (
            <EntryView key={entry.method + entry.path} {...entry} />
          ))}
        </section>
      ))}
      <p class="foot">
        The pages of this server are made with other people’s work: <a href="licences.txt">their licences</a>.
      </p>
    </main>
  );
}

function EntryView({ method, path, summary, requestBody }: Entry) {
  const schema = requestBody && Object.values(requestBody.content)[0]?.schema;
  const rows = schema ? flat(schema, "") : [];
  return (
    <details>
      <summary>
        <code class="method">{method}</code>
        <code>{path}</code>
        <span class="what">{summary}</span>
      </summary>
      {rows.length === 0 && <p>No body.</p>}
      {rows.length > 0 && (
        <div class="scroller" tabIndex={0} role="region" aria-label={`Fields of ${method} ${path}`}>
          <table>
            <thead>
              <tr>
                <th scope="col">Field</th>
                <th scope="col">Here</th>
                <th scope="col">Note</th>
              </tr>
            </thead>
            <tbody>
              {rows.map(([name, field]) => (
                <tr key={name}>
                  <td>
                    <code>{name}</code>
                  </td>
                  <td class={field["x-herder-status"]}>{field["x-herder-status"]}</td>
                  <td>{field.description}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </details>
  );
}

/** Every field with its whole name: an object's own stand after it. */
function flat(schema: Schema, prefix: string): [string, Schema][] {
  if (schema.items) return flat(schema.items, `${prefix}[]`);
  return Object.entries(schema.properties ?? {}).flatMap(([name, field]) => {
    const whole = prefix ? `${prefix}.${name}` : name;
    return [[whole, field] as [string, Schema], ...flat(field, whole)];
  });
}

async function start(): Promise<void> {
  applyTheme();
  const place = document.getElementById("docs")!;
  try {
    const response = await fetch("openapi.json");
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    render(<Page {...((await response.json()) as Description)} />, place);
  } catch (error) {
    render(<p role="alert">The description could not be loaded: {(error as Error).message}.</p>, place);
  }
}

void start();
