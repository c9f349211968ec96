/**
 * Bundles on disk: reading a config.json and replacing it in one step.
 *
 * What a kill leaves, after each system call of `writeConfig`:
 *
 * | call            | config.json | `.config.json.sluice`                     |
 * |-----------------|-------------|-------------------------------------------|
 * | createFile      | old         | empty, partly or wholly written, mode 0600 |
 * | lstat           | old         | whole                                     |
 * | chown, chmod    | old         | whole, with the old file's owner and mode |
 * | rename          | new         | none                                      |
 *
 * The next `writeConfig` to this bundle removes a file that was left. Nothing is synced to disk: a
 * bundle does not outlive the machine's run.
 */

import { OsError, quote, reasonOf, SluiceError } from "../sys/error.ts";
import type { Files, Stat, Sys } from "../sys/sys.ts";
import { locateJsonError } from "./json-error.part.ts";
import { escapePointer } from "./lossless.ts";
import { type Config, HOOK_STAGES } from "./spec.ts";

export interface Bundle {
  /** The file that holds the text: config.json, or where it links to. */
  readonly path: string;
  readonly text: string;
  /** `JSON.parse(text)`, checked to have the types of `Config`. */
  readonly config: Config;
  readonly stat: Stat;
}

/** Bytes. containerd's own limit for a whole gRPC message that brings a config.json is 16 MiB too. */
const MAX_SIZE = 16 * 1024 * 1024;

/** Characters. Looking for the fault in more would keep the engine waiting for seconds. */
const MAX_LOCATED = 1024 * 1024;

/** Links from config.json to the file. */
const MAX_LINKS = 8;

/**
 * Reads `DIR/config.json`, or `file` in its place (crun's `--config`; relative to the working folder).
 *
 * @throws SluiceError `E_BUNDLE_MISSING`, `E_BUNDLE_FILE` (not a regular file, or not readable), `E_BUNDLE_SIZE`,
 * `E_BUNDLE_UTF8`, `E_BUNDLE_JSON` with line and column, `E_BUNDLE_FIELD` with the JSON pointer of a field that we need
 * and that has the wrong type.
 */
