/**
 * What a CDI spec of ours was made from. The driver is upgraded, a GPU falls off the bus, MIG is cut anew, and the spec
 * that was right becomes wrong without anybody having touched it. So beside each spec that Sluice writes lies a file of
 * the same name that ends in `.origin`, which CDI libraries do not read: facts about the machine that can be looked at
 * again in microseconds, and what else Sluice knows of the edits that the CDI format has no place for.
 *
 * On disk three lines of JSON: what every container start needs, all facts, and the rest.
 */

import { OsError, printable, SluiceError } from "../sys/error.ts";
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

/**
 * Places whose stamps tell at one glance that nothing has changed there. Where one differs, the facts decide: a node that
 * was given another mode is the same node.
 */
export interface Glance {
  /** Without their leading slash, so that they are entries of the root folder. */
  readonly places: readonly string[];
  /** As `Files.stamps` gives them, between tabs. */
  readonly stamps: string;
}

export interface Origin {
  readonly facts: readonly Fact[];
  readonly glance: Glance;
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
/** Bytes of a `text`. The longest is /proc/devices, of some KB. */
const TEXT_LIMIT = 32_768;

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

/** The glance at those facts that a stamp tells of, as far as they are so while the stamps are taken. */
export function glanceAt(files: Files, facts: readonly Fact[]): Glance {
  const placed = facts.filter(({ look }) => look === "kind" || look === "stamp");
  const changed = new Set(changedFacts(files, placed));
  const places = placed.filter((fact) => !changed.has(fact)).map(({ path }) => path.slice(1));
  const stamps = stampsOf(files, places);
  // What has changed in between must show as changed.
  return stamps === undefined || changedFacts(files, placed).length > changed.size
    ? { places: [], stamps: "" }
    : { places, stamps };
}

/** `undefined` where one may not be looked at. */
function stampsOf(files: Files, places: readonly string[]): string | undefined {
  try {
    return files.stamps("/", places).join("\t");
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined;
    throw thrown;
  }
}

/** The origin's text. `specStamp` is the stamp that the spec has on disk. */
export function formatOrigin({ facts, glance, ...rest }: Origin, specStamp: string): string {
  const places = new Set(glance.places);
  const row = ({ look, path, saw }: Fact): string[] => [look, path, saw];
  const others = facts.filter(
    ({ look, path }) => !((look === "kind" || look === "stamp") && places.has(path.slice(1))),
  );
  const head = [specStamp, glance.places, glance.stamps, others.map(row)];
  return [head, facts.map(row), rest].map((line) => `${JSON.stringify(line)}\n`).join("");
}

type Rest = Omit<Origin, "facts" | "glance">;
type Row = readonly [look: FactLook, path: string, saw: string];

const factOf = ([look, path, saw]: Row): Fact => ({ look, path, saw });

/** A spec's origin as it lies on disk, of which each line is taken apart where it is needed. */
export class StoredOrigin implements Origin {
  readonly glance: Glance;
  /** The facts that no stamp tells of. */
  readonly #others: readonly Row[];
  readonly #path: string;
  readonly #lines: readonly string[];
  #facts: readonly Fact[] | undefined;
  #rest: Rest | undefined;

  constructor(glance: Glance, others: readonly Row[], path: string, lines: readonly string[]) {
    this.glance = glance;
    this.#others = others;
    this.#path = path;
    this.#lines = lines;
  }

  /** Whether a fact is no longer so. Costs some microseconds a place where none has changed. */
  isStale(files: Files): boolean {
    const { places, stamps } = this.glance;
    const isSame = stampsOf(files, places) === stamps;
    return changedFacts(files, isSame ? this.#others.map(factOf) : this.facts).length > 0;
  }

  get facts(): readonly Fact[] {
    this.#facts ??= parseFacts(this.#lines[1] as string);
    return this.#facts ?? this.#damaged();
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

  #all(): Rest {
    this.#rest ??= parseRest(this.#lines[2] as string);
    return this.#rest ?? this.#damaged();
  }

  #damaged(): never {
    throw new SluiceError(
      "E_CDI_STALE",
      `${printable(this.#path)} is damaged: what its spec was made from cannot be read`,
      "run: sluice cdi generate",
    );
  }
}

function parseFacts(line: string): Fact[] | undefined {
  try {
    return (JSON.parse(line) as Row[]).map(factOf);
  } catch (thrown) {
    if (thrown instanceof SyntaxError || thrown instanceof TypeError) return undefined;
    throw thrown;
  }
}

function parseRest(text: string): Rest | undefined {
  try {
    const { driver, options, capabilities } = JSON.parse(text) as Partial<Rest>;
    const { hook, params, features } = (options ?? {}) as Partial<SpecOptions>;
    const isGood =
      (driver === undefined || typeof driver === "string") &&
      typeof hook === "string" &&
      typeof params === "string" &&
      Array.isArray(features) &&
      Object.values(capabilities as object).every(Array.isArray);
    return isGood
      ? { driver, options: { hook, params, features }, capabilities: capabilities as Rest["capabilities"] }
      : undefined;
  } catch (thrown) {
    if (thrown instanceof SyntaxError || thrown instanceof TypeError) return undefined;
    throw thrown;
  }
}

/**
 * The origin of a spec file; `undefined` of one that Sluice has not made, or that somebody has changed since: that one
 * is theirs, and counts as it stands. What a start does not need is read when it is asked for, and throws E_CDI_STALE
 * then where it is damaged.
 */
export function readOrigin(files: Files, specPath: string): StoredOrigin | undefined {
  // The hot path of every container start: no more is read than must be.
  const path = originPath(specPath);
  let text: string;
  let stamp: string | undefined;
  try {
    text = files.readText(path, LIMIT);
    stamp = files.stat(specPath)?.stamp;
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined;
    throw thrown;
  }
  const lines = text.split("\n");
  if (lines.length !== 4) return undefined; // cut short, or another's file
  try {
    const [madeFor, places, stamps, others] = JSON.parse(lines[0] as string) as [string, string[], string, Row[]];
    if (madeFor !== stamp || !Array.isArray(places) || !Array.isArray(others)) return undefined;
    return new StoredOrigin({ places, stamps }, others, path, lines);
  } catch (thrown) {
    if (thrown instanceof SyntaxError || thrown instanceof TypeError) return undefined;
    throw thrown;
  }
}
