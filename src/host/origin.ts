/**
 * What a CDI spec of ours was made from. The driver is upgraded, a GPU falls off the bus, MIG is cut anew, and the spec
 * that was right becomes wrong without anybody having touched it. So beside each spec that Sluice writes lies a file of
 * the same name that ends in `.origin`, which CDI libraries do not read: facts about the machine that can be looked at
 * again in microseconds, and what else Sluice knows of the edits that the CDI format has no place for.
 *
 * On disk: a line for what every container start needs, then one for the rest, both JSON.
 */

import { OsError } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";
import type { Capability } from "./driver.ts";

/**
 * How to look at a fact:
 *
 * | look | what it sees |
 * |---|---|
 * | `text` | a small file's text |
 * | `names` | the names in a folder |
 * | `head` | the first four bytes of a file, as hexadecimal digits: a PCI function that is lost reads as ones |
 * | `kind` | what stands there, with a device node's numbers: `char 195:0`, `socket` |
 * | `stamp` | a file's or folder's identity, which changes with its content (`Stat.stamp`) |
 *
 * What is not there looks empty, and what may not be looked at as the errno's name.
 */
export type FactLook = "text" | "names" | "head" | "kind" | "stamp";

export interface Fact {
  readonly look: FactLook;
  readonly path: string;
  /** What was seen there when the spec was made. */
  readonly saw: string;
}

export interface Origin {
  readonly facts: readonly Fact[];
  /** The version of the driver whose files the spec gives; absent where it gives none. */
  readonly driver?: string | undefined;
  /** With what `sluice cdi generate` made it, so that it can be made anew alike. */
  readonly options: SpecOptions;
  /**
   * Paths in the container, of mounts and device nodes, that only those containers need that ask for a capability. A
   * path may belong to several; one that belongs to none is for all.
   */
  readonly capabilities: Readonly<Partial<Record<Capability, readonly string[]>>>;
}

/** What a person may choose of a spec. */
export interface SpecOptions {
  /** The program that does in the container what mounts cannot say (`sluice cdi-hook`); none where empty. */
  readonly hook: string;
  /**
   * The file, on the machine, of the driver's settings as containers see them: in place of the driver's own they keep
   * its library from making the nodes of other GPUs. None where empty, as for a spec that outlives a boot.
   */
  readonly params: string;
  /** What of NVIDIA's, beside GPUs, gets specs too: as the setting `policy.features` allows. */
  readonly features: readonly Feature[];
}

/** Things that a container may have beside a GPU, and that show it more than its own GPU. */
export type Feature = "gds" | "mofed" | "gdrcopy" | "nvswitch" | "imex" | "mig-config" | "mig-monitor";

/** Bytes. A machine of 16 GPUs has 12 KB. */
const LIMIT = 1 << 20;
/** Bytes of a `text`. */
const TEXT_LIMIT = 4096;

/** The companion of a spec file. */
export function originPath(specPath: string): string {
  return `${specPath.slice(0, specPath.lastIndexOf("."))}.origin`;
}

/** What is seen at a place now. */
export function lookAt(files: Files, look: FactLook, path: string): string {
  try {
    switch (look) {
      case "text":
        return files.readText(path, TEXT_LIMIT).trim();
      case "names":
        return (files.list(path) ?? []).map((entry) => entry.name).join(" ");
      case "head":
        return hex(files.readBytes(path, 0, 4));
      case "stamp":
        return files.stat(path)?.stamp ?? "";
      case "kind": {
        const stat = files.stat(path);
        if (stat === undefined) return "";
        return stat.kind === "char" || stat.kind === "block" ? `${stat.kind} ${stat.major}:${stat.minor}` : stat.kind;
      }
    }
  } catch (thrown) {
    if (!(thrown instanceof OsError)) throw thrown;
    return thrown.code === "ENOENT" || thrown.code === "ENOTDIR" ? "" : thrown.code;
  }
}

function hex(bytes: string): string {
  let digits = "";
  for (let i = 0; i < bytes.length; i++) digits += bytes.charCodeAt(i).toString(16).padStart(2, "0");
  return digits;
}

/** The facts that are no longer so. None of a spec that is as good as when it was made. */
export function changedFacts(files: Files, facts: readonly Fact[]): Fact[] {
  return facts.filter(({ look, path, saw }) => lookAt(files, look, path) !== saw);
}

/** The origin's text. `specStamp` is the stamp that the spec has on disk. */
export function formatOrigin({ facts, ...rest }: Origin, specStamp: string): string {
  const lines = facts.map(({ look, path, saw }) => [look, path, saw]);
  return `${JSON.stringify([specStamp, lines])}\n${JSON.stringify(rest)}\n`;
}

/** A spec's origin as it lies on disk, of which the second half is read where it is needed. */
class StoredOrigin implements Origin {
  readonly facts: readonly Fact[];
  readonly #rest: string;
  #parsed: Omit<Origin, "facts"> | undefined;

  constructor(facts: readonly Fact[], rest: string) {
    this.facts = facts;
    this.#rest = rest;
  }

  get driver(): string | undefined {
    return this.#all().driver;
  }

  get options(): SpecOptions {
    return this.#all().options;
  }

  get capabilities(): Origin["capabilities"] {
    return this.#all().capabilities;
  }

  #all(): Omit<Origin, "facts"> {
    this.#parsed ??= JSON.parse(this.#rest) as Omit<Origin, "facts">;
    return this.#parsed;
  }
}

/**
 * The origin of a spec file; `undefined` of one that Sluice has not made, or that somebody has changed since: that one
 * is theirs, and counts as it stands.
 */
export function readOrigin(files: Files, specPath: string): Origin | undefined {
  // The hot path of every container start: no more is read than must be.
  let text: string;
  let stamp: string | undefined;
  try {
    text = files.readText(originPath(specPath), LIMIT);
    stamp = files.stat(specPath)?.stamp;
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined;
    throw thrown;
  }
  // Written in one step; one that was cut all the same does not count.
  if (!text.endsWith("}\n")) return undefined;
  const end = text.indexOf("\n");
  try {
    const [madeFor, facts] = JSON.parse(text.slice(0, end)) as [string, [FactLook, string, string][]];
    if (madeFor !== stamp) return undefined;
    return new StoredOrigin(
      facts.map(([look, path, saw]) => ({ look, path, saw })),
      text.slice(end + 1),
    );
  } catch (thrown) {
    if (thrown instanceof SyntaxError || thrown instanceof TypeError) return undefined; // cut short, or another's file
    throw thrown;
  }
}
