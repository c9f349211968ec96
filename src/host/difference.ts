/** What has changed on a machine since a CDI spec was made of it, told to a person. */

import { readSpecFile } from "../cdi/read.part.ts";
import type { ContainerEdits, Device, Spec } from "../cdi/spec.ts";
import { OsError, printable } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";
import type { MadeSpec } from "./draft.ts";
import { changedFacts, type Fact, lookAt, readOrigin } from "./origin.ts";
import { ADDRESS } from "./pci.ts";

/** Differences that a message names; a driver of another version brings a hundred. */
const SHOWN = 5;

/** A spec on disk with its origin; `undefined` where there is none, or it is not as Sluice wrote it. */
export function readMade(files: Files, path: string): MadeSpec | undefined {
  const origin = readOrigin(files, path);
  try {
    const stat = files.stat(path);
    const spec = stat && readSpecFile(files, path, stat).spec;
    return origin === undefined || spec === undefined ? undefined : { spec, origin };
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined;
    throw thrown;
  }
}

/**
 * A line for each thing that is not as it was when a spec was made, the driver first; empty where the spec would be
 * made the same again.
 *
 * @param files the machine as it is now
 * @param now the spec as it would be made now; absent where it cannot be, or the machine has no such device any more
 */
export function differences(files: Files, was: MadeSpec, now: Spec | undefined): string[] {
  const lines = [...factDifferences(files, was.origin.facts), ...specDifferences(files, was.spec, now)];
  return [...new Set(lines)];
}

/** Those of `differences` that facts tell. */
export function factDifferences(files: Files, facts: readonly Fact[]): string[] {
  const changed = changedFacts(files, facts);
  return changed.flatMap((fact) => factLines(fact, lookAt(files, fact.look, fact.path))).map(printable);
}

/** Those of `differences` that two specs of one kind tell; absent where there is none. */
export function specDifferences(files: Files, was: Spec | undefined, now: Spec | undefined): string[] {
  return [...fileLines(files, was, now), ...numberLines(was, now), ...deviceLines(was, now)].map(printable);
}

/** The first of them, as one text. */
export function summary(lines: readonly string[]): string {
  const left = lines.length - SHOWN;
  const more = left > 0 ? [left === 1 ? "1 more difference" : `${left} more differences`] : [];
  return [...lines.slice(0, SHOWN), ...more].join(", ");
}

function factLines({ look, path, saw }: Fact, now: string): string[] {
  switch (look) {
    case "text":
      return [textLine(path, saw, now) ?? []].flat();
    case "names":
      return nameLines(path, saw, now);
    case "kind":
      if (now === "") return [`${path} is gone`];
      return [saw === "" ? `${path} is there now` : `${path} is ${now}, and was ${saw}`];
    case "head": {
      const address = path.split("/").at(-2);
      if (now === "ffffffff") return [`GPU ${address} is lost`];
      return saw === "ffffffff" ? [`GPU ${address} answers again`] : [];
    }
    case "stamp":
      // Of a folder of libraries it changes with any library: what that means for the spec, the files tell.
      return [];
  }
}

function textLine(path: string, saw: string, now: string): string | undefined {
  if (path === "/sys/module/nvidia/version") {
    if (now === "") return `driver ${saw} is not loaded any more`;
    return saw === "" ? `driver ${now} is loaded now` : `driver ${saw} -> ${now}`;
  }
  // Every driver of the machine is in there: what it means for the spec, its nodes tell.
  if (path === "/proc/devices") return undefined;
  // Of a GPU that nobody has used yet: when its UUID is known, that is a new device.
  if (path.endsWith("/information")) return undefined;
  return `${path}: ${saw || "nothing"} -> ${now || "nothing"}`;
}

