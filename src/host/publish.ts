/**
 * Writing specs where engines read them. One at a time (a lock), each file in one step, and nothing of anybody else's:
 * two specs of one folder that define the same device take it away from both, so where another tool's does, ours stays
 * out.
 */

import { openRegistry } from "../cdi/registry.ts";
import { OsError, printable, SluiceError } from "../sys/error.ts";
import type { Sys } from "../sys/sys.ts";
import type { Made } from "./cdi-spec.ts";
import type { MadeSpec } from "./draft.ts";
import { formatOrigin, originPath } from "./origin.ts";

export interface Published {
  readonly kind: string;
  readonly path: string;
  /** `left out`: another tool's spec of the same folder has the same devices. */
  readonly state: "written" | "unchanged" | "removed" | "left out";
  /** Names of its devices, without the kind. */
  readonly devices: readonly string[];
  /** Where it was left out, or another file was moved aside: why, for a person. */
  readonly why?: string;
}

/** Every kind that Sluice writes specs of: those of a kind that the machine has no more are removed. */
const KINDS = [
  "nvidia.com/gpu",
  "nvidia.com/gds",
  "nvidia.com/mofed",
  "nvidia.com/gdrcopy",
  "nvidia.com/nvswitch",
  "nvidia.com/imex-channel",
  "nvidia.com/mig",
  "amd.com/gpu",
  "intel.com/gpu",
];

/** Bytes. Ours are far smaller; what is larger is not ours. */
const LIMIT = 4 << 20;

/** Ends the name of a spec that `--replace` has moved aside: CDI libraries read only `.json` and `.yaml`. */
const ASIDE = ".replaced-by-sluice";

/** Where the spec of a kind goes in a folder. */
export function specPath(dir: string, kind: string): string {
  return `${dir}/sluice-${kind.replace("/", "-")}.json`;
}

/** A spec as it stands in its file: what fits is on one line, so that a person sees a mount at a glance. */
export function specText({ spec }: MadeSpec): string {
  return `${layOut(spec, "")}\n`;
}

const LINE = 200;

function layOut(value: unknown, indent: string): string {
  const short = JSON.stringify(value);
  if (indent.length + short.length <= LINE || typeof value !== "object" || value === null) return short;
  const inner = `${indent}  `;
  if (Array.isArray(value)) {
    return `[\n${value.map((one) => inner + layOut(one, inner)).join(",\n")}\n${indent}]`;
  }
  const lines = Object.entries(value).map(([key, one]) => `${inner}${JSON.stringify(key)}: ${layOut(one, inner)}`);
  return `{\n${lines.join(",\n")}\n${indent}}`;
}

/**
 * Takes the lock that everybody holds who writes specs into a folder, which is made where its parent exists.
 *
 * @returns lets go of it
 * @throws SluiceError E_CDI_WRITE
 */
export function lockSpecs(sys: Sys, dir: string): () => void {
  return writing(dir, () => {
    if (sys.stat(dir) === undefined) sys.mkdir(dir, 0o755);
    return sys.lock(`${dir}/.sluice.lock`);
  });
}

/**
 * Brings a folder's specs up to what was made, and removes those of ours that the machine has no devices for any more.
 * What is right already is not touched. The caller holds the lock.
 *
 * @param only the one kind that was made; of all others nothing is said
 * @param replace whether other tools' specs of the same devices are moved aside, instead of ours staying out
 * @throws SluiceError E_CDI_WRITE
 */
export function publish(sys: Sys, dir: string, made: Made, replace: boolean, only?: string): Published[] {
  const done = made.specs.map((one) => publishOne(sys, dir, specPath(dir, one.spec.kind), one, made.params, replace));
  const kinds = new Set(made.specs.map(({ spec }) => spec.kind));
  for (const kind of KINDS) {
    const path = specPath(dir, kind);
    if (kinds.has(kind) || (only !== undefined && only !== kind)) continue;
    if (writing(path, () => sys.lstat(path)) === undefined) continue;
    remove(sys, path);
    done.push({ kind, path, state: "removed", devices: [] });
  }
  return done;
}

