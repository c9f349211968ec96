import "../sys/no-date.ts";
import { parse } from "smol-toml";
import { quote } from "../sys/error.ts";
import type { ConfigFault, ConfigFile } from "./config.ts";
import { places, validate } from "./gen/config-schema.ts";

/** Twice what the schema has; bounds the parser's recursion. */
const MAX_DEPTH = 8;
/** Longer than any key, and short enough to compare with each. */
const MAX_KEY = 40;

interface Place {
  readonly keys?: readonly string[];
  readonly expected?: string;
  readonly default?: unknown;
}

/** The part of Ajv's error object that is used; every other keyword is a wrong value. */
interface SchemaError {
  readonly instancePath: string;
  readonly keyword: string;
  readonly params: { readonly additionalProperty?: string };
}

/**
 * Parses and checks a configuration file's text. Plain data in and out: this is called across bundles, where classes
 * differ.
 */
export function parseConfig(text: string): ConfigFile | ConfigFault {
  let file: unknown;
  try {
    // Dates as Temporal objects fail in the executable's engine, which has none: no key is a date.
    file = parse(text, { maxDepth: MAX_DEPTH, useLegacyDate: false });
  } catch (error) {
    return syntaxFault(error);
  }
  // Typed here, since the generated file has no types.
  const check = validate as ((data: unknown) => boolean) & { errors: readonly SchemaError[] | null };
  if (check(file)) return file as ConfigFile;
  const error = check.errors?.[0] as SchemaError;
  const path = error.instancePath.split("/").slice(1);
  return error.keyword === "additionalProperties"
    ? unknownKey(path, error.params.additionalProperty as string)
    : wrongValue(path, file);
}

function syntaxFault(error: unknown): ConfigFault {
  const { message, line, column } = error as { message: string; line?: number; column?: number };
  if (line === undefined) throw error;
  const [first = ""] = message.split("\n");
  const what = /Temporal/.test(first) ? "no key takes a date or time" : first.replace("Invalid TOML document: ", "");
  return {
    code: "E_CONFIG_SYNTAX",
    what: `line ${line}, column ${column}: ${what}`,
    remedy: "correct the line; the file is written in TOML",
  };
}

/** What the schema says of a place in the document. */
function placeOf(path: readonly string[]): Place | undefined {
  const pointer = path.map((step) => (/^\d+$/.test(step) ? "/*" : `/${step}`)).join("");
  return (places as Readonly<Record<string, Place>>)[pointer];
}

/** A path as it is written in TOML: `cdi.spec_dirs[0]`, with quotes around a key that needs them. */
function dotted(path: readonly string[]): string {
  return path
    .map((step) => (/^\d+$/.test(step) ? `[${step}]` : /^[\w-]{1,60}$/.test(step) ? `.${step}` : `.${quote(step, 60)}`))
    .join("")
    .replace(/^\./, "");
}

function unknownKey(path: readonly string[], key: string): ConfigFault {
  const siblings = placeOf(path)?.keys ?? [];
  const meant = nearest(key, siblings);
  // A key that is in the wrong table is meant as well.
  const elsewhere = Object.keys(places).find((pointer) => pointer.endsWith(`/${key}`) && key !== "*");
  const guess = meant === undefined ? elsewhere?.slice(1).replaceAll("/", ".") : dotted([...path, meant]);
  const here = path.length === 0 ? "at the top" : `in [${dotted(path)}]`;
  return {
    code: "E_CONFIG_KEY",
    what: `there is no key ${dotted([...path, key])}`,
    remedy: guess === undefined ? `remove it; ${here} there are ${siblings.join(", ")}` : `did you mean ${guess}?`,
  };
}

function wrongValue(path: readonly string[], file: unknown): ConfigFault {
  let value = file;
  for (const step of path) value = (value as Readonly<Record<string, unknown>>)[step];
  const place = placeOf(path);
  const standard =
    place?.default === undefined ? "" : `, or remove it for the default ${JSON.stringify(place.default)}`;
  return {
    code: "E_CONFIG_VALUE",
    what: `${dotted(path)} is ${shown(value)}`,
    remedy: `set it to ${place?.expected}${standard}`,
  };
}

function shown(value: unknown): string {
  if (typeof value === "string") return quote(value);
  if (typeof value !== "object" || value === null) return String(value);
  if (!Array.isArray(value)) return "a table";
  const items = value.every((item) => typeof item === "string") ? value.slice(0, 4).map((item) => quote(item, 40)) : [];
  return items.length === value.length ? `[${items.join(", ")}]` : `a list of ${value.length}`;
}

/** The one of `known` that `key` is most likely a slip of: at most two letters off, and at most a third of them. */
function nearest(key: string, known: readonly string[]): string | undefined {
  if (key.length > MAX_KEY) return undefined;
  const slips = known.map((name) => ({ name, distance: distance(key.toLowerCase(), name) }));
  slips.sort((a, b) => a.distance - b.distance);
  const best = slips[0];
  return best !== undefined && best.distance <= Math.min(2, best.name.length / 3) ? best.name : undefined;
}

/** Levenshtein's distance, row by row. */
function distance(a: string, b: string): number {
  let above = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row++) {
    const current = [row];
    for (let column = 1; column <= b.length; column++) {
      const replaced = (above[column - 1] as number) + (a[row - 1] === b[column - 1] ? 0 : 1);
      current.push(Math.min(replaced, (above[column] as number) + 1, (current[column - 1] as number) + 1));
    }
    above = current;
  }
  return above[b.length] as number;
}