function nameLines(path: string, saw: string, now: string): string[] {
  const gpuInstances = /\/gpu(\d+)\/mig$/.exec(path);
  if (gpuInstances !== null) {
    return [`MIG of /dev/nvidia${gpuInstances[1]} is cut anew: ${instances(saw)} -> ${instances(now)}`];
  }
  const computeInstances = /\/gpu(\d+)\/mig\/gi(\d+)$/.exec(path);
  if (computeInstances !== null) {
    // Of an instance that has come or gone, the line above tells.
    if (saw === "" || now === "") return [];
    const [, gpu, gi] = computeInstances;
    return [`GPU instance ${gi} of /dev/nvidia${gpu} is cut anew: ${instances(saw)} -> ${instances(now)}`];
  }
  const [before, after] = [saw.split(" "), now.split(" ")];
  const lines = (names: string[], what: string): string[] =>
    names.map((name) => `${ADDRESS.test(name) ? `GPU ${name}` : `${path}/${name}`} ${what}`);
  return [
    ...lines(
      before.filter((name) => name !== "" && !after.includes(name)),
      "is gone",
    ),
    ...lines(
      after.filter((name) => name !== "" && !before.includes(name)),
      "is new",
    ),
  ].filter((line) => !/\/(?:bind|unbind|new_id|remove_id|uevent|module) is (?:gone|new)$/.test(line));
}

/** The instances among the files of a MIG folder: `gi1 gi2`. */
function instances(names: string): string {
  const found = names.split(" ").filter((name) => /^[gc]i\d+$/.test(name));
  return found.length === 0 ? "none" : found.join(" ");
}

function fileLines(files: Files, was: Spec | undefined, now: Spec | undefined): string[] {
  const [before, after] = [hostPaths(was), hostPaths(now)];
  const missing = before.filter((path) => !after.includes(path));
  const gone = missing.filter((path) => lookAt(files, "kind", path) === "");
  const unused = missing.filter((path) => !gone.includes(path));
  const added = now === undefined ? [] : after.filter((path) => !before.includes(path));
  return [...told(gone, "gone"), ...told(unused, "not the driver's any more"), ...told(added, "new")];
}

/** `/usr/lib64/libcuda.so.580.65.06 and 40 other files are gone` */
function told(paths: readonly string[], what: string): string[] {
  const first = paths.find((path) => path.includes("/libcuda.so.")) ?? paths[0];
  if (first === undefined) return [];
  const others = paths.length - 1;
  if (others === 0) return [`${first} is ${what}`];
  return [`${first} and ${others} other ${others === 1 ? "file" : "files"} are ${what}`];
}

/** The files of the machine that a spec mounts. */
function hostPaths(spec: Spec | undefined): string[] {
  return [...new Set(editsOf(spec).flatMap(({ mounts = [] }) => mounts.map((mount) => mount.hostPath)))];
}

function editsOf(spec: Spec | undefined): ContainerEdits[] {
  return [spec?.containerEdits ?? {}, ...(spec?.devices ?? []).map((device) => device.containerEdits)];
}

/** Nodes whose numbers stand in the spec, as the machine has none of them, and are others now. */
function numberLines(was: Spec | undefined, now: Spec | undefined): string[] {
  const after = pinned(now);
  return [...pinned(was)].flatMap(([path, numbers]) => {
    const other = after.get(path);
    return other === undefined || other === numbers ? [] : [`${path} has the numbers ${other}, and had ${numbers}`];
  });
}

/** `major:minor` by path. */
function pinned(spec: Spec | undefined): Map<string, string> {
  const nodes = editsOf(spec).flatMap(({ deviceNodes = [] }) => deviceNodes);
  return new Map(nodes.flatMap(({ path, major, minor }) => (major === undefined ? [] : [[path, `${major}:${minor}`]])));
}

function deviceLines(was: Spec | undefined, now: Spec | undefined): string[] {
  const nodesOf = ({ containerEdits }: Device): string =>
    (containerEdits.deviceNodes ?? []).map((node) => node.path).join(" ");
  const devicesOf = (spec: Spec | undefined): Map<string, string> =>
    new Map((spec?.devices ?? []).map((device) => [`${spec?.kind}=${device.name}`, nodesOf(device)]));
  const [before, after] = [devicesOf(was), devicesOf(now)];
  const lines = [...before].flatMap(([name, nodes]) => {
    const then = after.get(name);
    if (then === undefined) return [`${name} is gone`];
    return then === nodes ? [] : [`${name} has other nodes`];
  });
  return [...lines, ...[...after.keys()].filter((name) => !before.has(name)).map((name) => `${name} is new`)];
}