/** Writes one spec and its origin. @throws SluiceError E_CDI_WRITE */
export function publishOne(
  sys: Sys,
  dir: string,
  path: string,
  made: MadeSpec,
  params: string | undefined,
  replace: boolean,
): Published {
  const { kind, devices } = made.spec;
  const names = devices.map((device) => device.name);
  const rivals = rivalsOf(sys, dir, path, kind, names);
  if (rivals.length > 0 && !replace) {
    remove(sys, path);
    const why = `${rivals.map(printable).join(", ")} has devices of the same names, and two specs of one folder take them away from each other`;
    return { kind, path, state: "left out", devices: names, why };
  }
  for (const rival of rivals) writing(rival, () => sys.rename(rival, `${rival}${ASIDE}`));
  if (params !== undefined && kind === "nvidia.com/gpu") writeParams(sys, made.origin.options.params, params);
  const isNew = replaceText(sys, path, specText(made));
  const stamp = writing(path, () => sys.stat(path))?.stamp ?? "";
  const isNewOrigin = replaceText(sys, originPath(path), formatOrigin(made.origin, stamp));
  const moved = rivals.map((rival) => `${printable(rival)} was moved aside to ${printable(`${rival}${ASIDE}`)}`);
  return {
    kind,
    path,
    state: isNew || isNewOrigin ? "written" : "unchanged",
    devices: names,
    ...(moved.length === 0 ? {} : { why: moved.join(", ") }),
  };
}

/** Other files of the folder that define one of the devices. */
function rivalsOf(sys: Sys, dir: string, path: string, kind: string, names: readonly string[]): string[] {
  const own = new Set(names.map((name) => `${kind}=${name}`));
  const others = openRegistry(sys, [dir])
    .devices()
    .filter((device) => device.path !== path && own.has(device.name));
  return [...new Set(others.map((device) => device.path))];
}

/** The settings file, in folders that are made where they are not there: they are gone with each boot. */
function writeParams(sys: Sys, path: string, text: string): void {
  const steps = path.split("/").slice(1, -1);
  for (let i = 1; i <= steps.length; i++) {
    const folder = `/${steps.slice(0, i).join("/")}`;
    writing(folder, () => {
      if (sys.stat(folder) === undefined) sys.mkdir(folder, 0o755);
    });
  }
  replaceText(sys, path, text);
}

/** Replaces a file in one step, readable by all, unless it has that text. Whether it had not. */
function replaceText(sys: Sys, path: string, text: string): boolean {
  const draft = `${path}.new`;
  writing(path, () => {
    if (sys.lstat(draft) !== undefined) sys.unlink(draft); // of somebody who died with the lock
  });
  if (readIfThere(sys, path) === text) return false;
  writing(path, () => {
    sys.createFile(draft, text, 0o644);
    sys.chmod(draft, 0o644); // whatever our umask is
    sys.rename(draft, path);
  });
  return true;
}

function readIfThere(sys: Sys, path: string): string | undefined {
  try {
    return sys.readText(path, LIMIT);
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined; // written anew, which says what is wrong
    throw thrown;
  }
}

function remove(sys: Sys, path: string): void {
  for (const file of [path, originPath(path)]) {
    writing(file, () => {
      if (sys.lstat(file) !== undefined) sys.unlink(file);
    });
  }
}

/** Runs a file operation; its failure is told with what to do. */
function writing<T>(path: string, operation: () => T): T {
  try {
    return operation();
  } catch (thrown) {
    if (!(thrown instanceof OsError)) throw thrown;
    throw new SluiceError(
      "E_CDI_WRITE",
      `the CDI spec ${printable(path)} cannot be written (${thrown.code})`,
      thrown.code === "EACCES" || thrown.code === "EPERM"
        ? "run it as root, or name a place of your own with --output"
        : "make its folder writable, with room in it, or name another place with --output",
      thrown,
    );
  }
}
