import { quote, SluiceError } from "../sys/error.ts";

/** A command line that cannot be understood: exit code 2. */
export class UsageError extends Error {
  override readonly name = "UsageError";

  /** By shape, as for `SluiceError`. */
  static override [Symbol.hasInstance](value: unknown): boolean {
    return (value as UsageError | undefined)?.name === "UsageError";
  }
}

/** How an option is given: `flag` has no value, `one` has one, `many` may be repeated. */
export type OptionKind = "flag" | "one" | "many";

export interface Parsed {
  readonly positional: readonly string[];
  flag(name: string): boolean;
  one(name: string): string | undefined;
  many(name: string): readonly string[];
}

/** Options of every command (DESIGN.md section 5, Commands). */
export const COMMON: Record<string, OptionKind> = {
  json: "flag",
  root: "one",
  config: "one",
  "cdi-dir": "many",
  help: "flag",
};

/**
 * Parses `--name value`, `--name=value`, `--` and positional arguments, in any order.
 * @throws UsageError for an option that `known` lacks, a missing or repeated value
 */
export function parseOptions(args: readonly string[], known: Record<string, OptionKind>): Parsed {
  const values = new Map<string, string[]>();
  const positional: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] as string;
    if (arg === "--") {
      for (const rest of args.slice(i + 1)) positional.push(rest);
      break;
    }
    if (!arg.startsWith("-") || arg === "-") {
      positional.push(arg);
      continue;
    }
    const equals = arg.indexOf("=");
    const name = arg === "-h" ? "help" : arg.slice(2, equals < 0 ? undefined : equals);
    const kind = (arg.startsWith("--") || arg === "-h") && Object.hasOwn(known, name) ? known[name] : undefined;
    if (kind === undefined) throw new UsageError(`unknown option ${quote(arg)}`);
    let value = "";
    if (kind === "flag") {
      if (equals >= 0) throw new UsageError(`--${name} takes no value`);
    } else if (equals >= 0) {
      value = arg.slice(equals + 1);
    } else {
      const next = args[++i];
      if (next === undefined) throw new UsageError(`--${name} needs a value`);
      value = next;
    }
    const list = values.get(name) ?? [];
    if (kind === "one" && list.length > 0) throw new UsageError(`--${name} is given twice`);
    values.set(name, [...list, value]);
  }
  return {
    positional,
    flag: (name) => values.has(name),
    one: (name) => values.get(name)?.[0],
    many: (name) => values.get(name) ?? [],
  };
}

/**
 * `K=V` pairs of `--annotation`.
 * @throws SluiceError E_ANNOTATION_OPTION
 */
export function parseAnnotations(pairs: readonly string[]): Record<string, string> {
  const annotations: Record<string, string> = {};
  for (const pair of pairs) {
    const equals = pair.indexOf("=");
    if (equals <= 0) {
      throw new SluiceError("E_ANNOTATION_OPTION", `--annotation ${quote(pair)} is not KEY=VALUE`, "write KEY=VALUE");
    }
    annotations[pair.slice(0, equals)] = pair.slice(equals + 1);
  }
  return annotations;
}