export function readBundle(sys: Files, dir: string, file?: string): Bundle {
  const given = file ?? `${dir}/config.json`;
  // What the runtime opens there is an open file, which replacing a path does not change.
  if (/^\/(?:dev\/fd|proc)\//.test(given)) fileError(given, "it is an open file, not a path that can be replaced");
  try {
    const [path, stat] = resolve(sys, given);
    if (stat.size > MAX_SIZE) tooLarge(path);
    const text = sys.readText(path, MAX_SIZE);
    return { path, text, config: parseConfig(text, path), stat };
  } catch (thrown) {
    if (!(thrown instanceof OsError)) throw thrown;
    if (thrown.code === "EFBIG") tooLarge(given);
    if (thrown.code === "EILSEQ") {
      throw new SluiceError("E_BUNDLE_UTF8", `${quote(given)} is not UTF-8`, "write the file as UTF-8", thrown);
    }
    fileError(given, reasonOf(thrown), thrown);
  }
}

/** The regular file behind `path`. The kernel resolves the folders, we the last component. */
function resolve(sys: Files, given: string): [string, Stat] {
  let path = given;
  for (let links = 0; links <= MAX_LINKS; links++) {
    const stat = sys.lstat(path);
    if (stat === undefined) {
      throw new SluiceError(
        "E_BUNDLE_MISSING",
        path === given
          ? `${quote(path)} is not there`
          : `${quote(given)} is a link to ${quote(path)}, which is not there`,
        "name a bundle folder (--bundle) that holds a config.json",
      );
    }
    if (stat.kind === "file") return [path, stat];
    if (stat.kind !== "link") fileError(given, `it is not a regular file but of the kind "${stat.kind}"`);
    const target = sys.readLink(path);
    path = target.startsWith("/") ? target : folderOf(path) + target;
  }
  fileError(given, `it is a chain of more than ${MAX_LINKS} links`);
}

function fileError(path: string, reason: string, cause?: unknown): never {
  throw new SluiceError(
    "E_BUNDLE_FILE",
    `${quote(path)} cannot be used: ${reason}`,
    "config.json must be a regular file that we may read",
    cause,
  );
}

function tooLarge(path: string): never {
  throw new SluiceError("E_BUNDLE_SIZE", `${quote(path)} is larger than ${MAX_SIZE} bytes`, "make the file smaller");
}

/** The folder of a path with its slash; empty for the working folder. */
function folderOf(path: string): string {
  return path.slice(0, path.lastIndexOf("/") + 1);
}

/** A fixed name, so that the next run finds what a killed one left. */
function temporaryFor(path: string): string {
  const folder = folderOf(path);
  return `${folder}.${path.slice(folder.length)}.sluice`;
}

/**
 * Replaces the bundle's file by `text` in one step, with the owner and mode of the old one. A link stays a link: what
 * it leads to is replaced. On failure the old file is as it was, and our temporary one is gone.
 *
 * @throws SluiceError `E_BUNDLE_OWNER` where the old owner cannot be kept, `E_BUNDLE_WRITE` for anything else.
 */
export function writeConfig(
  sys: Pick<Sys, "createFile" | "lstat" | "chown" | "chmod" | "rename" | "unlink">,
  bundle: Pick<Bundle, "path" | "stat">,
  text: string,
): void {
  const { path, stat } = bundle;
  const temporary = temporaryFor(path);
  try {
    createTemporary(sys, temporary, text);
    // The group of a new file depends on the folder and the file system, so it is asked for.
    const now = sys.lstat(temporary);
    if (now === undefined) throw new OsError("ENOENT", "lstat", temporary);
    if (now.uid !== stat.uid || now.gid !== stat.gid) keepOwner(sys, temporary, stat);
    if (now.mode !== stat.mode) sys.chmod(temporary, stat.mode);
    sys.rename(temporary, path);
  } catch (thrown) {
    // Half a file is ours to remove too; one that came up in between is another's.
    if (!isExists(thrown)) tryUnlink(sys, temporary);
    if (!(thrown instanceof OsError)) throw thrown;
    throw new SluiceError(
      "E_BUNDLE_WRITE",
      `${quote(path)} cannot be replaced: ${reasonOf(thrown)}`,
      "the bundle folder must be writable to us and have space",
      thrown,
    );
  }
}

/** A file that is there already is one that a killed run left: engines make one call at a time for a bundle. */
function createTemporary(sys: Pick<Sys, "createFile" | "unlink">, path: string, text: string): void {
  try {
    sys.createFile(path, text, 0o600);
  } catch (thrown) {
    if (!isExists(thrown)) throw thrown;
    sys.unlink(path);
    sys.createFile(path, text, 0o600);
  }
}

function isExists(thrown: unknown): boolean {
  return thrown instanceof OsError && thrown.code === "EEXIST";
}

/** Before chmod, because a change of owner clears the setuid and setgid bits. */
function keepOwner(sys: Pick<Sys, "chown">, temporary: string, stat: Stat): void {
  try {
    sys.chown(temporary, stat.uid, stat.gid);
  } catch (thrown) {
    throw new SluiceError(
      "E_BUNDLE_OWNER",
      `the new config.json cannot be given to its owner ${stat.uid}:${stat.gid}: ${reasonOf(thrown)}`,
      "run as root or as the owner of the file",
      thrown,
    );
  }
}

function tryUnlink(sys: Pick<Sys, "unlink">, path: string): void {
  try {
    sys.unlink(path);
  } catch (thrown) {
    if (!(thrown instanceof OsError)) throw thrown;
  }
}

function parseConfig(text: string, path: string): Config {
  let config: unknown;
  try {
    config = JSON.parse(text);
  } catch (thrown) {
    throw new SluiceError(
      "E_BUNDLE_JSON",
      `${quote(path)} is not JSON: ${whyNotJson(text, thrown)}`,
      "correct the file",
      thrown,
    );
  }
  checkConfig(config, path);
  return config;
}

function whyNotJson(text: string, thrown: unknown): string {
  // Another error than of the syntax is that the parser ran out of stack.
  if (!(thrown instanceof SyntaxError)) return "it is nested too deep";
  if (text.length > MAX_LOCATED) return `of its ${text.length} characters, finding the wrong one would take too long`;
  const error = locateJsonError(text);
  return error ? `line ${error.line}, column ${error.column}: ${error.what}` : "it is nested too deep";
}

/** Only what Sluice reads, and only its types: the runtime behind us checks the rest. `null` counts as absent. */
function checkConfig(value: unknown, path: string): asserts value is Config {
  const bad = (pointer: string, expected: string): never => {
    throw new SluiceError(
      "E_BUNDLE_FIELD",
      `${quote(path)}: ${pointer === "" ? "the file" : quote(pointer)} must be ${expected}`,
      "correct the field; see the OCI runtime specification",
    );
  };
  const object = (part: unknown, pointer: string): Record<string, unknown> => {
    if (part === undefined || part === null) return {};
    return typeof part === "object" && !Array.isArray(part)
      ? (part as Record<string, unknown>)
      : bad(pointer, "an object");
  };
  const array = (part: unknown, pointer: string): unknown[] => {
    if (part === undefined || part === null) return [];
    return Array.isArray(part) ? part : bad(pointer, "an array");
  };
  /** Elements of one primitive type. */
  const list = (part: unknown, pointer: string, type: "string" | "number"): void => {
    const items = array(part, pointer);
    for (let i = 0; i < items.length; i++) if (typeof items[i] !== type) bad(`${pointer}/${i}`, `a ${type}`);
  };
  const objects = (part: unknown, pointer: string, each: (item: Record<string, unknown>, at: string) => void): void => {
    const items = array(part, pointer);
    for (let i = 0; i < items.length; i++) {
      const item = items[i];
      if (typeof item !== "object" || item === null || Array.isArray(item)) bad(`${pointer}/${i}`, "an object");
      each(item as Record<string, unknown>, `${pointer}/${i}`);
    }
  };
  const field = (of: Record<string, unknown>, pointer: string, name: string, type: string, required = false): void => {
    const part = of[name];
    if (required ? typeof part !== type : part !== undefined && part !== null && typeof part !== type) {
      bad(`${pointer}/${escapePointer(name)}`, `a ${type}`);
    }
  };

  if (typeof value !== "object" || value === null || Array.isArray(value)) bad("", "an object");
  const config = value as Record<string, unknown>;

  const process = object(config.process, "/process");
  list(process.env, "/process/env", "string");
  const user = object(process.user, "/process/user");
  field(user, "/process/user", "uid", "number");
  field(user, "/process/user", "gid", "number");
  list(user.additionalGids, "/process/user/additionalGids", "number");

  objects(config.mounts, "/mounts", (mount, at) => {
    field(mount, at, "destination", "string", true);
    field(mount, at, "source", "string");
    field(mount, at, "type", "string");
    list(mount.options, `${at}/options`, "string");
  });

  const hooks = object(config.hooks, "/hooks");
  for (const stage of HOOK_STAGES) {
    objects(hooks[stage], `/hooks/${stage}`, (hook, at) => {
      field(hook, at, "path", "string", true);
      list(hook.args, `${at}/args`, "string");
      list(hook.env, `${at}/env`, "string");
      field(hook, at, "timeout", "number");
    });
  }

  const annotations = object(config.annotations, "/annotations");
  for (const key of Object.keys(annotations)) field(annotations, "/annotations", key, "string", true);

  const linux = object(config.linux, "/linux");
  objects(linux.devices, "/linux/devices", (device, at) => {
    field(device, at, "path", "string", true);
    field(device, at, "type", "string");
    for (const name of ["major", "minor", "fileMode", "uid", "gid"]) field(device, at, name, "number");
  });
  const netDevices = object(linux.netDevices, "/linux/netDevices");
  for (const name of Object.keys(netDevices)) object(netDevices[name], `/linux/netDevices/${escapePointer(name)}`);
  objects(linux.namespaces, "/linux/namespaces", (namespace, at) => field(namespace, at, "type", "string", true));
  const resources = object(linux.resources, "/linux/resources");
  objects(resources.devices, "/linux/resources/devices", (rule, at) => {
    field(rule, at, "allow", "boolean");
    field(rule, at, "type", "string");
    field(rule, at, "major", "number");
    field(rule, at, "minor", "number");
    field(rule, at, "access", "string");
  });
  object(linux.intelRdt, "/linux/intelRdt");
}
